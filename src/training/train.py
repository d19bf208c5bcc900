"""Train BERT4Rec on a CSV of user, item, time.

python train_bert4rec.py data.data_dir=FOLDER data.data_file=FILE
"""

import signal
from typing import TYPE_CHECKING

from ..command_line import cli, named_files
from ..runs.folder import RunFolder
from ..settings import Config

if TYPE_CHECKING:
    from pathlib import Path

    import pytorch_lightning as pl

    from ..data import BERT4RecDataModule
    from ..models import BERT4Rec


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

    from ..data.titles import read_titles
    from ..errors import UserError
    from ..evaluation import closing_tables
    from ..kernels import compiler
    from ..runs import checkpoint, devices, provenance
    from ..settings import flat_settings
    from ..sweep import sweep
    from . import build, closing, logs, resume
    from .callbacks import LastCheckpoint

    cli.quiet()
    origin = provenance.describe(sweep.command() or cli.command("train", keeps_all=True))
    compiler.switch(config.native)
    say = rank_zero_only(print)
    pl.seed_everything(config.seed, verbose=False)
    titles = read_titles(config.data.items_file)
    data = build.build_data(config)
    data.prepare_data()
    data.setup()  # the model needs the size of the catalogue
    for note in data.notes:
        say(note)
    if no_titles := titles.note(data.vocabulary.ids):
        say(no_titles)
    say(
        closing_tables.describe_data(
            data.summary, config.data.min_interactions, config.data.holdout, config.data.min_item_interactions
        )
    )
    if config.auto:
        config = build.size_by_data(config, data)
    if config.data.holdout and config.evaluation.filter_seen and data.summary["repeated_targets"]:
        targets = data.summary.get("evaluated_targets", data.summary["evaluated_users"])
        say(
            f"warning: {data.summary['repeated_targets']:,} of {targets:,} test items are"
            " repeats of seen ones and count as misses; evaluation.filter_seen=false ranks them too"
        )
    if (
        not devices.trains_on_cuda(config.training.accelerator)
        and compiler.library(torch.float32) is None
        and config.native
    ):
        say(f"note: no compiled kernels, so training takes 1.2 to 3 times as long: {compiler.missing()}")
    build.require_memory(config, data.num_items)
    model = build.build_model(config, data.num_items)
    model.compiles = build.compiles(config)
    say(f"model       {sum(p.numel() for p in model.parameters()):,} parameters")

    folder = RunFolder.at(config.output_dir)
    path = resume.find(config.training.resume, folder)
    content = None if path is None else checkpoint.read(path)
    trainer = build.build_trainer(config, folder, 0 if content is None else content.get("global_step", 0))
    say("\n".join([*devices.lines(trainer, config.training.accelerator), ""]), flush=True)
    if trainer.world_size > 1 and config.training.loss != "softmax" and not isinstance(trainer.strategy, DDPStrategy):
        raise UserError(
            f"training.loss={config.training.loss} on several devices needs training.strategy=ddp, not"
            f" {config.training.strategy}; or use training.loss=softmax"
        )
    last = trainer.checkpoint_callbacks[-1]
    assert isinstance(last, LastCheckpoint)
    if path is not None and content is not None:
        last.rewinds = resume.prepare(config, path, content, data, trainer)
    goes_on_here = path is not None and path.resolve().parent == folder.checkpoints.resolve()
    keeps_results = goes_on_here and content is not None and resume.is_finished(content, config)
    if trainer.is_global_zero and not keeps_results and (archived := folder.archive(results_only=goes_on_here)):
        say(f"the earlier {'results' if goes_on_here else 'run'} went to {archived}")
    del content
    logs.log_settings(trainer, flat_settings(config))
    fit(trainer, model, data, path)
    return closing.finish(
        config,
        folder=folder,
        trainer=trainer,
        model=model,
        data=data,
        titles=titles,
        origin=origin,
        seconds=last.total_seconds(),
    )


def fit(trainer: "pl.Trainer", model: "BERT4Rec", data: "BERT4RecDataModule", path: "Path | None") -> None:
    """Train, and say in one line why that ended where it did before its end."""
    from ..errors import StoppedError, UserError
    from . import resume
    from .callbacks import LastCheckpoint

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


def main() -> None:
    """Run `train_bert4rec.py`, or `bert4rec-train` of an installed package."""
    cli.run(train)
