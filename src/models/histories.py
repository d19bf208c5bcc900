"""Histories from Python lists, for `BERT4Rec.predict`."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from ..batch import PAD, PredictBatch, mask_token


def batch_of(
    user_sequences: Sequence[Sequence[int]], exclude_items: Sequence[Iterable[int]], num_items: int, max_len: int
) -> PredictBatch:
    """A batch to predict from, on the CPU.

    Args:
        user_sequences: item tokens of each user, oldest first; only the last max_len - 1 count.
        exclude_items: for each user, items that are no candidates.

    Raises:
        ValueError: if a token is no item.
    """
    histories = [list(sequence) for sequence in user_sequences]
    excluded = [list(items) for items in exclude_items]
    for item in (item for items in histories + excluded for item in items):
        if not 1 <= item <= num_items:
            raise ValueError(f"{item} is no item of this model, whose items are 1 to {num_items}")
    inputs = [
        torch.tensor([*history[max(0, len(history) - max_len + 1) :], mask_token(num_items)]) for history in histories
    ]
    rows = [row for row, items in enumerate(excluded) for _ in items]
    return PredictBatch(
        users=torch.arange(len(histories)),
        inputs=nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=PAD, padding_side="left"),
        seen_rows=torch.tensor(rows, dtype=torch.long),
        seen_items=torch.tensor([item for items in excluded for item in items], dtype=torch.long),
    )
