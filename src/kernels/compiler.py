"""Compiles the C files of this folder with the system's compiler when they are first needed, and keeps the result."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ..errors import UserError
from . import structures

# Environment variable. 0: kernels are not used. 1: it is an error if there is none. Else it is used where there is
# some. The scripts set it by the key `native`; processes that they start inherit it.
SWITCH = "BERT4REC_NATIVE"
FLAGS = "BERT4REC_NATIVE_FLAGS"  # environment variable: more options for the compiler, for looking for faults
SOURCES = Path(__file__).parent
TYPES = {torch.float32: "float", torch.float64: "double"}
COMPILERS = ("cc", "gcc", "clang")
OPTIONS = (
    "-std=gnu11",
    "-O3",
    "-ffp-contract=fast",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fopenmp-simd",
    "-pthread",
    "-fPIC",
    "-shared",
)
# Instructions of this very processor, as compilers for different ones call it, and those that all have.
FOR_THIS_PROCESSOR = ("-march=native", "-mcpu=native", "")
MOST_SECONDS = 120.0  # it takes 2
# Functions that return how much memory another one needs; all others return nothing.
SIZES = (
    "scratch_size",
    "packed_size",
    "sums_size",
    "cross_entropy_memory",
    "ranks_panels_size",
    "ranks_scores_size",
)


class UnavailableError(Exception):
    """There are no kernels here, and why, in one line."""


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for float32 or float64, compiled now if this processor has never had these sources.

    Returns:
        None for other types, where it is switched off, and where it cannot be had.

    Raises:
        UserError: if it cannot be had but has to be, by `SWITCH`.
    """
    switch = os.environ.get(SWITCH)
    if dtype not in TYPES or switch == "0":
        return None
    found = _load(dtype)
    if not isinstance(found, UnavailableError):
        return found
    if switch == "1":
        raise UserError(
            f"native=true is not possible: {found}; install one (Debian: apt install gcc) or use native=auto"
        )
    return None


def switch(choice: bool | str) -> None:
    """Use it, use none, or "auto": where it can be had. So do processes that are started from now on."""
    os.environ[SWITCH] = str(int(choice)) if isinstance(choice, bool) else choice


def missing() -> str | None:
    """Why there are no kernels here, in a few words, if they are not switched off."""
    found = None if os.environ.get(SWITCH) == "0" else _load(torch.float32)
    return str(found) if isinstance(found, UnavailableError) else None


@functools.cache
def _load(dtype: torch.dtype) -> ctypes.CDLL | UnavailableError:
    if sys.platform == "win32":
        return UnavailableError("Windows has none of the compilers it is written for")
    content = [path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]"))]
    key = hashlib.sha256(repr((content, TYPES[dtype], _options(), _processor())).encode()).hexdigest()[:16]
    name = f"bert4rec-{TYPES[dtype]}-{key}.so"
    try:
        kept = cache_folder() / name
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_own(kept.parent):
            if not (kept.exists() and _is_own(kept)):
                _compile(TYPES[dtype], kept)
            return _declare(ctypes.CDLL(str(kept)))
    except OSError:  # a home that cannot be written to, or from which nothing may be run
        pass
    except UnavailableError as error:
        return error
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / name
            _compile(TYPES[dtype], made)
            return _declare(ctypes.CDLL(str(made)))  # it stays loaded when the file is gone
    except OSError as error:
        return UnavailableError(f"what the compiler made cannot be loaded ({error})")
    except UnavailableError as error:
        return error


def _options() -> list[str]:
    return [*OPTIONS, *shlex.split(os.environ.get(FLAGS, ""))]


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert4rec"


def _is_own(path: Path) -> bool:
    """Whether it is this user's and nobody else can write there; what others can write is not run."""
    state = path.stat()
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _processor() -> str:
    """What tells processors with different instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return " ".join([platform.machine(), *sorted(told)])


def _compile(real: str, target: Path) -> None:
    """Make the library, whole or not at all: another process may be at it too."""
    named = os.environ.get("CC")
    compiler = next((found for name in ((named,) if named else COMPILERS) if (found := shutil.which(name))), None)
    if compiler is None:
        raise UnavailableError(f"there is no C compiler ({named or ', '.join(COMPILERS)})")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for processor in FOR_THIS_PROCESSOR:
            options = [*_options(), *filter(None, [processor]), f"-DREAL={real}"]
            command = [compiler, *options, *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(made), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise UnavailableError(f"{compiler} took longer than {MOST_SECONDS:.0f} seconds") from error
            if done.returncode == 0:
                made.replace(target)
                return
    said = (done.stderr.strip().splitlines() or ["no message"])[0]
    raise UnavailableError(f"{compiler} failed: {said[:200]}")


def _declare(found: ctypes.CDLL) -> ctypes.CDLL:
    for name, size in structures.sizes():
        if getattr(found, name)() != size:
            raise UnavailableError(f"{name} is {getattr(found, name)()} bytes in C and {size} here")
    for name in SIZES:
        getattr(found, name).restype = ctypes.c_long
    return found
