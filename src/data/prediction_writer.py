"""The top-K table, written while prediction goes on and put under its final name when it is whole."""

import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter

from src.batch import PAD
from src.data.vocabulary import Vocabulary
from src.files import part_of


class PredictionWriter(BasePredictionWriter):
    """Writes a CSV with the columns user, item and, if asked, rank and score, K rows a user, best first.

    With several processes each writes a file of its own, and the first one puts them together in order of rank.

    Takes the predictions of `BERT4Rec.predict_step`: users [B] int64, items [B, K] int64, 0 where there are fewer, and
    scores [B, K].

    Args:
        path: final name of the table; an earlier one stays until the new one is whole.
        user_ids: [U] strings, by the `users` of a batch.
        has_history: [U] bool; the others get `fallback`.
        fallback: [K] int64, items for users without a history, best first; they have no score.
        with_scores: add `rank`, 1 for the best, and `score`, the logit.
    """

    def __init__(
        self,
        path: Path,
        vocabulary: Vocabulary,
        user_ids: pa.StringArray,
        has_history: np.ndarray,
        fallback: np.ndarray,
        with_scores: bool,
    ) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self.part = part_of(path)
        self.vocabulary = vocabulary
        self.user_ids = user_ids
        self.has_history = has_history
        self.fallback = fallback
        self.with_scores = with_scores
        self.rows = 0
        special = any(pc.any(pc.match_substring_regex(ids, '[",\r\n]')).as_py() for ids in (user_ids, vocabulary.ids))
        self.options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed" if special else "none")
        self.file: BinaryIO | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the file of this process, which has one even if it gets nothing to predict."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.part = self._part_of(trainer.global_rank)
        self.file = self.part.open("wb")
        if trainer.is_global_zero:
            self.file.write(b"user,item,rank,score\n" if self.with_scores else b"user,item\n")

    def _part_of(self, rank: int) -> Path:
        part = part_of(self.path)
        return part.with_name(f"{part.name}{rank}") if rank else part

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self._write(*(tensor.cpu().numpy() for tensor in prediction))

    def _write(self, users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
        assert self.file is not None
        is_new = ~self.has_history[users]
        items[is_new] = PAD
        items[is_new, : len(self.fallback)] = self.fallback
        rows, places = np.nonzero(items != PAD)
        columns = {
            "user": self.user_ids.take(pa.array(users[rows])),
            "item": self.vocabulary.decode(items[rows, places]),
        }
        if self.with_scores:
            columns["rank"] = pa.array(places + 1)
            columns["score"] = pa.array(scores[rows, places], mask=is_new[rows])
        pyarrow.csv.write_csv(pa.table(columns), self.file, self.options)
        self.rows += len(rows)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the file under its final name."""
        assert self.file is not None
        self.file.close()
        total = trainer.strategy.reduce(torch.tensor(self.rows, device=trainer.strategy.root_device), reduce_op="sum")
        self.rows = int(total)
        trainer.strategy.barrier("predictions are written")
        if trainer.is_global_zero:
            with self.part.open("ab") as whole:
                for rank in range(1, trainer.world_size):
                    with self._part_of(rank).open("rb") as part:
                        shutil.copyfileobj(part, whole)
                    self._part_of(rank).unlink()
            os.replace(self.part, self.path)
        trainer.strategy.barrier("predictions are whole")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.file is not None:
            self.file.close()
            self.part.unlink(missing_ok=True)
