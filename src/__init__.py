"""BERT4Rec for sequential recommendation (Sun et al., 2019, arXiv 1904.06690) on PyTorch Lightning and Hydra."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .prediction.recommender import Recommender

__all__ = ["Recommender"]


def __getattr__(name: str) -> object:
    """`from src import Recommender` without torch for those who import `src` for something else."""
    if name == "Recommender":
        from .prediction.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
