"""The wheel: what it carries, and that its commands work in any folder of a user's, away from the checkout."""

import ast
import os
import shutil
import site
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from src.models.bert4rec import BERT4Rec
from tests.scripts.conftest import ROOT, TINY, Run, Table

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "src", "configs")
CARRIED = (".py", ".c", ".h", ".jinja", ".typed")
# In the folder of a project that has a `src` of its own.
LOAD = """
import importlib, pkgutil, pyarrow, sys
import bert4rec
from bert4rec import Recommender
from bert4rec.models.bert4rec import BERT4Rec
for module in pkgutil.walk_packages(bert4rec.__path__, "bert4rec."):
    importlib.import_module(module.name)
assert "src" not in sys.modules, "the package imports itself by the name of its folder"
import src
assert src.mine
for checkpoint in sys.argv[1:]:
    assert len(BERT4Rec.load_from_checkpoint(checkpoint).predict([[1, 2]], topk=3)[0]) == 3
    assert len(Recommender.from_checkpoint(checkpoint).recommend([["12"]], topk=3)[0]) == 3
frame = pyarrow.table({"user": [1, 1, 1, 2, 2, 2], "item": list("abcbca")})
settings = {"training.num_epochs": 1, "training.accelerator": "cpu", "training.logger": [], "evaluation.report": False}
fitted = Recommender.fit(frame, "small", settings, output_dir="fitted")
assert 0 <= fitted.metrics["test_mrr"] <= 1
"""

PRESET = """# @package _global_
training:
  num_epochs: 2
  callbacks: [{_target_: own.Own}]
seed: 7
"""
CALLBACK = """
import pytorch_lightning as pl
class Own(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        print("an epoch of my own")
"""


@dataclass(frozen=True)
class Installed:
    """The wheel and an environment that has it, with the libraries of the one that runs the tests."""

    wheel: Path
    commands: Path

    def __call__(self, command: str, *words: str, cwd: Path) -> str:
        """Run a command of the environment; what it printed."""
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RUN_BERT4REC")}
        ended = subprocess.run(
            [str(self.commands / command), *words],
            cwd=cwd,
            env={**environment, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


def built(folder: Path) -> Path:
    """The wheel, built from a copy: setuptools writes into the tree that it builds."""
    for name in SOURCES:
        source, target = ROOT / name, folder / "tree" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(folder / "tree")], check=True, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    wheel = built(folder)
    home = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    commands = home / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(commands / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, cwd=folder)
    [packages] = home.rglob("site-packages")
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return Installed(wheel, commands)


def test_it_carries_every_file_of_the_package_the_settings_and_the_licence(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    own = {path for path in (ROOT / "src").rglob("*") if path.suffix in CARRIED and "__pycache__" not in path.parts}
    wanted = {f"bert4rec/{path.relative_to(ROOT / 'src').as_posix()}" for path in own}
    wanted |= {f"bert4rec/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert wanted == {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith("/LICENSE") for name in names)
    assert {path.suffix for path in (ROOT / "src").rglob("*") if path.is_file()} - {".pyc"} == set(CARRIED)


def test_the_package_never_imports_itself_by_the_name_of_its_folder() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level or (node.module or "").partition(".")[0] != "src", f"{path}:{node.lineno}"
            elif isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] != "src" for alias in node.names), f"{path}:{node.lineno}"


def test_help_lists_the_presets(installed: Installed, tmp_path: Path) -> None:
    for command in ("bert4rec-train", "bert4rec-predict"):
        shown = installed(command, "--help", cwd=tmp_path)
        assert "paper/ml-20m" in shown
        assert "model.hidden_units=64" in shown
        assert f"usage: {command} [KEY=VALUE ...]" in shown.replace(f"{installed.commands}{os.sep}", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_trains_and_predicts_in_the_folder_where_it_is_called(
    installed: Installed, table: Table, trained: Run, tmp_path: Path
) -> None:
    """The project has a `src` and a `configs` of its own, with a preset for this package and a callback beside it."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").write_text("mine = True\n")
    preset = tmp_path / "configs" / "experiment" / "mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(PRESET)
    (tmp_path / "configs" / "own.py").write_text(CALLBACK)
    words = ["--config-dir=configs", "experiment=mine", "output_dir=out", *table.overrides, *TINY]
    printed = installed("bert4rec-train", *words, "evaluation.report=true", cwd=tmp_path)
    printed = printed.replace(f"{installed.commands}{os.sep}", "")
    assert "bert4rec-predict --config-dir=configs experiment=mine" in printed
    assert "_bert4rec.py" not in printed
    assert printed.count("an epoch of my own") == 2
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    installed("bert4rec-predict", *words, "inference.topk=2", cwd=tmp_path)
    assert (tmp_path / "out" / "predictions.csv").read_text().startswith("user,item\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configs", "out", "src"]

    last = tmp_path / "out" / "checkpoints" / "last.ckpt"
    assert BERT4Rec.load_from_checkpoint(last).max_len == 6
    installed("python", "-c", LOAD, str(last), str(trained.last), cwd=tmp_path)


@pytest.mark.slow
def test_two_devices_are_two_processes_of_the_command(installed: Installed, table: Table, tmp_path: Path) -> None:
    words = [*table.overrides, *TINY, "training.num_epochs=1", "native=false"]
    installed("bert4rec-train", *words, "training.devices=2", "training.strategy=ddp", "output_dir=two", cwd=tmp_path)
    assert (tmp_path / "two" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("is_parallel", [False, True])
def test_searches_run_too(is_parallel: bool, installed: Installed, table: Table, tmp_path: Path) -> None:
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"] if is_parallel else []
    words = [*table.overrides, *(word for word in TINY if "hidden" not in word), "training.num_epochs=1"]
    sizes = ["model.hidden_units=choice(4,8)", "hydra.sweeper.n_trials=2"]
    shown = installed("bert4rec-train", "-m", "sweep=search", *words, *sizes, *parallel, cwd=tmp_path)
    assert "2 runs, best first" in shown
    assert (tmp_path / "saved" / "bert4rec" / "sweep" / "1" / "checkpoints" / "last.ckpt").exists()
