"""Compiling, keeping what was compiled, and going without."""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from src.errors import UserError
from src.kernels import compiler
from tests.kernels import needs_compiler


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where compiled kernels are kept, empty, with nothing loaded yet; it is compiled in a hurry."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "OPTIONS", tuple("-O0" if word == "-O3" else word for word in compiler.OPTIONS))
    compiler._load.cache_clear()
    yield tmp_path / "bert4rec"
    compiler._load.cache_clear()


def compilers(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    """A PATH on which there is one compiler, a shell script, or none."""
    folder.mkdir()
    if script is not None:
        (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)


@needs_compiler
def test_it_is_compiled_once_for_each_type(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float64):
        assert compiler.library(dtype) is not None
    made = {path: path.stat().st_mtime_ns for path in home.iterdir()}
    assert [path.suffix for path in made] == [".so", ".so"]
    assert home.stat().st_mode & 0o077 == 0  # nobody else can put code there
    compiler._load.cache_clear()
    compilers(tmp_path / "none", monkeypatch, None)
    assert compiler.library(torch.float32) is not None
    assert {path: path.stat().st_mtime_ns for path in home.iterdir()} == made


@needs_compiler
def test_other_sources_options_or_processors_are_compiled_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("OPTIONS", (*compiler.OPTIONS, "-DANOTHER")), ("_processor", lambda: "another")):
        monkeypatch.setattr(compiler, name, value)
        compiler._load.cache_clear()
        assert compiler.library(torch.float32) is not None
    assert len(list(home.iterdir())) == 2


@needs_compiler
def test_two_processes_compile_at_once(home: Path) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)

    def compile_one() -> None:
        together.wait()
        assert compiler.library(torch.float32) is not None

    running = [context.Process(target=compile_one) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0, 0]
    assert len(list(home.iterdir())) == 1


@needs_compiler
def test_a_home_that_cannot_be_written_to(home: Path) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file is in its place")
    assert compiler.library(torch.float32) is not None


@needs_compiler
def test_a_spoilt_file_is_none(home: Path) -> None:
    assert compiler.library(torch.float32) is not None
    (kept,) = home.iterdir()
    kept.unlink()
    kept.write_bytes(b"spoilt")
    compiler._load.cache_clear()
    assert compiler.library(torch.float32) is not None


def test_without_a_compiler(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compilers(tmp_path / "none", monkeypatch, None)
    assert compiler.library(torch.float32) is None
    assert compiler.missing() == "there is no C compiler (cc, gcc, clang)"
    monkeypatch.setenv(compiler.SWITCH, "1")
    with pytest.raises(UserError, match="native=true is not possible: there is no C compiler"):
        compiler.library(torch.float32)
    monkeypatch.setenv("CC", "no-such-compiler")
    compiler._load.cache_clear()
    assert compiler.missing() == "there is no C compiler (no-such-compiler)"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no shell scripts")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo what it says >&2; echo and more >&2; exit 1", "cc failed: what it says"),
        ("exit 1", "cc failed: no message"),
        ('while [ $# -gt 1 ]; do [ "$1" = -o ] && echo spoilt > "$2"; shift; done', "cannot be loaded"),
        ("while :; do :; done", "took longer than 0 seconds"),
    ],
)
def test_a_compiler_that_does_not_work(
    script: str, message: str, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compilers(tmp_path / "broken", monkeypatch, script)
    monkeypatch.setattr(compiler, "MOST_SECONDS", 0.3)
    assert compiler.library(torch.float32) is None
    assert message in str(compiler.missing())


def test_switched_off_and_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler.library(torch.bfloat16) is None
    compiler.switch(False)
    assert compiler.library(torch.float32) is None
    assert compiler.missing() is None
    compiler.switch("auto")
    assert os.environ[compiler.SWITCH] == "auto"
    compiler.switch(True)
    assert os.environ[compiler.SWITCH] == "1"
