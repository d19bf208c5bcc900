"""Data: tables of any form to sequences of tokens, and sequences to batches.

In: files and `TableOptions`. Out: `Interactions`, `Sequences`, a `Vocabulary`, batches, the Lightning data module.
May import: settings and runs, both only in `from_settings.py`.
"""

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
