"""The compiler makes vectors of the loops between the products, with and without AVX-512, by its own report."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from src.kernels import compiler
from tests.kernels import needs_compiler

# What stands in each loop: exponentials of the cross entropy and of attention, GELU both ways, dropout, LayerNorm both
# ways, and the count of ranks.
LOOPS = [
    ("cross_entropy.c", "scores[i] = exponential(scores[i] + bias"),
    ("encoder.c", "scores[i] = exponential(scores[i] - largest)"),
    ("encoder.c", "active[i] = before[i] * normal("),
    ("encoder.c", "below = normal(before[i]"),
    ("elementwise.h", "x[i] = bytes[i] < kept"),
    ("elementwise.h", "unit[i] = value"),
    ("elementwise.h", "dot += weighted * unit[i]"),
    ("ranks.c", "counts[row] += value >= thresholds[row]"),
]
PROCESSORS = [
    "-march=x86-64-v3",
    *(pytest.param(other, marks=pytest.mark.slow) for other in ("-march=x86-64-v4", "-march=armv8-a")),
]


def vectorised_lines(command: str, processor: str) -> set[tuple[str, int]]:
    """File and line of every loop that the compiler says it made into vectors."""
    is_clang = "clang" in subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    report = "-Rpass=loop-vectorize" if is_clang else "-fopt-info-vec-optimized"
    lines: set[tuple[str, int]] = set()
    for source in sorted(compiler.SOURCES.glob("*.c")):
        options = [*compiler.OPTIONS, processor, "-DREAL=float", report]
        done = subprocess.run([command, *options, str(source), "-o", "/dev/null"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for path, line, told in re.findall(r"^(\S+?):(\d+):\d+: (.*)$", done.stderr, re.MULTILINE):
            if "loop vectorized" in told or "vectorized loop" in told:
                lines.add((Path(path).name, int(line)))
    return lines


def compiler_for(processor: str) -> str:
    names = ("aarch64-linux-gnu-gcc",) if "arm" in processor else compiler.COMPILERS
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"there is no compiler for {processor}")
    empty = [found, processor, "-E", "-x", "c", "/dev/null"]
    if subprocess.run(empty, capture_output=True).returncode:
        pytest.skip(f"{found} is not for {processor}")
    return found


@needs_compiler
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_loops_between_the_products_are_vectors(processor: str) -> None:
    lines = vectorised_lines(compiler_for(processor), processor)
    for file, text in LOOPS:
        [number] = [n for n, line in enumerate((compiler.SOURCES / file).read_text().splitlines(), 1) if text in line]
        assert any((file, line) in lines for line in range(number - 3, number + 2)), (file, text)
