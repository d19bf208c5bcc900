"""The parts of a run from its settings: data module, model and trainer."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from ..data import BERT4RecDataModule
from ..data.splits import SplitOptions
from ..data.table import Frame, TableOptions
from ..data.titles import Titles, read_titles
from ..errors import UserError
from ..evaluation import closing_tables
from ..kernels import compiler
from ..models import BERT4Rec
from ..runs import devices, memory
from ..runs.folder import RunFolder
from ..runs.freed_memory import FreedMemory
from ..runs.progress import Progress
from ..settings import Config
from ..settings.keys import value_text
from ..settings.schema import TrainingConfig
from ..sweep import sweep
from ..sweep.pruning import Pruning
from . import logs, own_parts, resume, settings_by_data
from .callbacks import LastCheckpoint, Tf32
from .checkpoint_io import SafeCheckpointIO
from .whole_steps import CudaGraphs, WholeSteps

STEPS_TOGETHER = 16  # in one call where a step is shorter than what lies between two of Lightning's


def ready_data(
    config: Config, frame: Frame | None = None, given: Iterable[str] | None = None
) -> tuple[Config, BERT4RecDataModule, Titles]:
    """Read the table, and print what is in it and what is to be known about it.

    Args:
        frame: the table, if it is in memory.
        given: as for `choose_by_data`.

    Returns:
        The settings, with what `experiment=auto` and `experiment=best` leave to the data; the data; the titles of its
        items.
    """
    say = rank_zero_only(print)
    titles = read_titles(config.data.items_file)
    data = build_data(config, frame)
    data.prepare_data()
    data.setup()  # the model needs the size of the catalogue
    for note in data.notes:
        say(note)
    if no_titles := titles.note(data.vocabulary.ids):
        say(no_titles)
    least = config.data.min_item_interactions
    say(closing_tables.describe_data(data.summary, config.data.min_interactions, config.data.holdout, least))
    if config.auto:
        config = choose_by_data(config, data, given)
    if config.data.holdout and config.evaluation.filter_seen and data.summary["repeated_targets"]:
        targets = data.summary.get("evaluated_targets", data.summary["evaluated_users"])
        say(
            f"warning: {data.summary['repeated_targets']:,} of {targets:,} test items are"
            " repeats of seen ones and count as misses; evaluation.filter_seen=false ranks them too"
        )
    return config, data, titles


def build_data(config: Config, frame: Frame | None = None) -> BERT4RecDataModule:

    return BERT4RecDataModule(
        data_dir=config.data.data_dir,
        data_file=config.data.data_file,
        table_options=TableOptions(**config.data.table_options),
        batch_size=config.data.batch_size,
        min_interactions=config.data.min_interactions,
        min_item_interactions=config.data.min_item_interactions,
        num_workers=config.data.num_workers,
        max_len=config.model.max_len,
        mask_prob=config.model.mask_prob,
        mask_token_share=config.model.mask_token_share,
        random_token_share=config.model.random_token_share,
        mask_last_share=config.model.mask_last_share,
        holdout=config.data.holdout,
        split=SplitOptions(**config.data.split_options),
        window_stride=config.data.window_stride,
        filter_seen=config.evaluation.filter_seen,
        eval_batch_size=config.evaluation.batch_size,
        num_negatives=0 if config.training.loss == "softmax" else config.training.num_negatives,
        negative_power=config.training.negative_power,
        generate_sample=config.data.generate_sample,
        download=config.data.download,
        download_url=config.data.download_url,
        on_device=compiles(config) or config.training.cuda_graph is True or config.data.on_device,
        cache_dir=RunFolder.at(config.output_dir).cache if config.data.cache else None,
        seed=config.seed,
        frame=frame,
    )


def compiles(config: Config) -> bool:
    """Whether `torch.compile` makes the steps of training."""
    if config.training.compile != "auto":
        return bool(config.training.compile)
    return config.data.on_device is not False and devices.trains_on_cuda(config.training.accelerator)


def choose_by_data(config: Config, data: BERT4RecDataModule, given: Iterable[str] | None = None) -> Config:
    """Choose what `experiment=auto` and `experiment=best` leave open, say why, and let the data module know.

    Args:
        given: keys that the user has set; None takes those of the command line.
    """
    if given is None:
        given = settings_by_data.given_keys(HydraConfig.get().overrides.task)
    users = data.summary["train_users"]
    if config.auto == "recipe":
        interactions = data.summary["train_rows"] / users
        config, reasons = settings_by_data.choose_recipe(config, interactions, data.num_items, set(given))
    else:
        device = torch.device("cuda" if devices.trains_on_cuda(config.training.accelerator) else "cpu")
        config, reasons = settings_by_data.choose_size(config, users, data.num_items, given, memory.of(device))
    rank_zero_only(print)(reasons)
    chosen = build_data(config, data.frame)
    for each in fields(chosen):
        setattr(data, each.name, getattr(chosen, each.name))
    return config


def ready_model(config: Config, data: BERT4RecDataModule) -> BERT4Rec:
    """The model for this data, if there is memory for it, with a line about its size and about missing kernels."""
    say = rank_zero_only(print)
    is_on_cpu = not devices.trains_on_cuda(config.training.accelerator)
    if is_on_cpu and config.native and compiler.library(torch.float32) is None:
        say(f"note: no compiled kernels, so training takes 1.2 to 3 times as long: {compiler.missing()}")
    require_memory(config, data.num_items)
    model = build_model(config, data.num_items)
    model.compiles = compiles(config)
    say(f"model       {sum(p.numel() for p in model.parameters()):,} parameters")
    return model


def build_model(config: Config, num_items: int) -> BERT4Rec:

    return BERT4Rec(
        num_items=num_items,
        hidden_units=config.model.hidden_units,
        num_heads=config.model.num_heads,
        num_layers=config.model.num_layers,
        max_len=config.model.max_len,
        dropout_rate=config.model.dropout_rate,
        share_embeddings=config.model.share_embeddings,
        attention_dropout_rate=config.model.attention_dropout_rate,
        ffn_dropout_rate=config.model.ffn_dropout_rate,
        embedding_norm_first=config.model.embedding_norm_first,
        output_transform=config.model.output_transform,
        output_bias=config.model.output_bias,
        linear_init=config.model.linear_init,
        loss=config.training.loss,
        gbce_calibration=config.training.gbce_calibration,
        lr=config.training.lr,
        optimizer=config.training.optimizer,
        weight_decay=config.training.weight_decay,
        decay_norm_and_bias=config.training.decay_norm_and_bias,
        scheduler=config.training.scheduler,
        warmup_steps=config.training.warmup_steps,
        topk=list(config.evaluation.topk),
    )


def require_memory(config: Config, num_items: int) -> None:
    """Refuse a model that the memory cannot hold before it takes any."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(config, num_items).parameters())
    here = memory.HELD if devices.trains_on_cuda(config.training.accelerator) else memory.TRAINED
    memory.require(parameters, here, memory.of(torch.device("cpu")))


