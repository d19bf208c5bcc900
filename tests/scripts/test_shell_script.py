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
printf '%s\n' "$(basename "$0")" "$@" "" >>"$folder/calls" # in one piece, for others may be at it
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
        checksum = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout.decode()
        return f"{checksum.strip()} {self.root}\n"

    def stamp(self, extra: str = "") -> Path:
        return self.root / ".venv" / f".installed{extra}"

    def is_installed(self, extra: str = "") -> None:
        self.stamp(extra).parent.mkdir(exist_ok=True)
        self.stamp(extra).write_text(self.wanted)

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> Outcome:
        command = [str(self.root / "run_bert4rec.sh"), *arguments]
        outside = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "SYSTEM_PACKAGES")}
        everything = {**outside, "OMP_NUM_THREADS": "1", **environment}
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
    copy.is_installed("[dev]")
    assert copy.run("test", "-k", "one or two").code == 0
    lint, both = copy.calls[:2], sorted(copy.calls[2:])
    assert [call[:3] for call in (*lint, *both)] == [
        ["python", "-m", name] for name in ("ruff", "ruff", "mypy", "pytest")
    ]
    assert "--check" in lint[1]
    assert both[1][-2:] == ["-k", "one or two"]


@pytest.mark.parametrize(
    ("failing", "code", "lines"),
    [
        ("mypy", 5, ["about mypy"]),
        ("pytest", 5, ["about pytest", "about mypy"]),
        ("nothing", 0, ["about mypy"]),
    ],
)
def test_types_are_looked_at_beside_the_tests_and_said_last(
    failing: str, code: int, lines: list[str], copy: Copy
) -> None:
    copy.stand_in(
        "python",
        RECORD
        + f"""
[[ $2 != mypy ]] || echo about mypy
[[ $2 != pytest || {failing} != pytest ]] || echo about pytest
[[ $2 != {failing} ]] || exit 5
""",
    )
    copy.is_installed("[dev]")
    outcome = copy.run("test")
    assert (outcome.code, outcome.out.splitlines(), outcome.err) == (code, lines, "")
    assert [call[2] for call in copy.calls].count("pytest") == 1


def test_tests_do_not_run_where_lint_fails(copy: Copy) -> None:
    copy.stand_in("python", RECORD + "[[ $* != *ruff* ]]\n")
    copy.is_installed("[dev]")
    assert copy.run("test").code != 0
    assert [call[1:3] for call in copy.calls] == [["-m", "ruff"]]


def test_ci_runs_the_test_command(copy: Copy, tmp_path: Path) -> None:
    executable(copy.root / "run_bert4rec.sh", '#!/bin/sh\necho "called with: $*"\n')
    command = [str(copy.root / ".ci" / "run")]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout == "called with: test\n"


def pip_calls(copy: Copy) -> list[list[str]]:
    return [call[1:] for call in copy.calls if call[1:4] == ["-m", "pip", "install"]]


@pytest.mark.parametrize(("command", "extra"), [("train", ""), ("sample", ""), ("test", "[dev]")])
def test_the_first_use_installs_under_the_constraints_and_the_second_does_not(
    command: str, extra: str, bare: Copy
) -> None:
    bare.stand_in("python")
    assert bare.run(command).code == 0
    installed = pip_calls(bare)
    assert all(call[2] == "install" and ".ci/constraints.txt" in call for call in installed)
    assert installed[-1][-1] == "." + extra
    assert bare.stamp(extra).read_text() == bare.wanted
    before = len(bare.calls)
    again = bare.run(command)
    assert (again.code, again.out) == (0, "")
    assert pip_calls(bare) == installed
    assert not any("pip" in call or "-c" in call for call in bare.calls[before:])


@pytest.mark.parametrize("changed", ["pyproject.toml", ".ci/constraints.txt"])
def test_it_installs_again_when_what_it_asks_for_changes(changed: str, copy: Copy) -> None:
    with (copy.root / changed).open("a") as file:
        file.write("# newer\n")
    assert copy.run("predict").code == 0
    assert pip_calls(copy)[-1][-1] == "."
    assert copy.stamp().read_text() == copy.wanted


def test_the_commands_for_users_do_not_count_as_set_up_for_the_tests(copy: Copy) -> None:
    assert copy.run("test").code == 0
    assert pip_calls(copy)[-1][-1] == ".[dev]"


def test_a_failed_installation_is_tried_again(bare: Copy) -> None:
    bare.stand_in("python", RECORD + '[[ $* != *install* || -e "$folder/network" ]]\n')
    outcome = bare.run("train")
    assert outcome.code == 1
    assert outcome.err.startswith("error: the installation did not finish")
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


def test_packages_of_the_system_keep_their_versions(bare: Copy, tmp_path: Path) -> None:
    maker = 'mkdir -p "$3/bin"; cp "$(dirname "$0")/record" "$3/bin/python"\n'
    config = '[ "$5" = --system-site-packages ] && echo "include-system-site-packages = true" >"$3/pyvenv.cfg"; true\n'
    executable(tmp_path / "chosen", f'#!/bin/sh\nif [ "$2" = venv ]; then {maker}{config}fi\n')
    executable(tmp_path / "record", RECORD)
    assert bare.run("train", PYTHON=str(tmp_path / "chosen"), SYSTEM_PACKAGES="1").code == 0
    bare.stamp().unlink()
    assert bare.run("train").code == 0  # the environment itself remembers
    assert len(pip_calls(bare)) == 4
    assert not any(".ci/constraints.txt" in call for call in pip_calls(bare))


