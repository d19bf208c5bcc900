"""A model and the baselines, evaluated on the same users by the same rules."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pytorch_lightning.utilities import rank_zero_only

from .. import metrics
from ..data.batching import EvaluationSet
from ..data.sequences import Indices, Spans
from . import protocols
from .baselines import LastItemSuccessors, Popularity
from .beyond_accuracy import beyond_accuracy
from .bootstrap import interval, resampled_means
from .collector import Observer, Outcomes, Scorer, observe
from .slices import groups

Figures = dict[str, dict[str, float]]  # row of a table -> metric -> mean over users


@dataclass
class Contest:
    """Collects the outcomes of every contestant on one evaluation set."""

    evaluation_set: EvaluationSet  # E targets
    user_ids: pa.StringArray  # [E], in its order
    counts: Indices  # [num_items] int64, training interactions of each item
    protocol_names: list[str]  # "full" and any of the sampled ones
    seed: int  # what the negatives follow from
    topk: list[int]  # the K of the metrics
    negatives: dict[str, Indices] = field(init=False)  # sampled protocol -> [E, n] tokens, see `protocols.draw`
    outcomes: dict[str, Outcomes] = field(init=False, default_factory=dict)  # contestant -> its own, in order of adding

    def __post_init__(self) -> None:
        self.negatives = {
            name: protocols.draw(name, self.evaluation_set, self.counts, self.user_ids, self.seed)
            for name in dict.fromkeys(self.protocol_names)
            if name != protocols.FULL
        }
        for protocol, tokens in self.negatives.items():
            users = int((tokens[:, -1] == 0).sum())
            if users:
                rank_zero_only(print)(
                    f"warning: {users:,} of {len(tokens):,} users have fewer than {tokens.shape[1]} items left to draw"
                    f" for {protocol}, and get those"
                )

    def observer(self, joins_processes: bool = True) -> Observer:
        """What a contestant has to be watched by; see `Observer`."""
        return Observer(self.negatives, min(max(self.topk), len(self.counts) + 2), joins_processes)

    def add_baselines(self, training_spans: Spans) -> None:
        """Rank by popularity, and by the successors of the last item in these spans of the set's tokens."""
        last_item_only = replace(self.evaluation_set, max_len=2, owners=None)
        scorers: dict[str, Scorer] = {
            "popularity": Popularity(self.counts),
            "item-item": LastItemSuccessors(self.evaluation_set.tokens, training_spans, self.counts),
        }
        for name, scorer in scorers.items():
            self.outcomes[name] = observe(scorer, last_item_only, self.observer(joins_processes=False))

    def figures(self, protocol: str, prefix: str) -> Figures:
        """Metrics of every contestant, `{prefix}hit@K` and so on, under one protocol.

        A sampled protocol is part of the names, such as `{prefix}uniform-100_hit@K`.
        """
        full_prefix = prefix if protocol == protocols.FULL else f"{prefix}{protocol}_"
        return {
            name: metrics.means(torch.from_numpy(outcome.ranks[protocol]), self.topk, full_prefix, self._owners())
            for name, outcome in self.outcomes.items()
        }

    def details(self, resamples: int) -> dict[str, Any]:
        """What the means leave open, ready for JSON.

        Args:
            resamples: of the bootstrap; 0 leaves the intervals out.

        Returns:
            users: how many were evaluated.
            intervals: protocol -> contestant -> metric -> [low, high], 95% bootstrap intervals over users.
            lead: protocol -> other contestant -> metric -> [low, high] of the last contestant's figure minus its.
            beyond_accuracy: contestant -> see `beyond_accuracy`.
            slices: "history_length" and "target_popularity" -> groups with their label, the number of users and the
                figures of each contestant, all items ranked.
        """
        sets, firsts = self.evaluation_set, self.evaluation_set.first_rows()
        of_users = replace(sets, histories=sets.histories[firsts])
        amounts = {"history_length": sets.histories.lengths, "target_popularity": self.counts[sets.targets - 1]}
        found: dict[str, Any] = {"users": len(firsts)}
        if resamples:
            found["intervals"], found["lead"] = self._intervals(resamples)
        found["beyond_accuracy"] = {
            name: beyond_accuracy(outcome.lists[firsts], self.counts, of_users)
            for name, outcome in self.outcomes.items()
        }
        found["slices"] = {by: self._slices(amount) for by, amount in amounts.items()}
        return found

    def _owners(self, rows: Indices | slice = slice(None)) -> torch.Tensor | None:
        owners = self.evaluation_set.owners
        return None if owners is None else torch.from_numpy(owners[rows])

    def _intervals(self, resamples: int) -> tuple[dict[str, Any], dict[str, Any]]:
        columns = {
            (protocol, name, metric): values
            for protocol in (protocols.FULL, *self.negatives)
            for name, outcome in self.outcomes.items()
            for metric, values in metrics.by_user(
                torch.from_numpy(outcome.ranks[protocol]), self.topk, self._owners()
            ).items()
        }
        samples = resampled_means(np.stack(list(columns.values()), axis=1), resamples, self.seed)
        means = dict(zip(columns, samples.T, strict=True))
        last = list(self.outcomes)[-1]
        intervals: dict[str, Any] = {}
        lead: dict[str, Any] = {}
        for (protocol, name, metric), of_name in means.items():
            intervals.setdefault(protocol, {}).setdefault(name, {})[metric] = interval(of_name)
            if name != last:
                ends = interval(means[protocol, last, metric] - of_name)
                lead.setdefault(protocol, {}).setdefault(name, {})[metric] = ends
        return intervals, lead

    def _slices(self, amounts: Indices) -> list[dict[str, Any]]:
        sets = self.evaluation_set
        return [
            {
                "label": label,
                "users": len(rows) if sets.owners is None else len(np.unique(sets.owners[rows])),
                "figures": {
                    name: metrics.means(
                        torch.from_numpy(outcome.ranks[protocols.FULL][rows]), self.topk, "", self._owners(rows)
                    )
                    for name, outcome in self.outcomes.items()
                },
            }
            for label, rows in groups(amounts)
        ]


def tables_of(contests: dict[str, Contest], resamples: int) -> dict[str, Any]:
    """Everything that contests found, ready for JSON.

    Args:
        contests: by stage, "val" or "test".
        resamples: of the bootstrap.

    Returns:
        figures: stage -> contestant -> metric -> mean, all items ranked.
        sampled_figures: stage -> sampled protocol -> contestant -> metric -> mean.
        details: stage -> see `Contest.details`.
    """
    return {
        "figures": {stage: contest.figures(protocols.FULL, f"{stage}_") for stage, contest in contests.items()},
        "sampled_figures": {
            stage: {name: contest.figures(name, f"{stage}_") for name in contest.negatives}
            for stage, contest in contests.items()
        },
        "details": {stage: contest.details(resamples) for stage, contest in contests.items()},
    }
