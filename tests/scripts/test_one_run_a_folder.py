"""One run a folder, with real processes: the second is refused, a killed one stops nothing, readers may come."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import pytest

from src.errors import UserError
from src.runs.folder import RunFolder
from src.training.train import train
from tests.scripts.conftest import TINY, Sessions, Table, call, files_below

LONG = ("training.num_epochs=100000", "data.batch_size=4")
SHORT = ("training.num_epochs=1", "training.logger=[]")


@contextmanager
def training(sessions: Sessions, table: Table, folder: Path, *words: str) -> Iterator[int]:
    """A run in a process of its own that has written its first checkpoint."""
    process = sessions.start("train", *table.overrides, f"output_dir={folder}", *TINY, *words)
    try:
        deadline = time.monotonic() + 120
        while not RunFolder(folder).last.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_a_second_run_is_refused_and_a_killed_one_stops_nothing(
    sessions: Sessions, table: Table, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with training(sessions, table, folder, *LONG) as first:
        before = set(files_below(folder / "checkpoints"))
        second = sessions.launch("train", *table.overrides, "output_dir=run", *TINY, *SHORT, cwd=tmp_path)
        assert second.code == 1
        assert second.out == ""
        assert second.err.count("\n") == 1
        for part in ("output_dir=run is in use", f"process {first}", f"kill {first}", "another output_dir"):
            assert part in second.err
        assert set(files_below(folder / "checkpoints")) >= before
        assert not (folder / "previous").exists()

        predicted = sessions.launch("predict", *table.overrides, "output_dir=run", *TINY, cwd=tmp_path)
        assert (predicted.code, predicted.err) == (0, "")
        assert (folder / "predictions.csv").is_file()
        elsewhere = call(train, *table.overrides, f"output_dir={tmp_path / 'other'}", *TINY, *SHORT)
        assert (elsewhere.code, elsewhere.err) == (0, "")

        os.kill(first, signal.SIGKILL)
        assert sessions.wait()["codes"] == [-signal.SIGKILL]  # until then it ran
    resumed = call(
        train,
        *table.overrides,
        f"output_dir={folder}",
        *TINY,
        "data.batch_size=4",
        "training.resume=true",
        "training.max_steps=100000000",
        "training.num_epochs=100001",
        "training.early_stopping=true",
        "training.early_stopping_patience=1",
    )
    assert (resumed.code, resumed.err) == (0, "")
    assert not (folder / ".running.json").exists()


def test_a_run_that_is_stopped_leaves_the_folder_free(sessions: Sessions, table: Table, tmp_path: Path) -> None:
    with training(sessions, table, tmp_path / "run", *LONG) as first:
        os.kill(first, signal.SIGTERM)
        assert sessions.wait()["codes"] == [143]
    again = call(train, *table.overrides, f"output_dir={tmp_path / 'run'}", *TINY, *SHORT)
    assert (again.code, again.err) == (0, "")
    (archived,) = (tmp_path / "run" / "previous").iterdir()
    assert (archived / "checkpoints" / "last.ckpt").is_file()
    assert not (archived / ".lock").exists()


def test_the_processes_of_one_run_share_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder(tmp_path).locked():
        for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
            with monkeypatch.context() as patch:
                patch.setenv(name, "1")
                with RunFolder(tmp_path).locked():
                    pass
        monkeypatch.setenv("LOCAL_RANK", "0")
        with pytest.raises(UserError, match="in use"), RunFolder(tmp_path).locked():
            pass


def test_a_lock_that_a_dead_run_left_to_its_helpers_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    held = filelock.FileLock(tmp_path / ".lock", is_singleton=False)
    held.acquire()
    holder = {"process": int(dead.stdout), "host": os.uname().nodename, "since": "then"}
    (tmp_path / ".running.json").write_text(json.dumps(holder))
    slept: list[float] = []

    def release(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            held.release()

    monkeypatch.setattr("time.sleep", release)
    with RunFolder(tmp_path).locked():
        assert json.loads((tmp_path / ".running.json").read_text())["process"] == os.getpid()
    assert len(slept) == 3


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"process": "x"}', '{"process": -1, "host": 3}'])
def test_whatever_stands_where_the_holder_does(content: str, tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked():
        (tmp_path / ".running.json").write_text(content)
        with pytest.raises(UserError, match="in use by another run") as caught, RunFolder(tmp_path).locked():
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_the_run_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):  # and leaves nothing that would stop the next one
        with RunFolder(tmp_path / "run").locked():
            pass
    warning = "is on a file system without locks: start no other run in it meanwhile"
    assert capsys.readouterr().out == 2 * f"warning: {tmp_path / 'run'} {warning}\n"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot be written to .*: give another folder"), RunFolder(tmp_path).locked():
        pass


def test_a_sweep_has_its_folder_alone(table: Table, tmp_path: Path) -> None:
    words = ("-m", *table.overrides, f"output_dir={tmp_path}", "seed=1,2")
    (tmp_path / "sweep").mkdir()
    with RunFolder(tmp_path).locked():
        refused = call(lambda config: 0.5, *words)
    assert refused.code == 1
    assert f"output_dir={tmp_path} is in use by another run" in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "previous").exists()
    assert call(lambda config: 0.5, *words).code == 0
    with RunFolder(tmp_path).locked():  # it is free again
        pass


def test_a_run_that_comes_to_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "run").locked():
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
