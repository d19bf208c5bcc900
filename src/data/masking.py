"""The Cloze task (paper section 3.6) as pure functions of token arrays and a random generator.

B batch, L longest sequence of the batch.
"""

import numpy as np
from numpy.typing import NDArray

from ..batch import PAD, mask_token

Tokens = NDArray[np.int64]
Flags = NDArray[np.bool_]


def choose_targets(
    sequences: Tokens, generator: np.random.Generator, mask_prob: float, mask_last_share: float
) -> tuple[Flags, Flags]:
    """Choose which items are to be predicted.

    Each item is chosen with probability `mask_prob`; where that chooses none, one item, all equally likely, is, so
    that no sequence is without a target. A share of the sequences has its last item as the only target instead, which
    is what the model is asked at prediction.

    Args:
        sequences: [B, L], left-padded, at least one item in each row.

    Returns:
        is_chosen [B, L], and is_last_only [B], the rows of that share.
    """
    draws = generator.random(sequences.shape, dtype=np.float32)
    draws[sequences == PAD] = 2.0
    is_chosen = draws < mask_prob
    # The smallest draw of a row is chosen already, or else is uniform over the row's items.
    is_chosen[np.arange(len(sequences)), draws.argmin(axis=1)] = True
    is_last_only = generator.random(len(sequences), dtype=np.float32) < mask_last_share
    is_chosen[is_last_only] = False
    is_chosen[is_last_only, -1] = True
    return is_chosen, is_last_only


def replace_targets(
    sequences: Tokens,
    is_chosen: Flags,
    is_last_only: Flags,
    num_items: int,
    generator: np.random.Generator,
    mask_token_share: float,
    random_token_share: float,
) -> Tokens:
    """What the model sees: chosen items become [MASK], a random item, or stay, in these shares.

    A row of `is_last_only` always gets [MASK], since prediction has nothing else there.

    Returns:
        [B, L], a copy of `sequences` with the replacements.
    """
    rows, columns = is_chosen.nonzero()
    draws = generator.random(len(rows), dtype=np.float32)
    becomes_mask = (draws < mask_token_share) | is_last_only[rows]
    becomes_random = ~becomes_mask & (draws < mask_token_share + random_token_share)
    tokens = sequences[rows, columns]
    tokens[becomes_mask] = mask_token(num_items)
    tokens[becomes_random] = generator.integers(1, num_items, size=int(becomes_random.sum()), endpoint=True)
    inputs = sequences.copy()
    inputs[rows, columns] = tokens
    return inputs
