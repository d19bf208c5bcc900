"""Beside the steps of training: checkpoints, orders to stop, seeds."""

import functools
import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn

from ..atomic_files import PART
from ..errors import StoppedError, UserError
from . import resume

# Kind of random draws, apart from those of `src.data.batching`.
DROPOUT = 3
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STEPS_BETWEEN_CHECKS = 50


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, from which a run that ended in any way resumes to the very same result.

    A checkpoint is written at the end of each epoch, every `every_n_steps` steps, and when SIGTERM or Ctrl-C asks to
    stop. Every step seeds torch's generator from the seed, the epoch, the step and the process, so that nothing random
    depends on what came before. A loss that is NaN or infinite ends the run before it could spoil the checkpoint.

    Args:
        path: of the checkpoint.
        every_n_steps: None for the ends of epochs alone.
        settings: plain containers; they travel in the checkpoint.
    """

    def __init__(self, path: Path, every_n_steps: int | None, seed: int, settings: dict[str, Any]) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.seed = seed
        self.settings = settings
        self.rewinds = False  # whether a resumed run begins the epoch of the checkpoint anew
        self.seconds = 0.0  # of all sessions before this one
        self.started = time.perf_counter()
        self._stop_signal: int | None = None
        self._is_due = False
        self._validation_is_due = False
        self._handlers: dict[int, Any] = {}

    def total_seconds(self) -> float:
        """Spent in training, by all sessions together."""
        return self.seconds + time.perf_counter() - self.started

    # Going on --------------------------------------------------------------------------------------------------------

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put Lightning where the checkpoint was written."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.seconds = checkpoint.get("run", {}).get("seconds", 0.0)
        if self.rewinds or resume.position(checkpoint)[1] == 0:
            self.rewinds = True
            resume.rewind_to_epoch_start(checkpoint)
        stopping = trainer.early_stopping_callback
        if stopping is not None and self.rewinds:  # had it stopped already, and would it still?
            waited = checkpoint["callbacks"].get(stopping.state_key, {}).get("wait_count", 0)
            trainer.should_stop = waited >= stopping.patience
        if trainer.ckpt_path:  # where it is now: Lightning keeps the best of before only if it is this run's folder
            resume.move_to(checkpoint, Path(trainer.ckpt_path).resolve().parent)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what a later session has to know."""
        checkpoint["run"] = {
            "settings": self.settings,
            "world_size": trainer.world_size,
            "seconds": self.total_seconds(),
        }
        if self._validation_is_due:
            resume.mark_validation_as_due(checkpoint)

    # Training --------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()
        _require_fitting_state(trainer)
        if self.rewinds:
            trainer.fit_loop.epoch_loop.restarting = False
        if trainer.is_global_zero:
            for part in self.path.parent.glob("*" + PART):  # of a checkpoint that a kill cut short
                part.unlink()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._ask_to_stop) for number in STOP_SIGNALS}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seed_step(trainer, pl_module)

    def seed_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed the draws of the step that Lightning counts now."""
        place = trainer.current_epoch, DROPOUT, trainer.fit_loop.batch_idx, trainer.global_rank
        entropy = np.random.SeedSequence((self.seed, *place))
        seed(int(entropy.generate_state(1, np.uint64)[0]), pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last = trainer.fit_loop.batch_idx  # of several steps, of which `batch_idx` is the first
        # On a GPU a look at the loss, or at what other processes were told, waits for the device: not in each step.
        is_time = (last + 1) // STEPS_BETWEEN_CHECKS > batch_idx // STEPS_BETWEEN_CHECKS
        looks = pl_module.device.type == "cpu" or is_time
        if looks:
            self._require_finite(trainer, math.isfinite(outputs["loss"].item()))
        self._is_due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        is_last = trainer.is_last_batch
        must_stop = (looks or trainer.world_size == 1) and self._must_stop(trainer)
        if (self._is_due or must_stop) and not is_last and not _validates_after(trainer, last):
            self._save(trainer)
            self._stop_if_asked(trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop in the middle of a long validation; several processes have too little in common to do that."""
        if trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1 and self._must_stop(trainer):
            self._validation_is_due = True
            self._save(trainer)
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.is_last_batch:
            if self._is_due or self._must_stop(trainer):
                self._save(trainer)
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint, after everything that belongs to the time before it."""
        weights = [parameter for parameter in trainer.lightning_module.parameters() if parameter.is_floating_point()]
        self._require_finite(trainer, bool(torch.stack([torch.isfinite(weight).all() for weight in weights]).all()))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        trainer.save_checkpoint(self.path)

    def _require_finite(self, trainer: pl.Trainer, is_finite: bool) -> None:
        """End the run unless that is so in every process."""
        if not trainer.strategy.reduce_boolean_decision(is_finite, all=True):
            kept = f"{self.path} is the last good checkpoint" if self.path.exists() else "there is no checkpoint yet"
            _end(
                trainer,
                f"training diverged at step {trainer.global_step}, epoch {trainer.current_epoch}: the loss or a weight"
                f" is NaN or infinite; {kept}; lower training.lr or set training.gradient_clip=1.0, and resume with"
                " training.resume=true or start anew",
            )

    # Stopping --------------------------------------------------------------------------------------------------------

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Note the signal for the end of the step; a second Ctrl-C does not wait for that."""
        if self._stop_signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop_signal = number

    def _must_stop(self, trainer: pl.Trainer) -> bool:
        """Whether any process was asked to; all of them have to call this together."""
        return trainer.strategy.reduce_boolean_decision(self._stop_signal is not None, all=False)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if self._must_stop(trainer):
            name = signal.Signals(self._stop_signal).name if self._stop_signal is not None else "a signal"
            _end(
                trainer,
                f"training was stopped by {name} after step {trainer.global_step}, in epoch {trainer.current_epoch}:"
                f" {self.path} has it all",
                functools.partial(StoppedError, signal=self._stop_signal or signal.SIGTERM, can_resume=True),
            )

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


