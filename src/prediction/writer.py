"""The top-K table, written during prediction and put under its final name when it is whole."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader

from ..atomic_files import part_of
from ..batch import PAD
from ..command_line import cli
from ..data.batching import HistorySet, OrderedBatches
from ..data.sequences import Sequences
from ..data.vocabulary import Vocabulary
from ..errors import UserError
from ..models import BERT4Rec
from ..runs import devices
from ..runs.freed_memory import FreedMemory
from ..runs.progress import Progress
from ..settings import Config
from .inputs import say

ROWS_IN_A_GROUP = 2**17  # of Parquet: what is kept in memory before it is written
COLUMNS = ("user", "item", "rank", "score")
BLANK = " "  # between the items of a wide row


class TableFile:
    """A table that grows on the disk: CSV, or Parquet.

    Args:
        path: where it is written.
        schema: of its columns.
        has_header: whether a CSV begins with the names of the columns.
        has_special: whether a text in it has commas, quotes or line breaks.
    """

    def __init__(self, path: Path, schema: pa.Schema, is_parquet: bool, has_header: bool, has_special: bool) -> None:
        self.waiting = schema.empty_table()
        self.file = pa.OSFile(str(path), "wb")
        self.parquet = pyarrow.parquet.ParquetWriter(self.file, schema) if is_parquet else None
        self.options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed" if has_special else "none")
        if has_header and not is_parquet:
            self.file.write(",".join(schema.names).encode() + b"\n")

    def write(self, table: pa.Table) -> None:
        if self.parquet is None:
            pyarrow.csv.write_csv(table, self.file, self.options)
            return
        self.waiting = pa.concat_tables([self.waiting, table])
        while len(self.waiting) >= ROWS_IN_A_GROUP:  # whatever came at a time, so that the bytes are the same
            self.parquet.write_table(self.waiting.slice(0, ROWS_IN_A_GROUP))
            self.waiting = self.waiting.slice(ROWS_IN_A_GROUP)

    def append(self, path: Path) -> None:
        """Write what another process has written."""
        if self.parquet is None:
            with path.open("rb") as file:
                shutil.copyfileobj(file, self.file)
            return
        with pyarrow.parquet.ParquetFile(str(path)) as file:
            for group in range(file.num_row_groups):
                self.write(file.read_row_group(group))

    def close(self) -> None:
        """Write what is left."""
        if self.parquet is not None:
            if len(self.waiting):
                self.parquet.write_table(self.waiting)
            self.parquet.close()
        self.file.close()


class PredictionWriter(BasePredictionWriter):
    """Writes the columns user, item and, if asked, rank and score, K rows a user, best first, as CSV or Parquet.

    The wide form has one row a user, also for one without any item left, with the items between blanks.

    With several processes each writes a file of its own, and the first one puts them together in order of rank.

    Takes the predictions of `BERT4Rec.predict_step`: users [B] int64, items [B, K] int64, 0 where there are fewer, and
    scores [B, K]. What it holds in memory does not grow with the number of users.

    Args:
        path: final name of the table, Parquet if it ends in `.parquet`; an earlier one stays until the new one is
            whole.
        user_ids: [U] strings, by the `users` of a batch.
        has_history: [U] bool; the others get `fallback`.
        fallback: [K] int64, items for users without a history, best first; they have no score.
        with_scores: add `rank`, 1 for the best, and `score`, the logit.
        is_wide: one row a user.
        columns: names of user and item, and with scores of rank and score.

    Raises:
        UserError: if the disk is full or the folder cannot be written to; what was there before is still there.
    """

    def __init__(
        self,
        path: Path,
        vocabulary: Vocabulary,
        user_ids: pa.StringArray,
        has_history: np.ndarray,
        fallback: np.ndarray,
        with_scores: bool,
        *,
        is_wide: bool = False,
        columns: Sequence[str] = COLUMNS,
    ) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self.part = part_of(path)
        self.vocabulary = vocabulary
        self.user_ids = user_ids
        self.has_history = has_history
        self.fallback = fallback
        self.with_scores = with_scores
        self.is_wide = is_wide
        self.rows = 0
        kinds = [pa.string(), pa.string(), *([pa.int32(), pa.float32()] if with_scores else [])]
        self.schema = pa.schema(list(zip(columns, kinds, strict=False)))  # names of more columns than there are
        self.file: TableFile | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the file of this process, which has one even if it gets nothing to predict."""
        special = (pc.match_substring_regex(ids, '[",\r\n]') for ids in (self.user_ids, self.vocabulary.ids))
        has_special = any(pc.any(column).as_py() for column in special)
        self.part = self._part_of(trainer.global_rank)
        with self._clear_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_parquet = self.path.suffix == ".parquet"
            self.file = TableFile(self.part, self.schema, is_parquet, trainer.is_global_zero, has_special)

    def _part_of(self, rank: int) -> Path:
        part = part_of(self.path)
        return part.with_name(f"{part.name}{rank}") if rank else part

    def write_on_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, prediction: Any, *args: Any
    ) -> None:
        users, items, scores = (tensor.cpu().numpy() for tensor in prediction)
        assert self.file is not None
        is_new = ~self.has_history[users]
        items[is_new] = PAD
        items[is_new, : len(self.fallback)] = self.fallback
        rows, places = np.nonzero(items != PAD)
        ids = self.vocabulary.decode(items[rows, places])
        if self.is_wide:
            ends = pa.array([0, *np.cumsum((items != PAD).sum(axis=1))], pa.int32())
            columns = [self.user_ids.take(pa.array(users)), pc.binary_join(pa.ListArray.from_arrays(ends, ids), BLANK)]
        else:
            columns = [self.user_ids.take(pa.array(users[rows])), ids]
        if self.with_scores:
            columns.append(pa.array(places + 1, pa.int32()))
            columns.append(pa.array(scores[rows, places], pa.float32(), mask=is_new[rows]))
        table = pa.table(columns, schema=self.schema)
        with self._clear_errors():
            self.file.write(table)
        self.rows += len(table)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the file under its final name."""
        assert self.file is not None
        with self._clear_errors():
            if not trainer.is_global_zero:
                self.file.close()
            rows = torch.tensor(self.rows, device=trainer.strategy.root_device)
            self.rows = int(trainer.strategy.reduce(rows, reduce_op="sum"))
            trainer.strategy.barrier("predictions are written")
            if trainer.is_global_zero:
                for rank in range(1, trainer.world_size):
                    self.file.append(self._part_of(rank))
                    self._part_of(rank).unlink()
                self.file.close()
                os.replace(self.part, self.path)
            trainer.strategy.barrier("predictions are whole")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        if self.file is not None:
            self.file.file.close()  # without what is left to be written
            self.file = None
        if self.part.parent.is_dir():
            self.part.unlink(missing_ok=True)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Clean up, and say in one line what is wrong, if the disk does not take what is written here."""
        try:
            yield
        except OSError as error:
            self._clean_up()
            reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
            raise UserError(
                f"{self.path} cannot be written ({reason}): free some room, or write elsewhere with"
                " inference.output_path=FILE"
            ) from error


