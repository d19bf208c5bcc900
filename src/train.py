"""Train BERT4Rec on a CSV of user, item, time.

python train_bert4rec.py data.data_dir=FOLDER data.data_file=FILE
"""

import shlex
import signal
from typing import TYPE_CHECKING, Any

from . import cli, named_files
from .run_folder import RunFolder
from .settings import Config
from .settings.schema import TrainingConfig

if TYPE_CHECKING:
    from pathlib import Path

    import pytorch_lightning as pl
    from pytorch_lightning.loggers import Logger

    from .data import BERT4RecDataModule
    from .data.titles import Titles
    from .models import BERT4Rec


def train(config: Config) -> float | None:
    """Look for the files that are named, and train with the output folder locked; see `fit_and_evaluate`."""
    named_files.require_for_training(config)  # before what takes seconds to import
    with RunFolder.at(config.output_dir).locked():
        return fit_and_evaluate(config)


def fit_and_evaluate(config: Config) -> float | None:
    """Fit, evaluate the best checkpoint, and write metrics.json.

    Returns:
        The best value of `training.monitor_metric`, for sweeps; None without validation.
    """
    import pytorch_lightning as pl
    import torch
    from lightning_utilities.core.rank_zero import rank_zero_only
    from pytorch_lightning.strategies import DDPStrategy

    from . import checkpoint, devices, logs, report, resume
    from .callbacks import LastCheckpoint
    from .data.titles import read_titles
    from .errors import UserError
    from .native import compiler
    from .settings import flat_settings

    cli.quiet()
    compiler.switch(config.native)
    say = rank_zero_only(print)
    pl.seed_everything(config.seed, verbose=False)
    titles = read_titles(config.data.items_file)
    data = build_data(config)
    data.prepare_data()
    data.setup()  # the model needs the size of the catalogue
    for note in data.notes:
        say(note)
    if no_titles := titles.note(data.vocabulary.ids):
        say(no_titles)
    say(
        report.describe_data(
            data.summary, config.data.min_interactions, config.data.holdout, config.data.min_item_interactions
        )
    )
    if config.auto:
        config = size_by_data(config, data)
    if config.data.holdout and config.evaluation.filter_seen and data.summary["repeated_targets"]:
        say(
            f"warning: {data.summary['repeated_targets']:,} of {data.summary['evaluated_users']:,} test items are"
            " repeats of seen ones and count as misses; evaluation.filter_seen=false ranks them too"
        )
    if (
        not devices.trains_on_cuda(config.training.accelerator)
        and compiler.library(torch.float32) is None
        and config.native
    ):
        say(f"note: training goes without compiled code, which takes 1.2 to 2 times as long: {compiler.missing()}")
    require_memory(config, data.num_items)
    model = build_model(config, data.num_items)
    say(f"model       {sum(p.numel() for p in model.parameters()):,} parameters")

    folder = RunFolder.at(config.output_dir)
    path = resume.find(config.training.resume, folder)
    content = None if path is None else checkpoint.read(path)
    trainer = build_trainer(config, folder, 0 if content is None else content.get("global_step", 0))
    say(devices.line(devices.describe(trainer)))
    if (unused := devices.unused(trainer.strategy.root_device.type, config.training.accelerator)) is not None:
        say(f"note: {unused}")
    say("", flush=True)
    if trainer.world_size > 1 and config.training.loss != "softmax" and not isinstance(trainer.strategy, DDPStrategy):
        raise UserError(
            f"training.loss={config.training.loss} on several devices needs training.strategy=ddp, not"
            f" {config.training.strategy}; or use training.loss=softmax"
        )
    last = trainer.checkpoint_callbacks[-1]
    assert isinstance(last, LastCheckpoint)
    if path is not None and content is not None:
        last.rewinds = prepare_resume(config, path, content, data, trainer)
    goes_on_here = path is not None and path.resolve().parent == folder.checkpoints.resolve()
    keeps_results = goes_on_here and content is not None and resume.is_finished(content, config)
    if trainer.is_global_zero and not keeps_results and (archived := folder.archive(results_only=goes_on_here)):
        say(f"the earlier {'results' if goes_on_here else 'run'} went to {archived}")
    del content
    logs.log_settings(trainer, flat_settings(config))
    fit(trainer, model, data, path)
    return finish(config, folder, trainer, model, data, titles, last.total_seconds())


