"""Callbacks and loggers of a person's own, from a preset and a module in a folder that --config-dir names."""

import sys
from pathlib import Path

import pytest

from src.training.train import train
from tests.scripts.conftest import TINY, Outcome, Table, call, checkpoint, files_below, same_weights, train_here

MODULE = """
import pytorch_lightning as pl

class Counter(pl.Callback):
    def __init__(self, limits):
        assert type(limits) is list
        self.epochs = 0

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1
        print("counted", self.epochs, *(type(each).__name__ for each in trainer.callbacks[-3:]))

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]

class Hoarder(pl.Callback):
    def state_dict(self):
        return {"trainer": pl.Trainer}
"""
PRESET = """# @package _global_
training:
  logger:
    - tensorboard
    - {_target_: pytorch_lightning.loggers.CSVLogger, save_dir: "${output_dir}", name: mine}
  callbacks:
    - {_target_: own_counter.Counter, limits: [1, 2]}
    - _target_: pytorch_lightning.callbacks.ModelCheckpoint
      dirpath: ${output_dir}/own
      filename: "{step}"
      monitor: val_mrr
      mode: max
      save_top_k: 2
"""


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a preset `mine` and the module that it needs."""
    folder = tmp_path / "conf"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text(PRESET)
    (folder / "own_counter.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_counter", raising=False)
    return folder


def test_they_run_keep_their_state_and_leave_the_weights_alone(presets: Path, table: Table, tmp_path: Path) -> None:
    words = (f"--config-dir={presets}", "experiment=mine")
    tiny = [word for word in TINY if not word.startswith("training.logger")]
    outcome = call(train, *words, *table.overrides, f"output_dir={tmp_path / 'run'}", *tiny, "training.num_epochs=1")
    assert (outcome.code, outcome.err) == (0, "")
    assert "counted 1 ModelCheckpoint ModelCheckpoint LastCheckpoint" in outcome.out
    more = ("training.resume=true", "training.num_epochs=3")
    outcome = call(train, *words, *table.overrides, f"output_dir={tmp_path / 'run'}", *tiny, *more)
    assert (outcome.code, outcome.err) == (0, "")
    assert "counted 1 " not in outcome.out
    assert "counted 3 " in outcome.out
    assert len(list((tmp_path / "run" / "own").iterdir())) == 2  # the best two of both sessions
    assert len(list((tmp_path / "run" / "mine").glob("*/metrics.csv"))) == 2
    plain = train_here(table, tmp_path / "plain", "training.num_epochs=3")
    last, best = (tmp_path / "run" / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    assert same_weights(last, plain.last)
    assert same_weights(best, plain.best)
    assert "own_counter" not in str(checkpoint(last)["run"]["settings"])


def refused(presets: Path, table: Table, folder: Path, setting: str) -> Outcome:
    """A run that ends with one line, and leaves everything as it was."""
    before = files_below(folder)
    outcome = call(train, f"--config-dir={presets}", *table.overrides, f"output_dir={folder}", *TINY, setting)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert files_below(folder) == before
    return outcome


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("callbacks=[{_target_:no_such.Thing}]", ["No module named 'no_such'", "the folder of --config-dir"]),
        ("callbacks=[{_target_:own_counter.Thing}]", ["own_counter.Thing", "the folder of --config-dir"]),
        ("callbacks=[{_target_:own_counter.Counter,every:2}]", ["argument 'every'", "the arguments that it takes"]),
        ("callbacks=[{_target_:builtins.list}]", ["builtins.list", "must be a Callback of pytorch_lightning"]),
        ("callbacks=[{_target_:pytorch_lightning.callbacks.TQDMProgressBar}]", ["TQDMProgressBar", "progress bar"]),
        ("logger=[{_target_:own_counter.Hoarder}]", ["training.logger", "must be a Logger of pytorch_lightning"]),
        ("callbacks=[mine]", ["training.callbacks=[mine] is not possible: give a list of {_target_:MODULE.CLASS}"]),
    ],
)
def test_a_part_that_cannot_be_made(
    setting: str, parts: list[str], presets: Path, table: Table, tmp_path: Path
) -> None:
    outcome = refused(presets, table, tmp_path / "run", f"training.{setting}")
    assert [part for part in parts if part not in outcome.err] == []


def test_a_state_that_no_checkpoint_could_be_read_with(presets: Path, table: Table, tmp_path: Path) -> None:
    words = (f"--config-dir={presets}", *table.overrides, f"output_dir={tmp_path / 'run'}", *TINY)
    outcome = call(train, *words, "training.callbacks=[{_target_:own_counter.Hoarder}]")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "the callback Hoarder has a state_dict that no checkpoint can hold" in outcome.err
