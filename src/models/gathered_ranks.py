"""Ranks of targets as a torchmetrics metric."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Ranks(Metric):
    """The rank of every target and whose it is, gathered from all processes; every metric follows from it."""

    full_state_update = False
    ranks: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ranks", default=[], dist_reduce_fx="cat")

    def update(self, ranks: Tensor, owners: Tensor) -> None:
        """Add ranks and users, [B] int64 each."""
        self.ranks.append(torch.stack([ranks, owners], dim=1))

    def compute(self) -> tuple[Tensor, Tensor | None]:
        """Ranks, and whose they are unless each is another's: [targets] int64 each, on the CPU.

        Sorted by rank, so that no sum over them depends on who ranked whom.
        """
        both = dim_zero_cat(self.ranks).cpu()
        ranks, owners = both[both[:, 0].argsort()].unbind(dim=1)
        return ranks, owners if len(torch.unique(owners)) < len(owners) else None