def prepare_resume(
    config: Config, path: "Path", content: dict[str, Any], data: "BERT4RecDataModule", trainer: "pl.Trainer"
) -> bool:
    """See whether the checkpoint fits the settings and the data, and print what has changed since.

    Returns:
        Whether the epoch that was interrupted begins anew, since its batches are others now.
    """
    from lightning_utilities.core.rank_zero import rank_zero_only

    from . import checkpoint, resume

    say = rank_zero_only(print)
    checkpoint.build(content, path)
    resume.require_state(content, path)
    changes = resume.changes(content, config, path)
    data.load_state_dict(content["BERT4RecDataModule"])
    epoch, batches = resume.position(content)
    rewinds = batches > 0 and not resume.has_same_batches(content, config, trainer.world_size)
    data.start = (epoch, 0 if rewinds else batches)
    say(f"resuming    {path}: epoch {epoch}, step {content['global_step']:,}")
    if changes:
        say(f"changed     {', '.join(changes)}")
    if rewinds:
        say(f"            the batches are others now: epoch {epoch} begins anew, {batches:,} of its steps come twice")
    return rewinds


def fit(trainer: "pl.Trainer", model: "BERT4Rec", data: "BERT4RecDataModule", path: "Path | None") -> None:
    """Train, and say in one line why that ended where it did before its end."""
    from . import resume
    from .callbacks import LastCheckpoint
    from .errors import StoppedError, UserError

    try:
        trainer.fit(model, data, ckpt_path=path, weights_only=True)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        if trainer.interrupted and trainer.is_global_zero:
            last = trainer.checkpoint_callbacks[-1]
            can_resume = isinstance(last, LastCheckpoint) and last.path.exists()
            number = signal.SIGINT if isinstance(stop.__context__, KeyboardInterrupt) else signal.SIGTERM
            left = "there is a checkpoint from before that" if can_resume else "there is no checkpoint yet"
            raise StoppedError(
                f"training was stopped at once by {number.name} in epoch {trainer.current_epoch}: {left}",
                number,
                can_resume,
            ) from stop
        raise
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if isinstance(error, UserError) or path is None or not resume.is_about_state(error):
            raise
        raise UserError(
            f"{path} has a state of training that cannot be taken up ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:200]}): start anew with training.resume=false"
        ) from error


def build_data(config: Config) -> "BERT4RecDataModule":
    from .data import BERT4RecDataModule
    from .data.table import TableOptions

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
        window_stride=config.data.window_stride,
        filter_seen=config.evaluation.filter_seen,
        eval_batch_size=config.evaluation.batch_size,
        num_negatives=0 if config.training.loss == "softmax" else config.training.num_negatives,
        negative_power=config.training.negative_power,
        generate_sample=config.data.generate_sample,
        download=config.data.download,
        download_url=config.data.download_url,
        cache_dir=RunFolder.at(config.output_dir).cache if config.data.cache else None,
        seed=config.seed,
    )


def size_by_data(config: Config, data: "BERT4RecDataModule") -> Config:
    """Choose what `experiment=auto` leaves open, say why, and let the data module know."""
    import torch
    from hydra.core.hydra_config import HydraConfig
    from lightning_utilities.core.rank_zero import rank_zero_only

    from . import auto, devices, memory

    config, reasons = auto.choose(
        config,
        data.summary["train_users"],
        data.num_items,
        auto.given_keys(HydraConfig.get().overrides.task),
        memory.of(torch.device("cuda" if devices.trains_on_cuda(config.training.accelerator) else "cpu")),
    )
    rank_zero_only(print)(reasons)
    data.max_len, data.batch_size = config.model.max_len, config.data.batch_size
    return config


