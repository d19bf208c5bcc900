"""Stopping a run of a search that falls behind the others."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl

if TYPE_CHECKING:
    import optuna


@dataclass(eq=False)
class Pruning(pl.Callback):
    """Reports each validation to Optuna and ends training when its pruner says so."""

    trial: "optuna.Trial"  # what this run is in the study
    monitor: str  # the metric to report, the larger the better
    folder: Path  # of the run; an empty file `stopped_early` is left there
    validations: int = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        falls_behind = False
        if trainer.is_global_zero:
            self.trial.report(trainer.callback_metrics[self.monitor].item(), self.validations)
            falls_behind = self.trial.should_prune()
        self.validations += 1
        if trainer.strategy.broadcast(falls_behind):
            trainer.should_stop = True
            if trainer.is_global_zero:
                (self.folder / "stopped_early").touch()
                print(f"stopped after {self.validations} validations: it falls behind the runs before it")
