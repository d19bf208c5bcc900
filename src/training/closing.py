"""After the last step: the best checkpoint beside the baselines, metrics.json, the report, what to run next."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ..command_line import cli
from ..data import BERT4RecDataModule, sample
from ..data.titles import Titles
from ..evaluation import closing_tables, results
from ..evaluation.comparison import Contest
from ..models import BERT4Rec
from ..runs.folder import RunFolder
from ..settings import Config, flat_settings
from ..sweep import sweep
from . import logs


def finish(
    config: Config,
    *,
    folder: RunFolder,
    trainer: pl.Trainer,
    model: BERT4Rec,
    data: BERT4RecDataModule,
    titles: Titles,
    origin: dict[str, str],
    seconds: float,
) -> float | None:
    """Evaluate the best checkpoint beside the baselines, write metrics.json and the report, print the closing table.

    Returns:
        The best checkpoint's value of `training.monitor_metric`; None without validation.
    """
    chosen = folder.best if folder.best.exists() else folder.last  # training.max_steps may end before a validation
    name = f"BERT4Rec ({chosen.name})"
    content: dict[str, Any] = {"seconds": round(seconds, 1), "epochs": whole_epochs(config, trainer)}
    content |= {"steps": trainer.global_step, "data": data.summary}
    if chosen == folder.best:
        content["best_step"] = torch.load(chosen, mmap=True, weights_only=True, map_location="cpu")["global_step"]
    contests = evaluate(config, trainer, model, data, chosen, name)
    content |= results.of(config, contests, trainer, model, origin)
    if "test" in contests and config.data.generate_sample and config.data.split == "leave_one_out":
        content["figures"]["test"]["best reachable"] = best_reachable(config.data.path, content["figures"]["test"])
    if trainer.is_global_zero:
        final = {key: value for rows in content["figures"].values() for key, value in rows[name].items()}
        logs.log_end(trainer, flat_settings(config), final, model, data.vocabulary, titles)
        last = list(contests.values())[-1] if contests else None
        results.write(config, content, folder.metrics, folder.report, last, data.vocabulary, titles, folder.logs)
        print("\n" + closing_tables.closing(folder))
        if not sweep.is_running() and data.frame is None:  # a sweep has a closing of its own, Python no commands
            print(next_steps(config, folder, content.get("best_step"), ended_by_steps(config, trainer)))
    if "val" not in contests:
        return None
    return float(content["figures"]["val"][name][config.training.monitor_metric])


def evaluate(
    config: Config, trainer: pl.Trainer, model: BERT4Rec, data: BERT4RecDataModule, chosen: Path, name: str
) -> dict[str, Contest]:
    """Stage -> the checkpoint beside the baselines; the last stage comes last."""
    contests: dict[str, Contest] = {}
    stages = {2: ("val", "test"), 1: ("val",), 0: ()}[config.data.holdout]
    loggers = trainer.loggers
    for stage in stages:
        trainer.loggers = [] if stage == "val" else loggers  # training has drawn these points already
        from_end = 1 if stage == stages[-1] else 2
        contest = results.contest(
            config,
            data.evaluation_set(from_end),
            data.evaluated_user_ids(from_end),
            data.vocabulary.counts,
            data.spans,
        )
        model.observer = contest.observer()
        run = trainer.validate if stage == "val" else trainer.test
        run(model, datamodule=data, ckpt_path=str(chosen), weights_only=True, verbose=False)
        contest.outcomes[name] = model.observer.compute()
        contests[stage] = contest
    trainer.loggers = loggers
    return contests


def best_reachable(table: Path, figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """What no model can beat on the built-in sample, whose every probability is known."""
    reachable = json.loads(sample.best_reachable_path(table).read_text())["figures"]
    names = [key.removeprefix("test_") for key in figures["popularity"]]
    return {name: reachable[name] for name in names if name in reachable}


def ended_by_steps(config: Config, trainer: pl.Trainer) -> bool:
    """Whether `training.max_steps` ended the run, not `training.num_epochs`."""
    return config.training.max_steps is not None and trainer.global_step >= config.training.max_steps


def whole_epochs(config: Config, trainer: pl.Trainer) -> int:
    """How many epochs are done; one that `training.max_steps` cut short is not."""
    if ended_by_steps(config, trainer):
        return trainer.global_step // max(1, int(trainer.num_training_batches))
    return trainer.current_epoch


def next_steps(config: Config, folder: RunFolder, best_step: int | None, ended_by_steps: bool) -> str:
    """What to run next, ready to be pasted.

    Args:
        best_step: of best.ckpt; None if there is none.
    """
    chosen = folder.last if best_step is None else folder.best
    steps = {"recommend": cli.command("predict")}
    if best_step is not None:
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
    if best_step is not None and config.data.split != "files":  # no one table has all their data
        anew = ["data.holdout=0", f"training.max_steps={best_step}", f"output_dir={folder.root}-all"]
        anew += [f"training.{key}=false" for key in ("early_stopping", "resume") if getattr(config.training, key)]
        if config.data.split == "time":
            anew += ["data.split=leave_one_out", "data.split_at=null", "data.split_targets=first"]
        steps["on all data"] = cli.command("train", *anew, keeps_all=True)
    return closing_tables.next_steps(steps)
