"""Train BERT4Rec on a CSV of user, item, time.

python train_bert4rec.py data.data_dir=FOLDER data.data_file=FILE
"""

import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..command_line import cli, named_files
from ..runs.folder import RunFolder
from ..settings import Config

if TYPE_CHECKING:
    from pathlib import Path

    import pytorch_lightning as pl

    from ..data import BERT4RecDataModule
    from ..data.table import Frame
    from ..models import BERT4Rec
    from .callbacks import LastCheckpoint


def train(config: Config) -> float | None:
    """Look for the files that are named, and train with the output folder locked; see `fit_and_evaluate`."""
    named_files.require_for_training(config)  # before what takes seconds to import
    with RunFolder.at(config.output_dir).locked():
        return fit_and_evaluate(config)


def fit_and_evaluate(config: Config, frame: "Frame | None" = None, given: Iterable[str] | None = None) -> float | None:
    """Fit, evaluate the best checkpoint, and write metrics.json.

    Args:
        frame: the table, if it is in memory: then this is called from Python, by `src.training.from_frame`.
        given: keys that the user has set; None takes those of the command line.

    Returns:
        The best value of `training.monitor_metric`, for sweeps; None without validation.
    """
    import pytorch_lightning as pl
    from lightning_utilities.core.rank_zero import rank_zero_only

    from ..kernels import compiler
    from ..runs import checkpoint, devices, provenance
    from ..settings import flat_settings
    from ..sweep import sweep
    from . import build, closing, logs, resume
    from .callbacks import LastCheckpoint

    cli.quiet()
    command = sweep.command() or cli.command("train", keeps_all=True) if frame is None else "Recommender.fit"
    origin = provenance.describe(command)
    compiler.switch(config.native)
    pl.seed_everything(config.seed, verbose=False)
    config, data, titles = build.ready_data(config, frame, given)
    model = build.ready_model(config, data)

    folder = RunFolder.at(config.output_dir)
    path = resume.find(config.training.resume, folder)
    content = None if path is None else checkpoint.read(path)
    trainer = build.build_trainer(config, folder, 0 if content is None else content.get("global_step", 0))
    rank_zero_only(print)("\n".join([*devices.lines(trainer, config.training.accelerator), ""]), flush=True)
    last = trainer.checkpoint_callbacks[-1]
    assert isinstance(last, LastCheckpoint)
    begin(config, path, content, folder=folder, trainer=trainer, model=model, data=data, last=last)
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


def begin(
    config: Config,
    path: "Path | None",
    content: dict[str, Any] | None,
    *,
    folder: RunFolder,
    trainer: "pl.Trainer",
    model: "BERT4Rec",
    data: "BERT4RecDataModule",
    last: "LastCheckpoint",
) -> None:
    """Put a run where it begins, resumed, from the weights of another or anew, and an earlier run out of its way.

    Args:
        path: the checkpoint to resume from, or None.
        content: of that checkpoint.
        last: the callback that writes its successors.
    """
    from lightning_utilities.core.rank_zero import rank_zero_only

    from . import init_from, resume

    say = rank_zero_only(print)
    if path is not None and content is not None:
        last.rewinds = resume.prepare(config, path, content, data, trainer)
        last.settings |= resume.origin(content)
    elif config.training.init_from is not None:
        say(init_from.start(config.training.init_from, model, data, trainer, last))
    goes_on_here = path is not None and path.resolve().parent == folder.checkpoints.resolve()
    keeps_results = goes_on_here and content is not None and resume.is_finished(content, config)
    if trainer.is_global_zero and not keeps_results and (archived := folder.archive(results_only=goes_on_here)):
        say(f"the earlier {'results' if goes_on_here else 'run'} went to {archived}")


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
