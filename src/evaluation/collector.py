"""What evaluation keeps of each user: the ranks of the target under every protocol, and the list of recommendations.

E evaluated users, B users of a batch, V tokens, P sampled protocols, n negatives, K length of the list.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .. import ranking
from ..batch import EvalBatch
from ..data.batching import EvaluationSet
from ..data.sequences import Indices
from ..runs import memory
from .protocols import FULL


class Outcomes(NamedTuple):
    """What a model or baseline did for every evaluated user, in the order of the evaluation set."""

    ranks: dict[str, Indices]  # protocol -> [E] int64, 0-based rank of the target
    lists: Indices  # [E, K] int64, the best of all items, best first; 0 where there are fewer candidates


class Observer(Metric):
    """Gathers `Outcomes` batch by batch, from all processes; `src.models.BERT4Rec` shows it every batch it ranks.

    Args:
        negatives: sampled protocol -> [E, n] int64 tokens, from `src.evaluation.protocols.draw`.
        list_length: K, not above the number of tokens.
        joins_processes: False if each process sees all users, True if each has a share of them.
    """

    full_state_update = False
    users: list[Tensor]
    ranks: list[Tensor]
    lists: list[Tensor]

    def __init__(self, negatives: Mapping[str, Indices], list_length: int, joins_processes: bool = True) -> None:
        super().__init__(sync_on_compute=joins_processes)
        self.negatives = {protocol: torch.from_numpy(tokens) for protocol, tokens in negatives.items()}
        self.list_length = list_length
        for name in ("users", "ranks", "lists"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        # A process may get no user at all, and what it has to join to the others must be of their shape and kind.
        self.users.append(torch.zeros(0, dtype=torch.long))
        self.ranks.append(torch.zeros(0, 1 + len(negatives), dtype=torch.long))
        self.lists.append(torch.zeros(0, list_length, dtype=torch.long))

    def update(self, users: Tensor, ranks: Tensor, scores: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            users: [B] int64, rows of the evaluation set.
            ranks: [B] int64, of the targets among all candidates.
            scores: [B, V] from `ranking.candidate_scores`.
            targets: [B] int64.
        """
        among_sampled = [
            ranking.sampled_ranks(scores, targets, tokens[users.cpu()].to(scores.device))
            for tokens in self.negatives.values()
        ]
        items, _ = ranking.top_k(scores, self.list_length)
        self.users.append(users)
        self.ranks.append(torch.stack([ranks, *among_sampled], dim=1))  # [B, 1 + P]
        self.lists.append(items)

    def compute(self) -> Outcomes:
        users, ranks, lists = (dim_zero_cat(state).cpu() for state in (self.users, self.ranks, self.lists))
        order = users.argsort()
        protocols = (FULL, *self.negatives)
        columns = dict(zip(protocols, ranks[order].T.contiguous().numpy(), strict=True))
        return Outcomes(columns, lists[order].numpy())


class Scorer(Protocol):
    """Anything that scores all tokens for the users of a batch: [B, V], padding and [MASK] included."""

    def __call__(self, batch: EvalBatch) -> Tensor: ...


@torch.inference_mode()
def observe(score: Scorer, evaluation_set: EvaluationSet, observer: Observer, batch_size: int = 256) -> Outcomes:
    """Rank and list for every user of the set by the rules that hold for a model.

    Args:
        observer: one that joins no processes.
    """
    batch_size = min(batch_size, ranking.rows_at_a_time(evaluation_set.num_items))
    for start in range(0, len(evaluation_set.targets), batch_size):
        users = np.arange(start, min(start + batch_size, len(evaluation_set.targets)))
        batch = evaluation_set[users]
        scores = ranking.candidate_scores(score(batch), batch.seen_rows, batch.seen_items)
        observer.update(batch.users, ranking.target_ranks(scores, batch.targets), scores, batch.targets)
        if start // batch_size % memory.BATCHES_BETWEEN == 0:
            memory.give_back()
    return observer.compute()
