"""Where a run's curves go: TensorBoard and CSV files, MLflow and Weights & Biases where they are installed."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from ..batch import RowBatch, TrainBatch
from ..data.titles import Titles
from ..data.vocabulary import Vocabulary
from ..errors import UserError
from ..models.bert4rec import BERT4Rec
from ..runs.folder import RunFolder
from ..runs.proposals import how_to_install
from . import own_parts

PROJECT = "bert4rec"
# TensorBoard's projector shows no more points at a time, and writing them takes a second.
EMBEDDED_ITEMS = 10_000


def loggers(entries: Sequence[str | dict[str, Any]], folder: RunFolder, steps: int = 0) -> list[Logger]:
    """Lightning's loggers, writing below the folder's `logs`; the user's own write where they are told to.

    MLflow goes where MLFLOW_TRACKING_URI says, or to `mlruns` in the working directory; Weights & Biases obeys its own
    environment variables, such as WANDB_MODE=offline.

    Args:
        entries: any of tensorboard, csv, mlflow and wandb, and what names a logger by `_target_`; none logs nothing.
        steps: where a resumed run begins; points that a killed session drew after it are drawn again.

    Raises:
        UserError: if a logger's package is not installed, or the user's own cannot be made.
    """
    distinct = [entry for place, entry in enumerate(entries) if entry not in entries[:place]]
    return [
        own_parts.make("training.logger", entry, Logger) if isinstance(entry, dict) else _logger(entry, folder, steps)
        for entry in distinct
    ]


def _logger(name: str, folder: RunFolder, steps: int) -> Logger:
    try:
        if name == "tensorboard":
            where: dict[str, Any] = {"name": folder.logs.name, "version": "", "purge_step": steps or None}
            return TensorBoardLogger(folder.root, default_hp_metric=False, **where)
        if name == "csv":
            return CSVLogger(folder.logs, name="csv")  # a version of its own for each resumption
        if name == "mlflow":
            if "MLFLOW_TRACKING_URI" not in os.environ:  # files in `mlruns`, which recent versions ask about
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            return MLFlowLogger(experiment_name=PROJECT, run_name=folder.root.name)
        return WandbLogger(project=PROJECT, name=folder.root.name, save_dir=folder.logs)
    except ModuleNotFoundError as error:
        raise UserError(
            f"training.logger={name} needs a package that is not installed: {how_to_install(name)}, or leave it out"
        ) from error


def log_settings(trainer: pl.Trainer, settings: Mapping[str, Any]) -> None:
    """Tell the loggers how the run was configured; TensorBoard gets it with the final figures.

    Raises:
        UserError: if a logger cannot reach where it writes to.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            continue
        try:
            logger.log_hyperparams(dict(settings))
        except Exception as error:  # services fail in ways of their own, before anything is trained
            raise UserError(
                f"{type(logger).__name__} cannot start: {error}; fix that, or leave it out of training.logger"
            ) from error


def log_end(
    trainer: pl.Trainer,
    settings: Mapping[str, Any],
    figures: Mapping[str, float],
    model: BERT4Rec,
    vocabulary: Vocabulary,
    titles: Titles,
) -> None:
    """Give TensorBoard the settings beside the final figures, and the item embeddings for its projector.

    Args:
        settings: dotted key -> text.
        figures: name -> value.
        titles: what the items are called in the projector.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            final = {f"final/{name}": value for name, value in figures.items()}
            logger.log_hyperparams(dict(settings), metrics=final, step=trainer.global_step)
            tokens = vocabulary.most_popular()[:EMBEDDED_ITEMS]
            ids = vocabulary.decode(tokens).to_pylist()
            rows = [
                [_cell(item), _cell(title), int(count)]
                for item, title, count in zip(ids, titles.of(ids), vocabulary.counts[tokens - 1], strict=True)
            ]
            logger.experiment.add_embedding(
                model.network.item_embedding.weight.detach().cpu()[tokens],
                metadata=rows,
                metadata_header=["item", "title", "training interactions"],
                tag="items",
                global_step=trainer.global_step,
            )
        logger.finalize("success")


def _cell(text: str) -> str:
    return " ".join(text.split())


class Throughput(pl.Callback):
    """Logs `sequences_per_second` of each epoch's training, over all devices, validation not counted."""

    def __init__(self) -> None:
        self.sequences = 0
        self.since = 0.0
        self.seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sequences, self.seconds, self.since = 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: TrainBatch | list[TrainBatch | RowBatch],
        batch_idx: int,
    ) -> None:
        self.sequences += sum(step.num_rows for step in batch) if isinstance(batch, list) else batch.num_rows

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += time.perf_counter() - self.since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log at once, as the training loss is: the checkpoint of the epoch's end is still to come."""
        if not self.sequences:  # a session that was resumed for the last validation of an epoch
            return
        rate = self.sequences * trainer.world_size / (self.seconds + time.perf_counter() - self.since)
        for logger in trainer.loggers:
            logger.log_metrics({"sequences_per_second": rate}, step=trainer.global_step - 1)