def build_model(config: Config, num_items: int) -> "BERT4Rec":
    from .models import BERT4Rec

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
    import torch

    from . import devices, memory

    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(config, num_items).parameters())
    here = memory.HELD if devices.trains_on_cuda(config.training.accelerator) else memory.TRAINED
    memory.require(parameters, here, memory.of(torch.device("cpu")))


def build_trainer(config: Config, folder: "RunFolder", steps: int = 0) -> "pl.Trainer":
    """The trainer of a run that has `steps` steps behind it."""
    import pytorch_lightning as pl
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

    from . import logs, resume, sweep
    from .callbacks import FreedMemory, LastCheckpoint
    from .errors import UserError
    from .progress import Progress
    from .pruning import Pruning

    training = config.training
    save: dict[str, Any] = {
        "dirpath": folder.checkpoints,
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
    }
    callbacks: list[pl.Callback] = [FreedMemory()]
    if config.data.holdout:
        monitor: dict[str, Any] = {"monitor": training.monitor_metric, "mode": "max"}
        callbacks.append(ModelCheckpoint(filename=folder.best.stem, **monitor, **save))
        if training.early_stopping:
            callbacks.append(EarlyStopping(patience=training.early_stopping_patience, **monitor))
    log_to = logs.loggers(training.logger, folder, steps)
    if log_to:
        is_constant = training.scheduler == "none" and not training.warmup_steps
        callbacks += [LearningRateMonitor("epoch" if is_constant else "step"), logs.Throughput()]
    callbacks.append(Progress(training.monitor_metric))
    if (trial := sweep.current_trial()) is not None:
        callbacks.append(Pruning(trial, training.monitor_metric, folder.root))
    last = LastCheckpoint(folder.last, training.checkpoint_every_n_steps, config.seed, resume.recorded(config))
    callbacks.append(last)  # after the best one, of which it keeps the state
    try:
        return _trainer(training, callbacks, log_to)
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(
            f"training.accelerator={training.accelerator}, devices={training.devices}, strategy={training.strategy},"
            f" precision={training.precision} do not work here: {error}"
        ) from error


def _trainer(training: TrainingConfig, callbacks: "list[pl.Callback]", log_to: "list[Logger]") -> "pl.Trainer":
    import pytorch_lightning as pl

    from .checkpoint_io import SafeCheckpointIO

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
        log_every_n_steps=10,
        **validation_schedule(training),
    )


def validation_schedule(training: TrainingConfig) -> dict[str, Any]:
    """Lightning's arguments for `val_check_interval`.

    Given 2.0, Lightning would validate every 2 batches; here a whole number counts epochs.
    """
    if training.val_check_interval < 1.0:
        return {"val_check_interval": training.val_check_interval}
    return {"check_val_every_n_epoch": int(training.val_check_interval)}