def _require_no_blanks(vocabulary: Vocabulary, is_barred: np.ndarray | None) -> None:
    """See that the items of a wide row can be told apart.

    Raises:
        UserError: if a blank is in an id that may be recommended.
    """
    ids = vocabulary.ids if is_barred is None else vocabulary.ids.filter(pa.array(~is_barred[1:-1]))
    torn = ids.filter(pc.match_substring(ids, BLANK))
    if len(torn):
        raise UserError(
            f"inference.format=wide puts blanks between items, and {torn[0].as_py()!r} has one itself: use"
            " inference.format=long"
        )


def write_predictions(
    config: Config,
    *,
    model: BERT4Rec,
    vocabulary: Vocabulary,
    user_ids: pa.StringArray,
    sequences: Sequences,
    is_barred: np.ndarray | None,
    output_path: Path,
) -> int:
    """Predict batch by batch and write as it goes; how many rows were written."""
    settings = config.inference
    if settings.format == "wide":
        _require_no_blanks(vocabulary, is_barred)
    cli.quiet()
    histories = sequences.histories
    popular = vocabulary.most_popular()
    model.predict_topk = settings.topk
    if is_barred is not None:
        model.predict_barred = torch.from_numpy(is_barred)
        popular = popular[~is_barred[popular]]
    writer = PredictionWriter(
        output_path,
        vocabulary,
        user_ids,
        histories.lengths > 0,
        popular[: settings.topk],
        settings.with_scores,
        is_wide=settings.format == "wide",
        columns=settings.columns,
    )
    devices.tune_cuda()
    trainer = pl.Trainer(
        accelerator=config.training.accelerator,
        devices=config.training.devices,
        num_nodes=config.training.num_nodes,
        strategy=config.training.strategy,
        use_distributed_sampler=False,  # the one below shares the users out
        precision=config.training.precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=[writer, FreedMemory(), Progress()],
        enable_model_summary=False,
    )
    say("\n".join(devices.lines(trainer, config.training.accelerator)))
    history_set = HistorySet(sequences.tokens, histories, model.num_items, model.max_len, settings.exclude_seen)
    in_order = OrderedBatches(
        np.arange(len(histories)), settings.batch_size, trainer.global_rank, trainer.world_size, in_turn=False
    )
    loader = DataLoader(history_set, sampler=in_order, batch_size=None)
    trainer.predict(model, loader, return_predictions=False)
    return writer.rows
