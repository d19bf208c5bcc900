"""Compiled code as the scripts have it: where there is a compiler, where there is none, and by `native`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from src.kernels import compiler
from src.prediction.predict import predict
from src.training.train import train
from tests.kernels import needs_compiler
from tests.scripts.conftest import TINY, Run, Table, call, checkpoint, files_below, train_here

NOTE = "note: no compiled kernels, so training takes 1.2 to 3 times as long: there is no C compiler"


@pytest.fixture
def _no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a compiler nor what one has made before."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    compiler._load.cache_clear()
    yield
    compiler._load.cache_clear()


@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler_training_and_prediction_go_without(table: Table, tmp_path: Path) -> None:
    run = train_here(table, tmp_path / "run", "training.num_epochs=1")
    assert NOTE in run.out
    assert call(predict, *table.overrides, f"output_dir={tmp_path / 'run'}").code == 0


@pytest.mark.usefixtures("_no_compiler")
def test_native_true_without_a_compiler_is_one_line_and_loses_nothing(table: Table, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_here(table, folder, "native=false", "training.num_epochs=1")
    before = files_below(folder)
    settings = (f"output_dir={folder}", *TINY, "native=true")
    for task in (train, predict):
        outcome = call(task, *table.overrides, *(settings if task is train else (settings[0], "native=true")))
        assert outcome.code == 1
        assert outcome.err.startswith("error: native=true is not possible: there is no C compiler (cc, gcc, clang);")
        assert outcome.err.count("\n") == 1
        assert files_below(folder) == before


@needs_compiler
def test_native_false_is_the_same_by_torch(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("model.dropout_rate=0", "training.num_epochs=2")
    compiled = train_here(table, tmp_path / "compiled", "native=true", *settings)
    monkeypatch.setattr(compiler, "_load", None)  # would be an error if it were asked for
    plain = train_here(table, tmp_path / "plain", "native=false", *settings)
    for run in (compiled, plain):
        assert "no compiled kernels" not in run.out
    one, other = (checkpoint(run.last)["state_dict"] for run in (compiled, plain))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=2e-4)


def test_a_checkpoint_predicts_alike_with_and_without_it(table: Table, trained: Run, tmp_path: Path) -> None:
    tables = []
    for native in ("auto", "false"):
        path = tmp_path / f"{native}.csv"
        settings = (f"output_dir={trained.folder}", f"inference.output_path={path}", f"native={native}")
        assert call(predict, *table.overrides, *settings).code == 0
        tables.append(path.read_text())
    assert tables[0] == tables[1]
