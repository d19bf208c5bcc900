"""The batches that data hands to models: every tensor's shape, dtype and special ids, in one place.

B batch, L longest sequence of the batch, N targets in the batch, S seen pairs, K negatives.

Token ids: 0 is padding, 1..num_items are items, num_items + 1 is [MASK]. Sequences are padded on the left, so the last
column is always the most recent item, and what stands c columns before the end of one row stands as far from the end
of its history in every other.
"""

from typing import NamedTuple

from torch import Tensor

PAD = 0


def mask_token(num_items: int) -> int:
    """Id of [MASK]: the one after the last item."""
    return num_items + 1


class Negatives(NamedTuple):
    """Items that stand for all others in a sampled loss; the same for every target of a step."""

    items: Tensor  # [K] int64, drawn with replacement
    log_counts: Tensor  # [K] float32, log of how often each is expected among the K draws


class TrainBatch(NamedTuple):
    """Masked sequences and the items to be recovered (Cloze task, paper section 3.6): what one optimiser step sees.

    A slot with target 0 is unused and counts for nothing, so that N can be a fixed number where shapes have to be. All
    are unused on a process for which a last batch was too small: it takes part in the step with a row of another.
    """

    inputs: Tensor  # [B, L] int64, tokens after masking
    places: Tensor  # [N] int64, where the targets stand in the flattened inputs [B * L], in any order
    targets: Tensor  # [N] int64, the true item at each place, 1..num_items, or 0
    negatives: Negatives | None  # if the loss needs some
    num_rows: int  # that count, at most B


class RowBatch(NamedTuple):
    """Rows of data that lies where the model is, for `src.data.fixed_shapes` to make a `TrainBatch` of."""

    order: Tensor  # [B + 2] int64: rows, -1 for none, then the seed of this process' draws and that of all processes
    length: int  # L
    num_rows: int


class PredictBatch(NamedTuple):
    """Histories that end in [MASK], to be continued."""

    users: Tensor  # [B] int64, row of each user in the data set
    inputs: Tensor  # [B, L] int64, the last column is [MASK]
    seen_rows: Tensor  # [S] int64, row of the batch, ascending ...
    seen_items: Tensor  # [S] int64, ... and item that is no candidate in that row


class EvalBatch(NamedTuple):
    """A `PredictBatch` whose next items are known; where users have several, with a row for each of them."""

    users: Tensor  # [B] int64, row of the data set
    inputs: Tensor  # [B, L] int64; with `owners`, [H, L] once for each run of the same owner
    seen_rows: Tensor  # [S] int64
    seen_items: Tensor  # [S] int64
    targets: Tensor  # [B] int64, the held-out item, 1..num_items
    owners: Tensor | None = None  # [B] int64, whose each target is; None: each row is a user of its own
