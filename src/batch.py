"""The batches that data hands to models: every tensor's shape, dtype and special ids, in one place.

B batch, L longest sequence of the batch, M most targets in one sequence, N targets in the batch, S seen pairs.

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


class TrainBatch(NamedTuple):
    """Masked sequences and the items to be recovered (Cloze task, paper section 3.6)."""

    inputs: Tensor  # [B, L] int64, tokens after masking
    positions: Tensor  # [B, M] int64, columns of `inputs` that carry a target; unused slots hold 0
    slots: Tensor  # [N] int64, which entries of the flattened [B * M] `positions` are in use, ascending
    targets: Tensor  # [N] int64, the true item at each used slot, 1..num_items


class Negatives(NamedTuple):
    """Items that stand for all others in a sampled loss; the same for every target of a step."""

    items: Tensor  # [K] int64, drawn with replacement
    log_counts: Tensor  # [K] float32, log of how often each is expected among the K draws


class TrainStep(NamedTuple):
    """What one optimiser step sees: a batch in parts of similar length, and the negatives if the loss needs some."""

    shares: list[list[TrainBatch]]  # the parts of each process that works on the step, of about as many tokens each
    negatives: Negatives | None
    counts: bool = True  # False: a row taken for nothing, by a process for which a last batch was too small

    @property
    def parts(self) -> list[TrainBatch]:
        """Those of all shares."""
        return [part for share in self.shares for part in share]


class PredictBatch(NamedTuple):
    """Histories that end in [MASK], to be continued."""

    users: Tensor  # [B] int64, row of each user in the data set
    inputs: Tensor  # [B, L] int64, the last column is [MASK]
    seen_rows: Tensor  # [S] int64, row of the batch ...
    seen_items: Tensor  # [S] int64, ... and item that is no candidate in that row


class EvalBatch(NamedTuple):
    """A `PredictBatch` whose next items are known."""

    users: Tensor  # [B] int64
    inputs: Tensor  # [B, L] int64
    seen_rows: Tensor  # [S] int64
    seen_items: Tensor  # [S] int64
    targets: Tensor  # [B] int64, the held-out item, 1..num_items
