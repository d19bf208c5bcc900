"""What the peers' scripts share: their command line, and clocks for training and for the rest. Needs torch alone."""

import argparse
import json
import os
import time
from collections.abc import Callable

import torch


def arguments() -> argparse.Namespace:
    """The table, the sizes of the model and how long to train; sets the number of threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("csv")
    for name in ("max-len", "width", "layers", "heads", "batch-size", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("mask", "dropout", "seconds"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--task", choices=["train", "evaluate", "recommend"], required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


class Clock:
    """Counts steps after the first two; when the time is up, prints the rate as JSON and ends the program."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.steps = -2
        self.started = 0.0

    @property
    def max_steps(self) -> int:
        """Steps to train at most: -1, without end, to time training, else just enough to have a model."""
        return -1 if self.options.task == "train" else 1

    def tick(self) -> None:
        if self.options.task != "train":
            return
        self.steps += 1
        if self.steps == 0:
            self.started = time.perf_counter()
            return
        seconds = time.perf_counter() - self.started
        if self.steps > 0 and seconds > self.options.seconds:
            print(json.dumps({"sequences_per_second": self.steps * self.options.batch_size / seconds}), flush=True)
            os._exit(0)  # no trainer has a clean way out of the middle of an epoch


def report_seconds(work: Callable[[], object]) -> None:
    """Time it once and print the seconds as JSON."""
    started = time.perf_counter()
    work()
    print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
