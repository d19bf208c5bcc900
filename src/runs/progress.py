"""How far a run is: one line that is drawn again and again on a terminal, a line now and then in a file."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.trainer.states import TrainerFn

# Between two drawings of the bar. Lightning draws it twice in every step, however short.
SECONDS_BETWEEN_DRAWINGS = 0.1
# Between two lines where there is no terminal: at the end of an epoch, and within one.
SECONDS_BETWEEN_EPOCHS = 10.0
SECONDS_BETWEEN_LINES = 60.0
NARROWEST_BAR = 10  # columns; the figures beside it give way first


class Progress(TQDMProgressBar):
    """Lightning's bar in one line that fits the terminal; without a terminal, plain lines at intervals.

    Args:
        monitor: the validation metric shown beside the loss.
    """

    BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"

    def __init__(self, monitor: str = "") -> None:
        super().__init__()
        self.monitor = monitor
        self.is_plain = not sys.stdout.isatty()
        self.drawn = -math.inf  # when
        self.said = time.perf_counter()  # when the last plain line was
        self.bars: list[Tqdm] = []
        self.ended = ""  # the epoch of which nothing was said yet

    # On a terminal ---------------------------------------------------------------------------------------------------

    def _bar(self, what: str) -> Tqdm:
        bar = Tqdm(
            desc=what,
            disable=self.is_disabled or self.is_plain,
            leave=True,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )
        self.bars.append(bar)
        return bar

    def init_train_tqdm(self) -> Tqdm:
        return self._bar("training")

    def init_validation_tqdm(self) -> Tqdm:
        """Within training, a bar that is not there: validation shows in that of training, to keep to one line."""
        assert self.trainer is not None
        return Tqdm(disable=True) if self.trainer.state.fn == TrainerFn.FITTING else self._bar("validating")

    def init_test_tqdm(self) -> Tqdm:
        return self._bar("testing")

    def init_predict_tqdm(self) -> Tqdm:
        return self._bar("predicting")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.total = self.total_train_batches  # Lightning tells it at the start of an epoch alone
        self.train_progress_bar.set_description_str(_epoch(trainer))
        self.said = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._say_epoch(trainer, pl_module, 0.0 if trainer.current_epoch == 1 else SECONDS_BETWEEN_EPOCHS)
        self.train_progress_bar.set_description_str(_epoch(trainer))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        is_last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if self._is_due(is_last):
            self.train_progress_bar.n = done = trainer.fit_loop.batch_idx + 1
            self._show_figures(trainer, pl_module)
            step = f"{_epoch(trainer)}, step {done:,} of {self.total_train_batches:,}"
            self._say(step, SECONDS_BETWEEN_LINES, lambda: self._named(trainer, pl_module))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        batch, batches = args[2], self.total_val_batches_current_dataloader
        if trainer.state.fn != TrainerFn.FITTING:
            super().on_validation_batch_end(trainer, pl_module, *args)
        elif self._is_due():
            self.train_progress_bar.set_description_str(f"validating {batch + 1}/{batches}")
        self._say_batch("validating", batch, batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.reset_dataloader_idx_tracker()
        self.val_progress_bar.close()
        if trainer.state.fn == TrainerFn.FITTING:
            self.train_progress_bar.set_description_str(_epoch(trainer), refresh=False)
            self._show_figures(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show_figures(trainer, pl_module)
        self.ended = _epoch(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._say_epoch(trainer, pl_module, 0.0)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        super().on_test_batch_end(trainer, pl_module, *args)
        self._say_batch("testing", args[2], self.total_test_batches_current_dataloader)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        super().on_predict_batch_end(trainer, pl_module, *args)
        self._say_batch("predicting", args[2], self.total_predict_batches_current_dataloader)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the line of the bar, for what is printed next."""
        for bar in self.bars:
            bar.close()

    def _is_due(self, is_last: bool = False) -> bool:
        """Whether to draw the bar now: the last time was long enough ago, or there is no other one."""
        now = time.perf_counter()
        if is_due := is_last or now - self.drawn >= SECONDS_BETWEEN_DRAWINGS:
            self.drawn = now
        return is_due

    def _show_figures(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        bar = self.train_progress_bar
        if not bar.disable:
            bar.set_postfix_str(self._figures(trainer, pl_module, bar))

    def _figures(self, trainer: pl.Trainer, pl_module: pl.LightningModule, bar: Tqdm) -> str:
        """The figures for which there is room beside the bar."""
        columns = shutil.get_terminal_size().columns
        count = len(f"{bar.n}/{bar.total}") + len(bar.format_interval(bar.format_dict["elapsed"])) * 2 + 1
        room = columns - len(bar.desc) - len(" 100%|| ") - count - NARROWEST_BAR - 2
        shown = ""
        for name, value in self._named(trainer, pl_module):
            longer = f"{shown}, {name} {value}" if shown else f"{name} {value}"
            if len(longer) + 2 > room:
                break
            shown = longer
        return shown

    def _named(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[tuple[str, str]]:
        """The loss and the monitored metric, so far as there are any."""
        metrics = self.get_metrics(trainer, pl_module)
        loss = next((value for name, value in metrics.items() if name.startswith("train_loss")), None)
        named = [("loss", loss), (self.monitor, metrics.get(self.monitor))]
        return [(name, f"{float(value):.4g}") for name, value in named if isinstance(value, int | float)]

    # In a file -------------------------------------------------------------------------------------------------------

    def _say(self, what: str, every: float, figures: Callable[[], list[tuple[str, str]]] = list) -> None:
        """Print a line if the last one was long enough ago; only then are there figures, which wait for a GPU."""
        if self.is_plain and self.is_enabled and time.perf_counter() - self.said >= every:
            self.said = time.perf_counter()
            print(", ".join([what, *(f"{name} {value}" for name, value in figures())]), flush=True)

    def _say_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, every: float) -> None:
        """The epoch that has ended; its loss is logged after `on_train_epoch_end`."""
        if self.ended:
            self._say(self.ended, every, lambda: self._named(trainer, pl_module))
        self.ended = ""

    def _say_batch(self, what: str, batch: int, batches: int | float) -> None:
        self._say(f"{what} {batch + 1:,} of {batches:,} batches", SECONDS_BETWEEN_LINES)


def _epoch(trainer: pl.Trainer) -> str:
    return f"epoch {trainer.current_epoch}"  # counted from 0, as in messages, logs and checkpoints
