"""From a table of interactions to batches."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bert4rec_data import BERT4RecDataModule

__all__ = ["BERT4RecDataModule"]


def __getattr__(name: str) -> object:
    """`from src.data import BERT4RecDataModule`, without Lightning for those who need the arrays alone."""
    if name == "BERT4RecDataModule":
        from .bert4rec_data import BERT4RecDataModule

        return BERT4RecDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