def build_trainer(config: Config, folder: RunFolder, steps: int = 0) -> pl.Trainer:
    """The trainer of a run that has `steps` steps behind it."""
    training = config.training
    save: dict[str, Any] = {
        "dirpath": folder.checkpoints,
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
    }
    devices.tune_cuda()
    callbacks: list[pl.Callback] = [FreedMemory(), Tf32()] if training.tf32 else [FreedMemory()]
    if config.data.holdout:
        monitor: dict[str, Any] = {"monitor": training.monitor_metric, "mode": "max"}
        callbacks.append(ModelCheckpoint(filename=folder.best.stem, **monitor, **save))
        if training.early_stopping:
            callbacks.append(EarlyStopping(patience=training.early_stopping_patience, **monitor))
    log_to = logs.loggers(training.logger, folder, steps)
    if log_to:
        is_constant = training.scheduler == "none" and not training.warmup_steps
        callbacks += [LearningRateMonitor("epoch" if is_constant else "step"), logs.Throughput()]
    callbacks += [own_parts.make("training.callbacks", entry, pl.Callback) for entry in training.callbacks]
    callbacks.append(Progress(training.monitor_metric))
    if (trial := sweep.current_trial()) is not None:
        callbacks.append(Pruning(trial, training.monitor_metric, folder.root))
    last = LastCheckpoint(folder.last, training.checkpoint_every_n_steps, config.seed, resume.recorded(config))
    callbacks.append(last)  # after the best one, of which it keeps the state
    records, together = _records(config), training.steps_per_execution
    if together == "auto":
        together = STEPS_TOGETHER if records else 1
    if records or together > 1:
        recorder = CudaGraphs() if records else None
        callbacks.append(WholeSteps(together, recorder, last.seed_step, training.checkpoint_every_n_steps))
    try:
        trainer = _trainer(training, callbacks, log_to, log_every_n_steps=10 if together == 1 else 1)
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        own = f", callbacks={value_text(training.callbacks)}" if training.callbacks else ""
        raise UserError(
            f"training.accelerator={training.accelerator}, devices={training.devices}, strategy={training.strategy},"
            f" precision={training.precision}{own} do not work here: {error}"
        ) from error
    if trainer.world_size > 1 and training.loss != "softmax" and not isinstance(trainer.strategy, DDPStrategy):
        raise UserError(
            f"training.loss={training.loss} on several devices needs training.strategy=ddp, not {training.strategy};"
            " or use training.loss=softmax"
        )
    return trainer


def _records(config: Config) -> bool:
    """Whether CUDA graphs hold the steps of training.

    Raises:
        UserError: if they are to and there is no GPU for it.
    """
    training, is_on_cuda = config.training, devices.trains_on_cuda(config.training.accelerator)
    if training.cuda_graph is True and not is_on_cuda:
        raise UserError("training.cuda_graph=true needs an NVIDIA GPU, which is not used here: use auto or false")
    if training.cuda_graph != "auto":
        return bool(training.cuda_graph)
    is_one = training.devices == 1 or (training.devices == "auto" and torch.cuda.device_count() == 1)
    return is_on_cuda and is_one and training.precision != "16-mixed" and config.data.on_device is not False


def _trainer(
    training: TrainingConfig, callbacks: list[pl.Callback], log_to: list[Logger], log_every_n_steps: int
) -> pl.Trainer:

    return pl.Trainer(
        accelerator=training.accelerator,
        devices=training.devices,
        num_nodes=training.num_nodes,
        strategy=training.strategy,
        precision=training.precision,  # type: ignore[arg-type]
        max_epochs=training.num_epochs,
        max_steps=training.max_steps or -1,
        gradient_clip_val=training.gradient_clip,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
        logger=log_to,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data module's own samplers share the rows out
        log_every_n_steps=log_every_n_steps,
        deterministic=training.deterministic,
        **validation_schedule(training),
    )


def validation_schedule(training: TrainingConfig) -> dict[str, Any]:
    """Lightning's arguments for `val_check_interval`.

    Given 2.0, Lightning would validate every 2 batches; here a whole number counts epochs.
    """
    if training.val_check_interval < 1.0:
        return {"val_check_interval": training.val_check_interval}
    return {"check_val_every_n_epoch": int(training.val_check_interval)}
