"""Where figures come from: the command, the version, the commit."""

import subprocess
from pathlib import Path

import pytest

from src.runs import provenance


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", str(folder), *name, *words], capture_output=True, text=True, check=True).stdout


def test_a_checkout_names_its_commit_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert set(provenance.describe("python x.py")) == {"started", "command", "version"}
    git(tmp_path, "init", "-q")
    assert "commit" not in provenance.describe("python x.py")  # there is none yet
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "First")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD").strip()
    assert provenance.describe("python x.py")["commit"] == commit
    (tmp_path / "file").write_text("b")
    found = provenance.describe("python x.py")
    assert (found["commit"], found["command"]) == (f"{commit} with changes", "python x.py")


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert "commit" not in provenance.describe("")
