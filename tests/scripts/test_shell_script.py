"""run_bert4rec.sh in a copy of the repository: what it starts, with which arguments, and when it installs.

The copy's `.venv/bin` holds stand-ins: they write down how they were called, or hand over to the Python of this run.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripts.conftest import ROOT, TINY, Outcome, make_rows, write_table

USAGE = "usage: ./run_bert4rec.sh train|predict|both"
ODD_OVERRIDES = ("data.data_dir=/some where/my data", "evaluation.topk=[5,10]", "data.data_file=*.csv", "seed=$HOME")

# Writes its name and arguments, one to a line, to `calls`, and fails if `fails` names the script it is to run.
RECORD = """#!/usr/bin/env bash
folder=$(dirname "$0")/../..
{
    basename "$0"
    for argument; do echo "$argument"; done
    echo
} >>"$folder/calls"
if [[ -e "$folder/fails" && $1 == $(<"$folder/fails") ]]; then exit 3; fi
"""


def executable(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)


class Copy:
    """A copy of the repository whose path has a space in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("src", "configs", ".ci"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("train_bert4rec.py", "predict_bert4rec.py", "run_bert4rec.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, root / name)

    def stand_in(self, name: str, content: str = RECORD) -> None:
        executable(self.root / ".venv" / "bin" / name, content)

    @property
    def wanted(self) -> str:
        """What the script stamps a finished installation with."""
        content = (self.root / "pyproject.toml").read_bytes() + (self.root / ".ci" / "constraints.txt").read_bytes()
        return subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout.decode()

    def stamp(self, extra: str = "") -> Path:
        return self.root / ".venv" / f".installed{extra}"

    def is_installed(self, extra: str = "") -> None:
        self.stamp(extra).parent.mkdir(exist_ok=True)
        self.stamp(extra).write_text(self.wanted)

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> Outcome:
        command = [str(self.root / "run_bert4rec.sh"), *arguments]
        everything = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        ended = subprocess.run(
            command, cwd=cwd or self.root, env=everything, capture_output=True, text=True, timeout=300
        )
        return Outcome(ended.returncode, ended.stdout, ended.stderr)

    @property
    def calls(self) -> list[list[str]]:
        """Name and arguments of each stand-in called, in order."""
        path = self.root / "calls"
        return [block.split("\n") for block in path.read_text().split("\n\n") if block] if path.exists() else []


@pytest.fixture
def bare(tmp_path: Path) -> Copy:
    """Nothing installed."""
    return Copy(tmp_path / "my copy")


@pytest.fixture
def copy(bare: Copy) -> Copy:
    """Installed, with a Python that only records."""
    bare.stand_in("python")
    bare.is_installed()
    return bare


def test_no_command_prints_the_usage_and_exits_2(bare: Copy) -> None:
    outcome = bare.run()
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(USAGE)
    assert not (bare.root / ".venv").exists()


def test_an_unknown_command_prints_the_usage_and_exits_2(bare: Copy) -> None:
    outcome = bare.run("tran", "training.lr=0.1")
    assert (outcome.code, outcome.out) == (2, "")
    assert USAGE in outcome.err
    assert not (bare.root / ".venv").exists()


@pytest.mark.parametrize("command", ["help", "--help", "-h"])
def test_help_names_every_command(command: str, bare: Copy) -> None:
    outcome = bare.run(command)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(USAGE)
    assert all(word in outcome.out for word in ("train", "predict", "both", "sample", "test", "data.data_dir="))
    assert not (bare.root / ".venv").exists()


@pytest.mark.parametrize(
    ("command", "started"),
    [
        ("train", [["train_bert4rec.py"]]),
        ("predict", [["predict_bert4rec.py"]]),
        ("both", [["train_bert4rec.py"], ["predict_bert4rec.py"]]),
        ("sample", [["train_bert4rec.py", "experiment=sample"], ["predict_bert4rec.py", "experiment=sample"]]),
    ],
)
@pytest.mark.parametrize("overrides", [(), ODD_OVERRIDES])
def test_commands_start_the_scripts_with_all_overrides(
    command: str, started: list[list[str]], overrides: tuple[str, ...], copy: Copy, tmp_path: Path
) -> None:
    outcome = copy.run(command, *overrides, cwd=tmp_path)  # the user may stand anywhere
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert copy.calls == [["python", *arguments, *overrides] for arguments in started]


@pytest.mark.parametrize("command", ["both", "sample"])
def test_prediction_does_not_start_after_failed_training(command: str, copy: Copy) -> None:
    (copy.root / "fails").write_text("train_bert4rec.py")
    assert copy.run(command).code == 3
    assert [call[1] for call in copy.calls] == ["train_bert4rec.py"]


@pytest.mark.parametrize("command", ["predict", "both"])
def test_a_failed_prediction_is_the_exit_code(command: str, copy: Copy) -> None:
    (copy.root / "fails").write_text("predict_bert4rec.py")
    assert copy.run(command).code == 3


def test_the_test_command_runs_lint_types_and_tests(copy: Copy) -> None:
    copy.stand_in("ruff")
    copy.stand_in("mypy")
    copy.is_installed("[dev]")
    assert copy.run("test", "-k", "one or two").code == 0
    names = [call[:2] for call in copy.calls]
    assert names == [["ruff", "check"], ["ruff", "format"], ["mypy"], ["python", "-m"]]
    assert "--check" in copy.calls[1]
    assert copy.calls[-1][2] == "pytest"
    assert copy.calls[-1][-2:] == ["-k", "one or two"]


def test_tests_do_not_run_where_lint_fails(copy: Copy) -> None:
    copy.stand_in("ruff", "#!/bin/sh\nexit 1\n")
    copy.stand_in("mypy")
    copy.is_installed("[dev]")
    assert copy.run("test").code != 0
    assert copy.calls == []


def test_ci_runs_the_test_command(copy: Copy, tmp_path: Path) -> None:
    executable(copy.root / "run_bert4rec.sh", '#!/bin/sh\necho "called with: $*"\n')
    command = [str(copy.root / ".ci" / "run")]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout == "called with: test\n"


def pip_calls(copy: Copy) -> list[list[str]]:
    return [call[1:] for call in copy.calls if call[1:3] == ["-m", "pip"]]


@pytest.mark.parametrize(("command", "extra"), [("train", ""), ("sample", ""), ("test", "[dev]")])
def test_the_first_use_installs_under_the_constraints_and_the_second_does_not(
    command: str, extra: str, bare: Copy
) -> None:
    for name in ("python", "ruff", "mypy"):
        bare.stand_in(name)
    assert bare.run(command).code == 0
    installed = pip_calls(bare)
    assert all(call[2] == "install" and ".ci/constraints.txt" in call for call in installed)
    assert installed[-1][-1] == "." + extra
    assert bare.stamp(extra).read_text() == bare.wanted
    before = len(bare.calls)
    assert bare.run(command).code == 0
    assert pip_calls(bare) == installed
    assert len(bare.calls) == 2 * before - len(installed)


@pytest.mark.parametrize("changed", ["pyproject.toml", ".ci/constraints.txt"])
def test_it_installs_again_when_what_it_asks_for_changes(changed: str, copy: Copy) -> None:
    with (copy.root / changed).open("a") as file:
        file.write("# newer\n")
    assert copy.run("predict").code == 0
    assert pip_calls(copy)[-1][-1] == "."
    assert copy.stamp().read_text() == copy.wanted


def test_the_commands_for_users_do_not_count_as_set_up_for_the_tests(copy: Copy) -> None:
    copy.stand_in("ruff")
    copy.stand_in("mypy")
    assert copy.run("test").code == 0
    assert pip_calls(copy)[-1][-1] == ".[dev]"


def test_a_failed_installation_is_tried_again(bare: Copy) -> None:
    bare.stand_in("python", RECORD + '[[ $* != *install* || -e "$folder/network" ]]\n')
    assert bare.run("train").code != 0
    assert not bare.stamp().exists()
    assert not any("train_bert4rec.py" in call for call in bare.calls)
    (bare.root / "network").touch()
    assert bare.run("train").code == 0
    assert ["python", "train_bert4rec.py"] in bare.calls


def test_an_old_python_is_refused_in_one_line(bare: Copy, tmp_path: Path) -> None:
    executable(tmp_path / "old", "#!/bin/sh\nexit 1\n")
    outcome = bare.run("train", PYTHON=str(tmp_path / "old"))
    assert outcome.code == 1
    assert outcome.err.startswith("error: Python 3.11")
    assert outcome.err.count("\n") == 1
    assert "PYTHON=" in outcome.err
    assert not (bare.root / ".venv").exists()


def test_python_names_the_interpreter_of_the_environment(bare: Copy, tmp_path: Path) -> None:
    executable(
        tmp_path / "chosen",
        '#!/bin/sh\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$(dirname "$0")/record" "$3/bin/python"; fi\n',
    )
    executable(tmp_path / "record", RECORD)
    assert bare.run("train", PYTHON=str(tmp_path / "chosen")).code == 0
    assert pip_calls(bare)[-1][-1] == "."
    assert bare.calls[-1] == ["python", "train_bert4rec.py"]


@pytest.fixture
def hand_over(bare: Copy) -> Callable[..., Outcome]:
    """Run with the Python of this test run; nothing is installed."""
    bare.stand_in("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    bare.is_installed()
    return bare.run


def test_both_trains_and_predicts(hand_over: Callable[..., Outcome], tmp_path: Path) -> None:
    data = write_table(tmp_path / "the data" / "my ratings.csv", make_rows())
    folder = tmp_path / "the run"
    overrides = (*data.overrides, f"output_dir={folder}", *TINY, "training.num_epochs=1", "inference.topk=3")
    outcome = hand_over("both", *overrides)
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "logs", "metrics.json", "predictions.csv"}
    assert len((folder / "predictions.csv").read_text().splitlines()) == 1 + 3 * 25
    assert outcome.out.index("./run_bert4rec.sh predict 'data.data_dir=") < outcome.out.index("75 rows for 25 users")
