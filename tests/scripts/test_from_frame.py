"""`Recommender.fit`: the run of the training script, from a frame, with nothing left behind but its folder."""

import json
import logging
import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import hydra.version
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from src import Recommender
from src.errors import StoppedError, UserError
from tests.scripts.conftest import ROOT, TINY, Table, same_weights, train_here

SETTINGS: dict[str, Any] = {
    **{key: value for key, _, value in (word.partition("=") for word in TINY)},
    "model.hidden_units": 8,
    "model.num_heads": np.int64(2),
    "model.num_layers": 1,
    "model.max_len": 6,
    "training.logger": ["tensorboard"],
    "evaluation.report": False,
    "training.num_epochs": 2,
    "data.batch_size": 6,
}


class SendInterrupt(pl.Callback):
    """Ctrl-C, in the second step of training or in the evaluation after it."""

    def __init__(self, in_training: bool) -> None:
        self.in_training = in_training

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.in_training and trainer.global_step == 1:
            signal.raise_signal(signal.SIGINT)

    def on_test_start(self, *args: Any) -> None:
        if not self.in_training:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def frame(table: Table) -> pd.DataFrame:
    return pd.DataFrame(table.rows, columns=["user", "item", "time"])


def state() -> list[Any]:
    """What a call could change in the process."""
    loggers = [logging.getLogger(name) for name in (None, "pytorch_lightning", "lightning.fabric", "tensorboard")]
    return [
        [(logger.level, list(logger.handlers)) for logger in loggers],
        list(warnings.filters),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        {key: value for key, value in os.environ.items() if key.startswith(("BERT4REC", "PL_", "HYDRA"))},
        hash(random.getstate()),
        torch.initial_seed(),
        np.random.get_state()[1].sum(),  # noqa: NPY002
        GlobalHydra.instance().hydra,
    ]


def interrupted_by(in_training: bool) -> dict[str, Any]:
    entry = {"_target_": f"{__name__}.SendInterrupt", "in_training": in_training}
    return {**SETTINGS, "training.callbacks": [entry]}


def test_it_is_the_run_of_the_script_and_leaves_nothing_else(
    table: Table, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = train_here(table, tmp_path / "script", "training.num_epochs=2", "data.batch_size=6")
    monkeypatch.chdir(tmp_path)
    before = state()
    recommender = Recommender.fit(frame, None, SETTINGS, output_dir=Path("python"))
    assert state() == before
    assert {path.name for path in tmp_path.iterdir()} == {"script", "python"}
    for name in ("best.ckpt", "last.ckpt"):
        assert same_weights(script.folder / "checkpoints" / name, tmp_path / "python" / "checkpoints" / name)
    figures = json.loads((script.folder / "metrics.json").read_text())["figures"]
    assert recommender.metrics == {k: v for rows in figures.values() for k, v in rows["BERT4Rec (best.ckpt)"].items()}
    assert recommender.metrics["test_ndcg@10"] == figures["test"]["BERT4Rec (best.ckpt)"]["test_ndcg@10"]
    again = Recommender.from_checkpoint(script.best)
    histories = list(table.histories.values())
    assert recommender.recommend(histories, 5) == again.recommend(histories, 5)
    assert json.loads(Path("python/metrics.json").read_text())["command"] == "Recommender.fit"


def test_a_preset_that_looks_at_the_data_and_nothing_held_out(
    frame: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SETTINGS, "data.holdout": 0, "training.num_epochs": 1, "output_dir": str(tmp_path)}
    del settings["model.max_len"]
    recommender = Recommender.fit(
        frame.rename(columns={"user": "who"}), "auto", {**settings, "data.columns.user": "who"}
    )
    assert (recommender.max_len, recommender.network.output.in_features) == (30, 8)
    assert recommender.metrics == {}
    out = capsys.readouterr().out
    assert "as you set it: hidden_units=8" in out
    assert "next\n" not in out  # command lines, which are for the scripts


@pytest.mark.parametrize(
    ("preset", "settings", "line"),
    [
        ("tiny", {}, "there is no experiment=tiny: choose from auto, best, "),
        ("small", {"learning_rate": 1.0}, "there is no setting learning_rate: did you mean training.lr?"),
        ("small", {"training.num_epochs": 2.5}, "training.num_epochs=2.5 is not possible: give a whole number"),
        ("small", {"training.num_epochs": object}, "training.num_epochs=<class 'object'> is not possible"),
        ("small", {"training.lr": -1.0}, "training.lr=-1.0 is not possible: give a number above 0"),
        ("small", {"data.download": "ml-1m"}, "data.download=ml-1m is not possible: the frame is the table"),
        ("small", {"training.devices": 2}, "training.devices=2 with training.num_nodes=1 is not possible from Python"),
        ("small", {"training.devices": "auto"}, "training.devices=auto with training.num_nodes=1 is not possible"),
        ("small", {"data.columns.user": "who"}, "the frame has no column who, which data.columns.user names"),
    ],
)
def test_a_mistake_is_one_line(
    preset: str, settings: dict[str, Any], line: str, frame: pd.DataFrame, tmp_path: Path
) -> None:
    before = state()
    with pytest.raises(UserError) as caught:
        Recommender.fit(frame, preset, settings, output_dir=tmp_path / "run")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert state()[:4] == before[:4]


def test_an_interrupted_training_resumes_to_the_same_result(frame: pd.DataFrame, tmp_path: Path) -> None:
    before = state()
    with pytest.raises(StoppedError, match=r"stopped by SIGINT after step 2, .*last\.ckpt has it all"):
        Recommender.fit(frame, None, interrupted_by(in_training=True), output_dir=tmp_path / "a")
    assert state()[:4] == before[:4]
    resumed = Recommender.fit(frame, None, {**SETTINGS, "training.resume": True}, output_dir=tmp_path / "a")
    whole = Recommender.fit(frame, None, SETTINGS, output_dir=tmp_path / "b")
    assert resumed.metrics == whole.metrics


def test_an_interrupted_evaluation_is_a_keyboard_interrupt(frame: pd.DataFrame, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test before this one may have left it ignored
    before = state()
    with pytest.raises(KeyboardInterrupt):
        Recommender.fit(frame, None, interrupted_by(in_training=False), output_dir=tmp_path)
    assert state()[:4] == before[:4]


def test_within_a_program_that_uses_hydra(frame: pd.DataFrame, tmp_path: Path) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.2"):
        before = [each.path for each in GlobalHydra.instance().config_loader().get_search_path().get_path()]
        with pytest.raises(UserError, match="there is no setting nothing"):
            Recommender.fit(frame, "small", {"nothing": 1}, output_dir=tmp_path)
        assert GlobalHydra.instance().is_initialized()
        assert [each.path for each in GlobalHydra.instance().config_loader().get_search_path().get_path()] == before
        assert hydra.version.getbase() == hydra.version.Version("1.2")
