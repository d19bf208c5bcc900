"""What a model has to beat, as functions that score all tokens for the users of a batch.

B users of a batch, V tokens (num_items + 2). Ranked by `src.ranking` like any model: seen items are no candidates if
the evaluation set says so, and ties count against the target.
"""

import numpy as np
import torch
from torch import Tensor

from ..batch import EvalBatch
from ..data.sequences import Indices, Spans, flatten
from ..ranking import EXACT_IN_FLOAT


class Popularity:
    """Scores every item by how often training saw it.

    Args:
        counts: [num_items] int64, training interactions of each item.
    """

    def __init__(self, counts: Indices) -> None:
        _, levels = np.unique(counts, return_inverse=True)  # smaller numbers in the same order
        self.num_levels = int(levels.max()) + 1
        self.levels = np.concatenate([[0], levels, [0]])  # [V]

    def __call__(self, batch: EvalBatch) -> Tensor:
        return torch.from_numpy(self.levels).float().expand(len(batch.users), -1).clone()


class LastItemSuccessors:
    """Scores every item by how often it came right after the user's last item in the training histories.

    Items that came equally often, and all that never did, are in order of popularity.

    Args:
        tokens: [R] int32 or int64.
        spans: the training histories, spans of it.
        counts: [num_items] int64, training interactions of each item.
    """

    def __init__(self, tokens: Indices, spans: Spans, counts: Indices) -> None:
        self.popularity = Popularity(counts)
        all_but_last = Spans(spans.starts, np.maximum(spans.starts, spans.stops - 1))
        _, places = flatten(np.arange(len(tokens)), all_but_last)
        num_tokens = len(counts) + 2
        firsts = tokens[places].astype(np.int64)  # a pair of a large catalogue is beyond int32
        pairs, times = np.unique(firsts * num_tokens + tokens[places + 1], return_counts=True)
        lasts, self.successors = np.divmod(pairs, num_tokens)
        self.offsets = np.searchsorted(lasts, np.arange(num_tokens + 1))
        # Above all that never followed: first by times, then by popularity, again as small numbers in the same order.
        keys = times * self.popularity.num_levels + self.popularity.levels[self.successors]
        _, order = np.unique(keys, return_inverse=True)
        scores = self.popularity.num_levels + order
        self.dtype = torch.float32 if scores.max(initial=0) < EXACT_IN_FLOAT else torch.float64
        self.scores = torch.from_numpy(scores).to(self.dtype)

    def __call__(self, batch: EvalBatch) -> Tensor:
        scores = self.popularity(batch).to(self.dtype)  # [B, V]
        lasts = batch.inputs[:, -2].numpy() if batch.inputs.shape[1] > 1 else np.zeros(len(scores), dtype=np.int64)
        rows, places = flatten(np.arange(len(self.successors)), Spans(self.offsets[lasts], self.offsets[lasts + 1]))
        scores[rows, self.successors[places]] = self.scores[places]
        return scores
