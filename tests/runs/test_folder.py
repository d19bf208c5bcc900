"""An earlier run makes room for a new one, and nothing of it is lost."""

import os
import re
from datetime import datetime
from pathlib import Path

import pytest

from src.runs.folder import RunFolder


def write_run(folder: RunFolder, content: str) -> dict[str, str]:
    """What a run leaves; returns the relative path and text of every file."""
    files = [
        folder.last,
        folder.best,
        folder.logs / "events.out.tfevents.1",
        folder.logs / "deeper" / "more",
        folder.metrics,
        folder.report,
        folder.evaluation,
        folder.evaluation.with_suffix(".html"),
        folder.predictions,
    ]
    for number, path in enumerate(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content} {number}")
    return read(folder.root)


def read(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file() and "previous" not in path.relative_to(root).parts]
    return {path.relative_to(root).as_posix(): path.read_text() for path in files}


def test_paths_are_those_of_the_guide() -> None:
    folder = RunFolder.at("saved/bert4rec")
    names = [folder.last, folder.best, folder.logs, folder.metrics, folder.predictions]
    assert folder.report.name == "report.html"
    assert folder.evaluation.name == "evaluation.json"
    assert [path.relative_to("saved/bert4rec").as_posix() for path in names] == [
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "logs",
        "metrics.json",
        "predictions.csv",
    ]


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.at("~/runs/a").root == tmp_path / "runs" / "a"


def test_nothing_to_archive(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "absent").archive() is None
    assert not (tmp_path / "absent").exists()
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder(tmp_path).archive() is None
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_archive_moves_everything_of_the_run_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run with = and spaces")
    run = write_run(folder, "first")
    assert len(run) == 9
    (folder.root / "notes.txt").write_text("mine")
    place = folder.archive()
    assert place is not None
    assert place.parent == folder.root / "previous"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", place.name)
    assert read(place) == run
    assert read(folder.root) == {"notes.txt": "mine"}
    assert folder.archive() is None


def test_archive_is_named_after_the_time_of_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("{}")
    folder.predictions.write_text("user,item\n")
    os.utime(folder.metrics, (1_000_000_000, 1_000_000_000))
    os.utime(folder.predictions, (900_000_000, 900_000_000))
    place = folder.archive()
    assert place is not None
    assert place.name == datetime.fromtimestamp(1_000_000_000).strftime("%Y-%m-%d_%H-%M-%S")


def test_runs_of_the_same_second_stay_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    runs, places = [], []
    for content in ("first", "second", "third"):
        runs.append(write_run(folder, content))
        for path in folder.root.iterdir():
            os.utime(path, (1_700_000_000, 1_700_000_000))
        place = folder.archive()
        assert place is not None
        places.append(place)
    assert len(set(places)) == 3
    assert [read(place) for place in places] == runs


@pytest.mark.parametrize("name", ["checkpoints", "logs", "metrics", "report", "evaluation", "predictions"])
def test_what_an_unfinished_run_left_is_kept_too(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path)
    path: Path = getattr(folder, name)
    if name in ("checkpoints", "logs"):
        (path / "part").mkdir(parents=True)
    else:
        path.write_text("half")
    place = folder.archive()
    assert place is not None
    assert [entry.name for entry in place.iterdir()] == [path.name]
    assert [entry.name for entry in tmp_path.iterdir()] == ["previous"]
