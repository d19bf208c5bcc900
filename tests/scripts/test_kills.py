"""`kill -9` at any moment, full and vanished disks: nothing of what was there is lost, and the end is the same."""

import errno
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from src import atomic_files
from src.runs import checkpoint as checkpoints
from src.training.callbacks import LastCheckpoint
from src.training.train import train
from tests.scripts.conftest import TINY, Run, Sessions, Table, call, checkpoint, same_weights, train_here
from tests.scripts.forked import STAGES
from tests.scripts.test_resume import FIVE, assert_same

SETTINGS = (
    *FIVE,
    "training.checkpoint_every_n_steps=3",
    "model.dropout_rate=0.2",
    "training.logger=[tensorboard,csv]",
)


@pytest.fixture(scope="module")
def whole(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_here(table, tmp_path_factory.mktemp("whole"), *SETTINGS)


def assert_loadable(folder: Path) -> None:
    for path in (folder / "checkpoints").glob("*.ckpt"):
        checkpoints.load(path)


def kill_again_and_again(sessions: Sessions, table: Table, whole: Run, folder: Path, kills: int, seed: int) -> int:
    """Runs that are killed until so many kills have hit; every one that comes to its end must equal `whole`.

    Returns:
        How many runs came to their end.
    """
    generator = random.Random(seed)
    overrides = (*table.overrides, *TINY, *SETTINGS, "training.resume=auto")
    usual = sessions("train", *overrides, f"output_dir={folder / 'timed'}")["seconds"]
    hits, finished = 0, 0
    while True:
        run = folder / f"run {finished}"
        fault: dict[str, Any] = {}
        if hits < kills and generator.random() < 0.5:
            fault = {"kill_after": generator.uniform(0.02, usual)}
        elif hits < kills:
            fault = {"kill_at": [generator.choice(STAGES), generator.randrange(1, 9)]}
        answer = sessions("train", *overrides, f"output_dir={run}", **fault)
        if answer["codes"] == [-9]:
            hits += 1
            assert_loadable(run)
            continue
        assert answer["codes"] == [0], answer["errors"]
        assert_same(whole, Run(run, ""))
        finished += 1
        if hits >= kills:
            return finished


def test_killed_now_and_then(sessions: Sessions, table: Table, whole: Run, tmp_path: Path) -> None:
    assert kill_again_and_again(sessions, table, whole, tmp_path, kills=3, seed=1) >= 1


@pytest.mark.slow
def test_killed_fifty_times(sessions: Sessions, table: Table, whole: Run, tmp_path: Path) -> None:
    assert kill_again_and_again(sessions, table, whole, tmp_path, kills=50, seed=2) >= 1


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_a_checkpoint_is_written(
    stage: str, sessions: Sessions, table: Table, whole: Run, tmp_path: Path
) -> None:
    overrides = (*table.overrides, *TINY, *SETTINGS, "training.resume=auto", f"output_dir={tmp_path}")
    assert sessions("train", *overrides, kill_at=[stage, 5])["codes"] == [-9]
    assert_loadable(tmp_path)
    assert sessions("train", *overrides)["codes"] == [0]
    assert_same(whole, Run(tmp_path, ""))
    assert not list(tmp_path.rglob("*" + atomic_files.PART))


def test_terminated_in_a_process_of_its_own(sessions: Sessions, table: Table, whole: Run, tmp_path: Path) -> None:
    overrides = (*table.overrides, *TINY, *SETTINGS, "training.resume=auto", f"output_dir={tmp_path}")
    answer = sessions("train", *overrides, term_after=0.35)
    while answer["codes"] != [0]:
        assert answer["codes"] in ([143], [-15])  # the latter before training began, or after it
        if answer["codes"] == [143]:
            # At once where it comes while training is still being set up.
            assert re.search("training was stopped (at once )?by SIGTERM", answer["errors"][0])
            if "no checkpoint yet" not in answer["errors"][0]:
                assert "; resume with python train_bert4rec.py " in answer["errors"][0]
                assert answer["errors"][0].endswith("training.resume=true\n")
            assert answer["errors"][0].count("\n") == 1
        answer = sessions("train", *overrides)
    assert_same(whole, Run(tmp_path, ""))


@pytest.mark.parametrize("largest", [9_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_disk_with_no_room_for_the_checkpoint(
    largest: int, sessions: Sessions, table: Table, whole: Run, tmp_path: Path
) -> None:
    """The system itself refuses to write a file of that size."""
    overrides = (*table.overrides, *TINY, *SETTINGS, "training.resume=auto", f"output_dir={tmp_path}")
    assert sessions("train", *overrides, kill_at=["replaced", 5])["codes"] == [-9]
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    assert largest < len(before)
    answer = sessions("train", *overrides, largest_file=largest)
    assert answer["codes"] == [1]
    assert answer["errors"][0].count("\n") == 1
    assert ".ckpt cannot be written (File too large): the earlier one is unharmed" in answer["errors"][0]
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.rglob("*" + atomic_files.PART))
    assert sessions("train", *overrides)["codes"] == [0]
    assert_same(whole, Run(tmp_path, ""))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("stage", ["open", "fsync", "replace"])
def test_whatever_the_system_refuses(number: int, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "last.ckpt"
    atomic_files.write_whole(path, b"before")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, "refused")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse) if stage == "open" else patch.setattr(atomic_files.os, stage, refuse)
        with pytest.raises(OSError, match="refused") as caught:
            atomic_files.write_whole(path, b"after")
    assert caught.value.errno == number
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("what", ["vanishes", "becomes a file"])
def test_a_folder_that_goes_away_in_the_middle(
    what: str, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LastCheckpoint.on_train_batch_start
    folder = tmp_path / "run" / "checkpoints"

    def removing(self: Any, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 10:
            folder.rename(tmp_path / "elsewhere")
            if what == "becomes a file":
                folder.write_text("mine")
        original(self, trainer, *args)

    monkeypatch.setattr(LastCheckpoint, "on_train_batch_start", removing)
    outcome = call(train, *table.overrides, f"output_dir={tmp_path / 'run'}", *TINY, *FIVE)
    assert_loadable(tmp_path / "elsewhere" / "..")
    assert checkpoint(tmp_path / "elsewhere" / "last.ckpt")["global_step"] == 8
    if what == "vanishes":  # it is made again, and nothing else of the run is amiss
        assert (outcome.code, outcome.err) == (0, "")
        assert checkpoint(folder / "last.ckpt")["global_step"] == 20
    else:
        assert outcome.code == 1
        assert outcome.err.count("\n") == 1
        assert f"{folder}/" in outcome.err
        assert "cannot be written" in outcome.err
        assert folder.read_text() == "mine"
        folder.unlink()
        shutil.move(tmp_path / "elsewhere", folder)
        monkeypatch.undo()
        run = train_here(table, tmp_path / "run", *FIVE, "training.resume=true")
        assert same_weights(run.last, train_here(table, tmp_path / "whole", *FIVE).last)
