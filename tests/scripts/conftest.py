"""What the tests of the scripts share: a small table, a trained model, and ways to run a script as a user does.

`launch` starts a process of its own, which costs seconds; `call` runs the same code, command line and all, in this one.
"""

import copy
import csv
import functools
import io
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import pytest
import torch
from hydra._internal.hydra import Hydra

from src.command_line import cli
from src.settings import Config, parse
from src.training.train import train

ROOT = Path(__file__).resolve().parents[2]

ITEMS = ("0012", "12", "film,3", 'the "best"', "été", *(f"item {n}" for n in range(12)))  # 17
REGULARS = ("007", "7", "user,42", *(f"u{n}" for n in range(20)))  # 23, with 3 to 7 interactions each
BRIEF, LONELY = "brief", "lonely"  # two interactions; one, with an item that nobody else has
LONELY_ITEM = "unheard of"

TINY = (
    "model.hidden_units=8",
    "model.num_heads=2",
    "model.num_layers=1",
    "model.max_len=6",
    "training.accelerator=cpu",
    "training.logger=[tensorboard]",  # csv costs a tenth of a second
    "evaluation.report=false",  # a second
)

Row = tuple[str, str, int]


@dataclass(frozen=True)
class Table:
    """A CSV and what is in it."""

    path: Path
    rows: list[Row]  # in the order of the file

    @property
    def overrides(self) -> tuple[str, str]:
        return f"data.data_dir={self.path.parent}", f"data.data_file={self.path.name}"

    @property
    def histories(self) -> dict[str, list[str]]:
        """Items of each user by time; users in order of first appearance in the file."""
        histories: dict[str, list[str]] = {user: [] for user, _, _ in self.rows}
        for user, item, _ in sorted(self.rows, key=lambda row: row[2]):
            histories[user].append(item)
        return histories


@dataclass(frozen=True)
class Outcome:
    """How a script ended."""

    code: Any
    out: str
    err: str


@dataclass(frozen=True)
class Run:
    """The output folder of a training run."""

    folder: Path
    out: str

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"


def make_rows() -> list[Row]:
    """Interactions of all users, shuffled; the times of a user are distinct."""
    generator = random.Random(3)
    histories = {user: generator.sample(ITEMS, 3 + n % 5) for n, user in enumerate(REGULARS)}
    histories |= {BRIEF: [ITEMS[4], ITEMS[1]], LONELY: [LONELY_ITEM]}
    rows = [(user, item, 1000 + 7 * place) for user, items in histories.items() for place, item in enumerate(items)]
    generator.shuffle(rows)
    return rows


def write_table(path: Path, rows: Iterable[Row]) -> Table:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("user", "item", "time"), *rows])
    return Table(path, rows)


def launch(script: str, *overrides: str, cwd: Path) -> Outcome:
    """Run a script of this repository in a process of its own, from the folder `cwd`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
    command = [sys.executable, str(ROOT / script), *overrides]
    ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def call(task: Callable[[Config], float | None], *overrides: str, can_sweep: bool = True) -> Outcome:
    """Run a script's task with a command line in this process; an error that would be a traceback is raised."""
    code: Any = 0
    out, err = io.StringIO(), io.StringIO()
    with (
        warnings.catch_warnings(record=True),  # Lightning's advice on so small a run
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="0"),
        mock.patch.object(sys, "argv", ["script.py", *overrides]),
        # For this Hydra composes all settings once more, which takes a tenth of a second; none of ours sets hydra.mode.
        nullcontext() if "hydra.mode" in str(overrides) else mock.patch.object(Hydra, "get_mode", return_value=None),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.run(task, can_sweep)
        except SystemExit as exit_:
            code = exit_.code
    return Outcome(code, out.getvalue(), err.getvalue())


def train_here(table: Table, folder: Path, *overrides: str) -> Run:
    """Train a tiny model in this process, which must succeed."""
    outcome = call(train, *table.overrides, f"output_dir={folder}", *TINY, *overrides)
    assert (outcome.code, outcome.err) == (0, "")
    return Run(folder, outcome.out)


@functools.cache
def _composed(*overrides: str) -> Config:
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return parse(hydra.compose("bert4rec", list(overrides)))


def compose(*overrides: str) -> Config:
    """The settings that a command line gives."""
    return copy.deepcopy(_composed(*overrides))


def checkpoint(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold bit-identical weights."""
    a, b = checkpoint(one)["state_dict"], checkpoint(other)["state_dict"]
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def files_below(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file but the lock of the folder, of which nothing follows."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return write_table(tmp_path_factory.mktemp("data") / "ratings.csv", make_rows())


@pytest.fixture(scope="session")
def trained(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 6 epochs of 4 steps whose best epoch is neither the first nor the last; not to be written to."""
    for seed in range(42, 52):
        settings = ("training.num_epochs=6", "training.lr=0.02", "data.batch_size=6", f"seed={seed}")
        run = train_here(table, tmp_path_factory.mktemp("trained"), *settings)
        if checkpoint(run.best)["epoch"] not in (0, 5):
            return run
    pytest.fail("in ten runs best.ckpt always was of the first or the last epoch")


@dataclass(frozen=True)
class Sessions:
    """Sessions in processes of their own that start within a moment; see `tests.scripts.forked`."""

    process: subprocess.Popen[str]

    def __call__(self, script: str, *overrides: str, **faults: Any) -> dict[str, Any]:
        """Run one, or several together, and wait for the end."""
        return self._checked(self._ask(script=script, overrides=overrides, **faults))

    def launch(self, script: str, *overrides: str, cwd: Path) -> Outcome:
        """As `launch` of this module."""
        answer = self(script, *overrides, cwd=str(cwd), called=str(ROOT / f"{script}_bert4rec.py"))
        return Outcome(answer["codes"][0], answer["outputs"][0], answer["errors"][0])

    def start(self, script: str, *overrides: str, **faults: Any) -> int:
        """Start one that `wait` waits for, others may run meanwhile; its process."""
        [process] = self._ask(script=script, overrides=overrides, background=True, **faults)["processes"]
        return int(process)

    def wait(self) -> dict[str, Any]:
        return self._checked(self._ask(wait=True))

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        assert not any("Traceback" in error for error in answer["errors"]), answer["errors"]
        return answer


@pytest.fixture(scope="session")
def sessions() -> Iterator[Sessions]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
    command = [sys.executable, "-m", "tests.scripts.forked"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Sessions(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
