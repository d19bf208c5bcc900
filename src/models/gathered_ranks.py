"""Ranks of targets as a torchmetrics metric."""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Ranks(Metric):
    """The rank of every user's target, gathered from all processes; every metric follows from it."""

    full_state_update = False
    ranks: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ranks", default=[], dist_reduce_fx="cat")

    def update(self, ranks: Tensor) -> None:
        """Add [B] int64 ranks."""
        self.ranks.append(ranks)

    def compute(self) -> Tensor:
        """[users] int64 on the CPU, sorted, so that no sum over them depends on who ranked whom."""
        return dim_zero_cat(self.ranks).cpu().sort().values