# A Python whose `-m venv` makes an environment of stand-ins; `PIP` says what its pip does.
MAKER = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then [[ $2 != *print* ]] || echo 3.12; exit 0; fi
if [[ -e "$(dirname "$0")/broken" ]]; then mkdir -p "$3/bin"; cat "$(dirname "$0")/broken"; exit 1; fi
[[ $4 != --clear ]] || rm -rf "$3"
mkdir -p "$3/bin"; cp "$(dirname "$0")/record" "$3/bin/python"
"""
ENSUREPIP = "The virtual environment was not created successfully because ensurepip is not\navailable.\n"


@pytest.fixture
def maker(tmp_path: Path) -> Path:
    executable(tmp_path / "record", RECORD)
    executable(tmp_path / "maker", MAKER)
    return tmp_path / "maker"


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        (ENSUREPIP, ["sudo apt install python3.12-venv", "run this again"]),
        ("/usr/bin/python3: No module named venv\n", ["sudo apt install python3.12-venv"]),
        ("Error: [Errno 28] No space left on device\n", ["No space left on device", "my copy"]),
    ],
)
def test_an_environment_that_cannot_be_made_leaves_nothing(
    said: str, parts: list[str], bare: Copy, maker: Path
) -> None:
    (maker.parent / "broken").write_text(said)
    outcome = bare.run("train", PYTHON=str(maker))
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert all(part in outcome.err for part in parts)
    assert not (bare.root / ".venv").exists()
    (maker.parent / "broken").unlink()
    assert bare.run("train", PYTHON=str(maker)).code == 0
    assert bare.calls[-1] == ["python", "train_bert4rec.py"]


@pytest.mark.parametrize(
    "python",
    [
        "#!/bin/sh\n[ $2 != pip ]\n",  # without pip, as a failed `python3 -m venv` leaves it
        "#!/bin/sh\n[ $1 != -c ]\n",  # too old
        "#!/nowhere/python\n",  # of a Python, or a folder, that is gone
        None,  # hardly begun
    ],
)
@pytest.mark.parametrize("is_stamped", [False, True])
def test_an_environment_that_does_not_work_is_made_anew(
    python: str | None, is_stamped: bool, bare: Copy, maker: Path
) -> None:
    (bare.root / ".venv").mkdir()
    (bare.root / ".venv" / "left over").touch()
    if python is not None:
        bare.stand_in("python", python)
    if is_stamped:  # of the folder that this one was copied from
        bare.stamp().write_text(bare.wanted.replace("my copy", "elsewhere"))
    (maker.parent / "python3").symlink_to(maker)
    outcome = bare.run("train", PATH=f"{maker.parent}:{os.environ['PATH']}")
    assert (outcome.code, outcome.err) == (0, "")
    assert ".venv does not work" in outcome.out
    assert not (bare.root / ".venv" / "left over").exists()
    assert bare.calls[-1] == ["python", "train_bert4rec.py"]
    assert bare.stamp().read_text() == bare.wanted


def test_an_environment_behind_a_link_is_left_alone(bare: Copy, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "mine").touch()
    (bare.root / ".venv").symlink_to(tmp_path / "shared")
    outcome = bare.run("train")
    assert outcome.code == 1
    assert outcome.err == f"error: .venv is a link to {tmp_path}/shared: remove the link, or set that environment up\n"
    assert (tmp_path / "shared" / "mine").exists()


def test_a_moved_folder_is_installed_anew(copy: Copy, tmp_path: Path) -> None:
    copy.root.rename(tmp_path / "moved")
    copy.root = tmp_path / "moved"
    assert copy.run("train").code == 0
    assert pip_calls(copy)[-1][-1] == "."
    assert copy.stamp().read_text() == copy.wanted


def test_another_python_than_that_of_the_environment(copy: Copy, maker: Path) -> None:
    outcome = copy.run("train", PYTHON=str(maker))
    assert outcome.code == 0
    assert "making it anew" in outcome.out


def test_no_python_is_one_line(bare: Copy) -> None:
    outcome = bare.run("train", PYTHON="/no/such/python")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "there is no /no/such/python: install Python 3.11" in outcome.err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch comes without CUDA")
def test_the_size_of_the_download_is_said_before_it(bare: Copy) -> None:
    kept = dict.fromkeys(("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"), "")
    bare.stand_in("python")
    out = bare.run("train", **kept).out
    assert "with CUDA: a download of some 3 GB" in out
    assert f"PIP_EXTRA_INDEX_URL=ADDRESS {bare.root}/run_bert4rec.sh" in out
    assert not any("--quiet" in call for call in pip_calls(bare))
    bare.stamp().unlink()
    assert "from the package index in PIP" in bare.run("train", **kept | {"PIP_EXTRA_INDEX_URL": "x"}).out
    (bare.root / ".venv" / "lib" / "python3.11" / "site-packages" / "torch").mkdir(parents=True)
    bare.stamp().unlink()
    assert "CUDA" not in bare.run("train", **kept).out


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
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "checkpoints",
        "logs",
        "metrics.json",
        "predictions.csv",
    }
    assert len((folder / "predictions.csv").read_text().splitlines()) == 1 + 3 * 25
    assert outcome.out.index("run_bert4rec.sh' predict 'data.data_dir=") < outcome.out.index("75 rows for 25 users")
