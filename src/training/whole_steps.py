"""Whole optimiser steps, several in a row, on a GPU as CUDA graphs.

Lightning's loop takes about a millisecond from one call of `training_step` to the next, and starting the kernels of a
step one by one takes a GPU several; the kernels of a small model take half of one.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..batch import RowBatch
from ..errors import UserError
from ..models import BERT4Rec

Step = Callable[[Any], Tensor]  # batch -> loss
# Steps of each length that are computed one by one before a graph holds it: kernels and their memory are chosen then.
WARM_UP = 2
# Between the change of all weights by a step that was recorded and by the same one computed: sums in another order.
TOLERANCE = 0.01


class WholeSteps(pl.Callback):
    """Takes the steps of training in the place of Lightning: forward, backward, clipping, optimiser, schedule.

    They come in lists, which end wherever something is to happen between two steps. Everything counts steps as it does
    without this, and the weights are the same to the bit, however long the lists are. Hooks of Lightning between the
    parts of a step, such as `on_before_optimizer_step`, are not called, and those around a step once for each list.

    Args:
        most: steps in a list.
        record: makes of a step what repeats it for batches of the same length, such as `CudaGraphs`; None computes
            every step.
        seed_step: trainer, module -> None; seeds the random draws of the step that Lightning counts next.
        every_n_steps: what a list ends at, besides what the trainer does in between.
    """

    def __init__(
        self,
        most: int,
        record: Callable[[Step, RowBatch], Step] | None,
        seed_step: Callable[[pl.Trainer, pl.LightningModule], None],
        every_n_steps: int | None = None,
    ) -> None:
        self.most = most
        self.record = record
        self.seed_step = seed_step
        self.every_n_steps = every_n_steps
        self._computed: dict[int, int] = {}  # length -> steps that were computed
        self._recorded: dict[int, Step] = {}  # length -> its graph
        self._stream: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over; before the optimiser is made, and the loader.

        Raises:
            UserError: if there are several processes.
        """
        if stage != "fit":
            return
        assert isinstance(pl_module, BERT4Rec)
        if trainer.world_size > 1:
            raise UserError(
                f"training.steps_per_execution and training.cuda_graph are for one device, and this run has"
                f" {trainer.world_size}: leave them out, or use training.devices=1"
            )
        self._trainer, self._module = trainer, pl_module
        pl_module.whole_steps = self._take
        pl_module.is_recorded = self.record is not None and trainer.strategy.root_device.type == "cuda"
        trainer.datamodule.steps_together = self.room  # type: ignore[attr-defined]
        trainer.fit_loop.epoch_loop.automatic_optimization._skip_backward = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.whole_steps = None  # type: ignore[assignment]
        self._recorded = {}  # with the memory that they hold

    def room(self) -> int:
        """Steps up to where something happens in between: the length of the next list."""
        trainer, steps = self._trainer, self._trainer.global_step
        done = trainer.fit_loop.batch_idx + 1  # in this epoch
        ends = [self.most - steps % self.most]
        if trainer.max_steps > 0:
            ends.append(trainer.max_steps - steps)
        if self.every_n_steps is not None:
            ends.append(self.every_n_steps - steps % self.every_n_steps)
        if isinstance(trainer.val_check_batch, int) and trainer.val_check_batch > 0:
            ends.append(trainer.val_check_batch - done % trainer.val_check_batch)
        return max(1, min(ends))

    def _take(self, batches: list[Any]) -> Tensor:
        """The steps of a list; gives the loss of the last."""
        for place, batch in enumerate(batches):
            if place > 0:
                self._count()
                self.seed_step(self._trainer, self._module)
            loss = self._compute(batch) if self.record is None else self._repeat(batch)
        progress = self._trainer.fit_loop.epoch_loop.batch_progress
        progress.is_last_batch = progress.current.ready >= self._trainer.num_training_batches
        return loss

    def _count(self) -> None:
        """Do what Lightning does between two steps. No public interface says that there was one more."""
        for config in self._trainer.lr_scheduler_configs:
            config.scheduler.step()  # type: ignore[call-arg]
        loop = self._trainer.fit_loop.epoch_loop
        steps = loop.automatic_optimization.optim_progress.optimizer.step
        for tracker in (loop.batch_progress.total, loop.batch_progress.current, steps.total, steps.current):
            for field in fields(tracker):
                setattr(tracker, field.name, getattr(tracker, field.name) + 1)
        loop._batches_that_stepped += 1

    def _compute(self, batch: Any) -> Tensor:
        """One step, on whatever stream is the current one; gives its loss."""
        module, [optimizer] = self._module, self._trainer.optimizers
        device = module.device.type
        optimizer.zero_grad()
        dtype, is_enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        # Without its cache, in which weights of an earlier step would be found again.
        with torch.autocast(device, dtype, is_enabled, cache_enabled=False):
            loss = module.step_loss(self._trainer.datamodule.on_after_batch_transfer(batch, 0))  # type: ignore[attr-defined]
        with torch.autocast(device, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
            module.configure_gradient_clipping(optimizer, self._trainer.gradient_clip_val)
            optimizer.step()
        return loss.detach()

    # Graphs ----------------------------------------------------------------------------------------------------------

    def _repeat(self, batch: RowBatch) -> Tensor:
        """One step by the graph of its length, which is made if there were enough steps to warm up."""
        if batch.length in self._recorded:
            return self._recorded[batch.length](batch)
        self._computed[batch.length] = self._computed.get(batch.length, 0) + 1
        assert self.record is not None
        if self._computed[batch.length] <= WARM_UP:
            return self._beside(batch)
        try:
            recorded = self.record(self._compute, batch)
            why = self._difference(recorded, batch)
        except RuntimeError as error:
            why = " ".join(str(error).split())[:120]
        if why is None:
            self._recorded[batch.length] = recorded
            return recorded(batch)
        print(f"\nnote: training.cuda_graph does not work here ({why}): training is slower without it", flush=True)
        self.record = None
        return self._compute(batch)

    def _beside(self, batch: RowBatch) -> Tensor:
        """A computed step on another stream than the usual one, as capturing a graph needs it beforehand."""
        if self._module.device.type != "cuda":
            return self._compute(batch)
        usual = torch.cuda.current_stream()
        self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            loss = self._compute(batch)
        usual.wait_stream(self._stream)
        return loss

    def _difference(self, recorded: Step, batch: RowBatch) -> str | None:
        """Whether what was recorded computes this step, and if not, what it does; afterwards all is as before."""
        optimizer = self._trainer.optimizers[0]
        state = [value for of_one in optimizer.state.values() for value in of_one.values()]
        weights = list(self._module.parameters())
        tensors = [*weights, *state, self._module.epoch_loss]
        before = [tensor.detach().clone() for tensor in tensors]
        changes: list[Tensor] = []
        for step in (self._beside, recorded):
            self.seed_step(self._trainer, self._module)
            step(batch)
            pairs = zip(weights, before, strict=False)
            changes.append(torch.cat([(weight.detach() - was).flatten() for weight, was in pairs]))
            with torch.no_grad():
                for tensor, was in zip(tensors, before, strict=True):
                    tensor.copy_(was)
        self.seed_step(self._trainer, self._module)
        apart, change = float((changes[0] - changes[1]).norm()), float(changes[0].norm())
        if apart <= TOLERANCE * change:
            return None
        return f"a graph's step differs from the computed one by {apart:.2g}, of a change of {change:.2g}"


class CudaGraphs:
    """Records steps as CUDA graphs: their kernels start at once, in the order and at the addresses of the recording.

    All share one memory, since one at a time is repeated.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, step: Step, batch: RowBatch) -> Step:
        """Record a step of which the length of the batch says which kernels run, and nothing on the device does."""
        order, graph = batch.order.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = step(batch._replace(order=order))
        self._pool = graph.pool()

        def repeat(batch: RowBatch) -> Tensor:
            order.copy_(batch.order)
            graph.replay()
            return loss

        return repeat