def finish(
    config: Config,
    folder: "RunFolder",
    trainer: "pl.Trainer",
    model: "BERT4Rec",
    data: "BERT4RecDataModule",
    titles: "Titles",
    seconds: float,
) -> float | None:
    """Evaluate the best checkpoint beside the baselines, write metrics.json and print the closing table."""
    import json
    from dataclasses import asdict

    import torch

    from . import devices, logs, report, sweep
    from .data import sample
    from .evaluation.contest import Contest, tables_of
    from .settings import flat_settings

    content: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "epochs": whole_epochs(config, trainer),
        "steps": trainer.global_step,
    }
    contests: dict[str, Contest] = {}
    stages = {2: ("val", "test"), 1: ("val",), 0: ()}[config.data.holdout]
    chosen = folder.best if folder.best.exists() else folder.last  # training.max_steps may end before a validation
    name = f"BERT4Rec ({chosen.name})"
    loggers = trainer.loggers
    for stage in stages:
        trainer.loggers = [] if stage == "val" else loggers  # training has drawn these points already
        contest = Contest(
            data.evaluation_set(from_end=1 if stage == stages[-1] else 2),
            data.evaluated_user_ids(),
            data.vocabulary.counts,
            config.evaluation.protocols,
            config.seed,
            config.evaluation.topk,
        )
        contest.add_baselines(data.spans)
        model.observer = contest.observer()
        evaluate = trainer.validate if stage == "val" else trainer.test
        evaluate(model, datamodule=data, ckpt_path=str(chosen), weights_only=True, verbose=False)
        contest.outcomes[name] = model.observer.compute()
        contests[stage] = contest
    trainer.loggers = loggers
    content |= tables_of(contests, config.evaluation.bootstrap)
    if "test" in contests and config.data.generate_sample:
        reachable = json.loads(sample.best_reachable_path(data.path).read_text())["figures"]
        wanted = [key.removeprefix("test_") for key in content["figures"]["test"]["popularity"]]
        content["figures"]["test"]["best reachable"] = {key: reachable[key] for key in wanted if key in reachable}
    content["data"] = data.summary
    content |= {"settings": asdict(config), "torch": torch.__version__, **devices.describe(trainer)}
    if trainer.is_global_zero:
        content["verdict"] = report.verdict(content, config.evaluation.topk)
        report.write_json(folder.metrics, content)
        final = {key: value for rows in content["figures"].values() for key, value in rows[name].items()}
        logs.log_end(trainer, flat_settings(config), final, model, data.vocabulary, titles)
        if config.evaluation.report:
            from .evaluation import html

            last = contests[stages[-1]] if stages else None
            curves = html.read_curves(folder.logs)
            html.write(folder.report, content, curves, last, data.vocabulary, titles, flat_settings(config))
        print("\n" + report.closing(folder))
        if not sweep.is_running():  # a sweep has a closing of its own
            print(next_steps(config, folder, chosen, ended_by_steps(config, trainer)))
    if "val" not in contests:
        return None
    return float(content["figures"]["val"][name][config.training.monitor_metric])


def ended_by_steps(config: Config, trainer: "pl.Trainer") -> bool:
    """Whether `training.max_steps` ended the run, not `training.num_epochs`."""
    return config.training.max_steps is not None and trainer.global_step >= config.training.max_steps


def whole_epochs(config: Config, trainer: "pl.Trainer") -> int:
    """How many epochs are done; one that `training.max_steps` cut short is not."""
    if ended_by_steps(config, trainer):
        return trainer.global_step // max(1, int(trainer.num_training_batches))
    return trainer.current_epoch


def next_steps(config: Config, folder: "RunFolder", chosen: "Path", ended_by_steps: bool) -> str:
    """What to run next, ready to be pasted."""
    from . import report

    steps = {"recommend": cli.command("predict")}
    if chosen == folder.best:
        steps["of the best"] = cli.command("predict", f"inference.checkpoint_path={folder.best}")
    if config.data.holdout:
        steps["evaluate"] = cli.command(
            "predict",
            "inference.evaluate=true",
            f"inference.checkpoint_path={chosen}",
            also=("evaluation.", "seed=", "model.", "training.precision=", "training.accelerator=", "native="),
        )
    if "tensorboard" in config.training.logger:
        steps["curves"] = f"tensorboard --logdir {shlex.quote(str(folder.logs))}"
    more = [f"training.num_epochs={2 * config.training.num_epochs}"]
    if ended_by_steps:
        assert config.training.max_steps is not None
        more.append(f"training.max_steps={2 * config.training.max_steps}")
    steps["longer"] = cli.command("train", "training.resume=true", *more, keeps_all=True)
    return report.next_steps(steps)


def main() -> None:
    """Run `train_bert4rec.py`, or `bert4rec-train` of an installed package."""
    cli.run(train)
