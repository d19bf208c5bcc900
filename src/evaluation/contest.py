"""A model and the baselines, evaluated on the same users by the same rules."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from src import ranking
from src.baselines import LastItemSuccessors, Popularity
from src.data.batching import TOKENS_PER_PART, EvaluationSet
from src.data.sequences import Indices, Spans
from src.evaluation import protocols
from src.evaluation.observer import Observer, Outcomes, observe

Figures = dict[str, dict[str, float]]  # row of a table -> metric -> mean over users


class Contest:
    """Collects the outcomes of every contestant on one evaluation set.

    Args:
        evaluation_set: E users with their targets.
        user_ids: [E] strings, in its order.
        counts: [num_items] int64, training interactions of each item.
        protocol_names: "full" and any of the sampled ones.
        seed: what the negatives follow from.
        topk: the K of the metrics.

    Attributes:
        outcomes: name of a contestant -> its outcomes, in the order in which they were added.
    """

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        user_ids: pa.StringArray,
        counts: Indices,
        protocol_names: list[str],
        seed: int,
        topk: list[int],
    ) -> None:
        self.evaluation_set = evaluation_set
        self.counts = counts
        self.topk = topk
        self.negatives = {
            name: protocols.draw(name, evaluation_set, counts, user_ids, seed)
            for name in dict.fromkeys(protocol_names)
            if name != protocols.FULL
        }
        self.outcomes: dict[str, Outcomes] = {}

    def observer(self) -> Observer:
        """What a contestant has to be watched by."""
        return Observer(self.negatives, max(self.topk))

    def add_baselines(self, training_spans: Spans) -> None:
        """Rank by popularity, and by the successors of the last item in these spans of the set's tokens."""
        tokens = self.evaluation_set.tokens
        last_item_only = replace(self.evaluation_set, max_len=2, tokens_per_part=TOKENS_PER_PART)
        for name, scorer in (
            ("popularity", Popularity(self.counts)),
            ("item-item", LastItemSuccessors(tokens, training_spans, self.counts)),
        ):
            self.outcomes[name] = observe(scorer, last_item_only, self.observer())

    def figures(self, protocol: str, prefix: str) -> Figures:
        """Metrics of every contestant, `{prefix}hit@K` and so on, under one protocol.

        A sampled protocol is part of the names, such as `{prefix}uniform-100_hit@K`.
        """
        full_prefix = prefix if protocol == protocols.FULL else f"{prefix}{protocol}_"
        return {
            name: ranking.metrics(torch.from_numpy(outcome.ranks[protocol]), self.topk, full_prefix)
            for name, outcome in self.outcomes.items()
        }

    def short_of_negatives(self) -> dict[str, int]:
        """Sampled protocol -> how many users have fewer candidates than it wants, where there are such users."""
        counts = {name: int(np.any(tokens == 0, axis=1).sum()) for name, tokens in self.negatives.items()}
        return {name: count for name, count in counts.items() if count}
