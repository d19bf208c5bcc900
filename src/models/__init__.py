"""The network and its training."""

from src.models.bert4rec import BERT4Rec

__all__ = ["BERT4Rec"]
