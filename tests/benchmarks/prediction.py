"""Prediction speed: ten items for every user, written to a CSV, beside the peers.

python -m tests.benchmarks.prediction --data FOLDER/ml-1m.csv --max-len 200

This package is timed as the whole command, from the start of Python to the finished file; a peer only from the
fitted model on, without start, reading and preparing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import common

ROOT = Path(__file__).parent.parent.parent


def overrides(options: argparse.Namespace, folder: str) -> list[str]:
    return [
        f"data.data_dir={options.data.resolve().parent}",
        f"data.data_file={options.data.name}",
        f"output_dir={folder}",
        f"model.max_len={options.max_len}",
        f"model.hidden_units={options.width}",
        f"model.num_layers={options.layers}",
        f"model.num_heads={options.heads}",
    ]


def run(script: str, arguments: list[str], threads: int) -> float:
    """Seconds of one whole command."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, script, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{script} failed: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - started


def main() -> None:
    options = common.parser(__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = overrides(options, folder)
        run("train_bert4rec.py", [*arguments, "training.max_steps=1", "data.holdout=0"], options.threads)
        variants: dict[str, Callable[[], float]] = {
            "this package, the whole command": lambda: run("predict_bert4rec.py", arguments, options.threads)
        }
        if options.rectools:
            variants["rectools"] = lambda: common.peer_seconds("rectools", "recommend", options)
        medians = common.median_of_turns(variants, options.rounds)
    best = next(iter(medians.values()))
    rows = [[name, f"{value:.2f}", f"{value / best:.2f}"] for name, value in medians.items()]
    common.print_table(["ten items for all users", "seconds", "this package is faster by"], rows)


if __name__ == "__main__":
    main()
