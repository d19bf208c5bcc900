"""Memory given back to the system while batches are trained on or scored."""

from typing import Any

import pytorch_lightning as pl

from . import memory


class FreedMemory(pl.Callback):
    """Gives memory that was freed back to the system from time to time."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step % memory.STEPS_BETWEEN == 0:
            memory.give_back()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx % memory.BATCHES_BETWEEN == memory.BATCHES_BETWEEN - 1:
            memory.give_back()

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
