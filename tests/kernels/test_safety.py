"""What keeps the kernels from doing harm: sizes that are checked, a pool that survives forks, sanitizers."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from src.batch import PAD
from src.kernels import compiler, encoder, structures
from src.models.network import Architecture, Network
from tests.kernels import library, needs_compiler

ROOT = Path(__file__).parents[2]
DIMENSIONS = Architecture(hidden_units=12, num_heads=2, num_layers=2, max_len=7)

pytestmark = needs_compiler


def network_and_batch() -> tuple[Network, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    network = Network(20, DIMENSIONS).double().eval()
    inputs = torch.randint(1, 20, (90, 7))
    inputs[:40, :3] = PAD
    return network, inputs, torch.arange(6, inputs.numel(), 7)


def encoded(threads: int = 2, given: tuple[Network, torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
    network, inputs, places = given or network_and_batch()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            return encoder.encode(library(), network, inputs, places)
    finally:
        torch.set_num_threads(before)


def test_structures_have_the_sizes_of_c(monkeypatch: pytest.MonkeyPatch) -> None:
    found = library()
    for name, size in structures.sizes():
        assert getattr(found, name)() == size > 0
    monkeypatch.setattr(structures, "sizes", lambda: [("ranks_size", 8)])
    compiler._load.cache_clear()
    assert compiler.library(torch.float64) is None
    size = ctypes.sizeof(structures.Ranks)
    assert str(compiler._load(torch.float64)) == f"ranks_size is {size} bytes in C and 8 here"
    compiler._load.cache_clear()


def test_one_thread_or_several_say_the_same_and_threads_are_kept() -> None:
    expected = encoded(threads=1)
    assert torch.equal(encoded(threads=3), expected)
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir())) if tasks.exists() else 0
    for _ in range(20):
        assert torch.equal(encoded(threads=3), expected)
    assert before == (len(list(tasks.iterdir())) if tasks.exists() else 0)


def test_calls_from_several_threads_at_once() -> None:
    given, found = network_and_batch(), []
    expected = encoded(given=given)

    def run() -> None:
        for _ in range(20):
            found.append(torch.equal(encoded(given=given), expected))

    callers = [threading.Thread(target=run) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 80


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_process_that_was_forked_has_threads_of_its_own() -> None:
    expected = encoded()
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(encoded(), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(encoded(), expected)


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes a quarter of the time."""
    monkeypatch.setattr(compiler, "OPTIONS", tuple("-O0" if word == "-O3" else word for word in compiler.OPTIONS))


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_can_write_to_is_not_used(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "bert4rec").mkdir()
    (tmp_path / "bert4rec").chmod(mode)
    compiler._load.cache_clear()
    assert compiler.library(torch.float32) is not None
    assert list((tmp_path / "bert4rec").iterdir()) == []
    compiler._load.cache_clear()


@pytest.mark.usefixtures("in_a_hurry")
def test_a_file_that_others_can_write_to_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler._load.cache_clear()
    assert compiler.library(torch.float32) is not None
    [kept] = (tmp_path / "bert4rec").iterdir()
    kept.unlink()
    kept.write_bytes(b"somebody else's")
    kept.chmod(0o666)
    compiler._load.cache_clear()
    assert compiler.library(torch.float32) is not None
    assert kept.read_bytes() != b"somebody else's"
    assert kept.stat().st_mode & 0o022 == 0
    compiler._load.cache_clear()


CODE = """
import sys; from tests.kernels import test_safety
from src.kernels import compiler
found = test_safety.library()
size = found.scratch_size
found.scratch_size = lambda *arguments: size(*arguments) // 4
test_safety.encoded()
"""


@pytest.mark.slow
def test_an_arena_that_is_too_small_is_found_in_a_debug_build(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), compiler.FLAGS: "-DCHECK_MEMORY -O0"}
    ended = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode < 0, ended  # abort
    assert "entries taken of" in ended.stderr


@pytest.mark.slow
def test_the_parity_tests_pass_under_sanitizers(tmp_path: Path) -> None:
    compiler_name = shutil.which("gcc")
    if compiler_name is None or not sys.platform.startswith("linux"):
        pytest.skip("needs gcc on Linux")
    libraries = []
    for name in ("libasan.so", "libstdc++.so"):  # the second, or exceptions of torch are not seen
        command = [compiler_name, f"-print-file-name={name}"]
        libraries.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    if not all(Path(path).exists() for path in libraries):
        pytest.skip("gcc has no AddressSanitizer here")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "XDG_CACHE_HOME": str(tmp_path),
        "CC": compiler_name,
        compiler.FLAGS: "-DCHECK_MEMORY -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined",
    }
    tests = [f"tests/kernels/test_{name}.py" for name in ("encoder", "cross_entropy", "door", "safety")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests, "tests/test_ranking.py"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