class Tf32(pl.Callback):
    """Float32 products in TF32 while training computes; what ranks stays in float32."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.set_float32_matmul_precision("high")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.set_float32_matmul_precision("highest")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            torch.set_float32_matmul_precision("high")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.set_float32_matmul_precision("highest")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        torch.set_float32_matmul_precision("highest")


def seed(number: int, device: torch.device) -> None:
    """Seed torch's generators of the processor and of this device.

    `torch.manual_seed` notes the whole stack for each kind of device that is not there, which takes it 0.3 ms and more.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type != "cpu":
        torch.manual_seed(number)


def _require_fitting_state(trainer: pl.Trainer) -> None:
    """Check what the optimisers restored from a checkpoint, before a step fails on it.

    Raises:
        resume.StateError: if it does not fit the weights.
    """
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            if not isinstance(parameter, torch.Tensor) or not isinstance(state, dict):
                raise resume.StateError(f"a state {str(state)[:40]} of no weight")
            if not state:
                continue
            if not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
                raise resume.StateError(f"{', '.join(map(str, state))[:100]} is no state of Adam")
            values = [state[name] for name in ("step", "exp_avg", "exp_avg_sq")]
            if not all(isinstance(value, torch.Tensor) for value in values):
                raise resume.StateError(f"the state of a weight of {tuple(parameter.shape)} has no tensors")
            steps, *moments = values
            if any(moment.shape != parameter.shape or moment.dtype != parameter.dtype for moment in moments):
                raise resume.StateError(f"moments of another shape than a weight of {tuple(parameter.shape)}")
            if steps.shape != () or not steps.is_floating_point() or not 0 <= float(steps) < math.inf:
                raise resume.StateError(f"a count of steps of shape {tuple(steps.shape)} and type {steps.dtype}")


def _validates_after(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch of the epoch."""
    every_n_epochs = trainer.check_val_every_n_epoch or 1
    return (
        trainer.enable_validation
        and (trainer.current_epoch + 1) % every_n_epochs == 0
        and trainer.val_check_batch is not None
        and (batch_idx + 1) % trainer.val_check_batch == 0
    )


def _end(trainer: pl.Trainer, message: str, kind: Callable[[str], UserError] = UserError) -> None:
    """End all processes; one of them says why."""
    error = kind(message)
    if trainer.is_global_zero:
        raise error
    raise SystemExit(128 + error.signal if isinstance(error, StoppedError) else 1)
