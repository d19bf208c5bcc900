"""Models: the transformer as plain modules, its losses and optimisers, and the LightningModule around it.

In: batches. Out: losses, scores, ranks. `network.py` alone is the reference of what is computed.
May import: kernels, and only `bert4rec.py` does, through their one door.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bert4rec import BERT4Rec

__all__ = ["BERT4Rec"]


def __getattr__(name: str) -> object:
    """`from src.models import BERT4Rec`, without Lightning for those who need the network alone."""
    if name == "BERT4Rec":
        from .bert4rec import BERT4Rec

        return BERT4Rec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
