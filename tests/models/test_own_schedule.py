"""A subclass with optimiser and schedule of its own, as docs/README_bert4rec.md shows, trains by them."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from src.data import BERT4RecDataModule
from src.models import BERT4Rec
from tests.data import write_histories


class Stepwise(BERT4Rec):
    """Decay and a schedule that no setting offers."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.4, weight_decay=0.25)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


@pytest.fixture
def data(tmp_path: Path) -> BERT4RecDataModule:
    path = write_histories(tmp_path / "table.csv", {f"u{user}": "a b c d e" for user in range(6)})
    return BERT4RecDataModule(str(path.parent), path.name, batch_size=4, max_len=5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_subclass_keeps_its_own_optimiser_and_schedule(data: BERT4RecDataModule) -> None:
    data.setup()
    model = Stepwise(num_items=data.num_items, hidden_units=8, num_heads=2, num_layers=1, max_len=5)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    [group] = trainer.optimizers[0].param_groups
    assert (group["weight_decay"], group["lr"]) == (0.25, 0.1)
