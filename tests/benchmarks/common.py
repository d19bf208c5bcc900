"""What the benchmarks share: their command lines, the processor's peak, peers in other interpreters, and tables."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PEERS = ("rectools", "replay", "recbole")
SIZES = ("max_len", "mask", "width", "layers", "heads", "dropout", "batch_size", "threads")


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every benchmark: the table, the sizes of the model, and the peers' interpreters."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="CSV with the columns user, item, time")
    options.add_argument("--max-len", type=int, default=50)
    options.add_argument("--mask", type=float, default=0.15)
    options.add_argument("--width", type=int, default=64)
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--heads", type=int, default=2)
    options.add_argument("--dropout", type=float, default=0.2)
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=5, help="how often each variant is timed, in turn")
    for peer in PEERS:
        options.add_argument(f"--{peer}", metavar="PYTHON", help=f"an interpreter that has {peer}")
    options.add_argument("--peer-seconds", type=float, default=30.0, help="how long a peer trains each time")
    return options


def data_overrides(options: argparse.Namespace, output_dir: Path) -> list[str]:
    """Arguments of the scripts for this table, and all else by default."""
    return [
        f"data.data_dir={options.data.resolve().parent}",
        f"data.data_file={options.data.name}",
        f"output_dir={output_dir}",
    ]


def overrides(options: argparse.Namespace, output_dir: Path) -> list[str]:
    """Arguments of the scripts for this table and these sizes of the model."""
    return [
        *data_overrides(options, output_dir),
        f"model.max_len={options.max_len}",
        f"model.hidden_units={options.width}",
        f"model.num_layers={options.layers}",
        f"model.num_heads={options.heads}",
    ]


def run_python(arguments: Sequence[str], threads: int) -> str:
    """What this interpreter prints, given these arguments, a script of the package among them."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    del environment["GOMP_SPINCOUNT"]  # the scripts set it themselves
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout


def median_of_turns(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each variant's figure over `rounds` rounds, the variants taking turns."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, measure in variants.items():
            print(f"\rround {number + 1}/{rounds}  {name:<40}", end="", file=sys.stderr, flush=True)
            figures[name].append(measure())
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    return {name: statistics.median(values) for name, values in figures.items()}


def peer_rate(name: str, options: argparse.Namespace) -> float:
    """Sequences a second of a peer in training, run in its own interpreter."""
    return run_peer(name, "train", options)["sequences_per_second"]


def peer_seconds(name: str, task: str, options: argparse.Namespace) -> float:
    """Seconds that a peer needs to "evaluate" all users, or to "recommend" ten items to each and write them down."""
    return run_peer(name, task, options)["seconds"]


def run_peer(name: str, task: str, options: argparse.Namespace) -> dict[str, float]:
    script = Path(__file__).parent / "peers" / f"bench_{name}.py"
    sizes = [part for size in SIZES for part in (f"--{size.replace('_', '-')}", str(getattr(options, size)))]
    command = [getattr(options, name), str(script), str(options.data.resolve()), *sizes]
    command += ["--seconds", str(options.peer_seconds), "--task", task]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    del environment["GOMP_SPINCOUNT"]  # ours; theirs is the default
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    if done.returncode:
        raise SystemExit(f"{name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def matrix_peak(size: int = 2048, seconds: float = 1.5) -> float:
    """The most operations a second that a square float32 product reaches here, with all threads of this process."""
    left, right, out = (torch.randn(size, size) for _ in range(3))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    print(line(header))
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row in rows:
        print(line(row))
    print()
