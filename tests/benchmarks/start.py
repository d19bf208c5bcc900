"""From the command to the first step of training, and the memory of a whole run.

python -m tests.benchmarks.start --data FOLDER/ml-1m.csv --max-len 200
python -m tests.benchmarks.start --data FOLDER/beauty.csv --rounds 1 --epochs 2

A run before those that are timed fills the caches. The whole run, with --epochs, has the package's own defaults; it is
evaluated and reported on as any.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import common

# Run with the arguments of `train_bert4rec.py`: the script itself, but for what it does after its first step.
SCRIPT = """
import os, sys, time
from src.training import train as script

def fit(trainer, *others):
    import pytorch_lightning as pl

    class FirstStep(pl.Callback):
        def on_train_batch_end(self, *state):
            print("first step at", time.time(), flush=True)
            os._exit(0)

    trainer.callbacks.append(FirstStep())
    train(trainer, *others)

train, script.fit = script.fit, fit
sys.argv[0] = script.__file__
script.cli.run(script.train)
"""


def seconds_to_first_step(arguments: list[str], threads: int) -> float:
    started = time.time()
    printed = common.run_python(["-c", SCRIPT, *arguments], threads)
    return float(printed.rsplit("first step at", 1)[1]) - started


def first_steps(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], float]]:
    """Seconds to the first step."""
    arguments = common.overrides(options, folder / "first")
    return {"this package": lambda: seconds_to_first_step(arguments, options.threads)}


def whole_run(options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Seconds, and GiB of its largest process."""
    started = time.perf_counter()
    arguments = [*common.data_overrides(options, folder / "whole"), f"training.num_epochs={options.epochs}"]
    common.run_python(["train_bert4rec.py", *arguments], options.threads)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=0, help="of the whole run; 0 leaves it out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        variants = first_steps(options, Path(name))
        for measure in variants.values():
            measure()
        medians = common.median_of_turns(variants, options.rounds)
        common.print_table(
            ["from the command to the first step", "seconds"], [[key, f"{value:.1f}"] for key, value in medians.items()]
        )
        if options.epochs:
            seconds, gibibytes = whole_run(options, Path(name))
            print(f"a whole run of {options.epochs} epochs  {seconds:,.0f} s, at most {gibibytes:.2f} GiB")


if __name__ == "__main__":
    main()
