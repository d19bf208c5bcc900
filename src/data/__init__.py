"""From a table of interactions to batches."""

from src.data.bert4rec_data import BERT4RecDataModule

__all__ = ["BERT4RecDataModule"]
