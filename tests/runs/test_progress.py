"""The bar fits its terminal and leaves its line to what comes next; a file gets plain lines."""

import os
from typing import Any
from unittest import mock

import pytest

from src.runs import progress
from src.runs.progress import Progress

LONG = ("training.num_epochs=100000", "data.batch_size=1", "data.num_workers=0")


def trainer_at(batch: int, **changes: Any) -> mock.Mock:
    values = {"is_last_batch": False, "global_step": batch, "max_steps": -1, "num_training_batches": 10} | changes
    values["fit_loop"] = mock.Mock(batch_idx=batch)
    return mock.Mock(**values, current_epoch=3, progress_bar_metrics={"train_loss_epoch": 6.5, "val_mrr": 0.25})


@pytest.mark.parametrize("last", [{"is_last_batch": True}, {"global_step": 70, "max_steps": 70}])
def test_the_bar_is_drawn_at_intervals_and_for_the_last_step(monkeypatch: pytest.MonkeyPatch, last: dict) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    bar, drawn = Progress(), []
    bar._train_progress_bar = mock.Mock(disable=True)
    bar._trainer = mock.Mock(num_training_batches=10)
    for batch in range(10):
        bar.train_progress_bar.n = None
        bar.on_train_batch_end(trainer_at(batch, **(last if batch == 9 else {})), mock.Mock(), None, None, batch)
        drawn += [batch] if bar.train_progress_bar.n == batch + 1 else []
        now += 0.03
    assert drawn == [0, 4, 8, 9]


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_figures_give_way_before_the_bar_does(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = Progress("val_ndcg@10")
    metrics = {"train_loss": 6.54321, "val_ndcg@10": 0.0123, "val_hit@10": 0.5}
    monkeypatch.setattr(bar, "get_metrics", lambda *_: metrics)
    drawn = progress.Tqdm(total=12345, initial=1234, file=open(os.devnull, "w"), bar_format=bar.BAR_FORMAT)  # noqa: SIM115
    drawn.set_description_str("epoch 123")
    drawn.set_postfix_str(bar._figures(mock.Mock(), mock.Mock(), drawn))
    line = drawn.format_meter(**drawn.format_dict | {"ncols": columns, "ascii": False})
    assert len(line) <= columns
    assert len(line.split("|")[1]) >= min(progress.NARROWEST_BAR, columns - 36)
    assert ("loss 6.543" in line) == (columns > 60)
    assert ("val_ndcg@10 0.0123" in line) == (columns > 80)


def test_long_epochs_tell_how_far_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    bar = Progress("val_mrr")
    bar._trainer = mock.Mock(num_training_batches=5000)
    bar._train_progress_bar = mock.Mock(disable=True)
    monkeypatch.setattr(bar, "get_metrics", lambda *_: {"train_loss": 6.5, "val_mrr": 0.25})
    for batch in range(13):
        bar.on_train_batch_end(trainer_at(batch), mock.Mock(), None, None, batch)
        now += 10.0
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3, step 7 of 5,000, loss 6.5, val_mrr 0.25",
        "epoch 3, step 13 of 5,000, loss 6.5, val_mrr 0.25",
    ]
