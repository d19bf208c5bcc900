"""What the peers' scripts share: their command line, and a clock that ends them. Needs torch alone."""

import argparse
import json
import os
import time

import torch


def arguments() -> argparse.Namespace:
    """The table, the sizes of the model and how long to train; sets the number of threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("csv")
    for name in ("max-len", "width", "layers", "heads", "batch-size", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("mask", "dropout", "seconds"):
        parser.add_argument(f"--{name}", type=float, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


class Clock:
    """Counts steps after the first two; when the time is up, prints the rate as JSON and ends the program."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.steps = -2
        self.started = 0.0

    def tick(self) -> None:
        self.steps += 1
        if self.steps == 0:
            self.started = time.perf_counter()
            return
        seconds = time.perf_counter() - self.started
        if self.steps > 0 and seconds > self.options.seconds:
            print(json.dumps({"sequences_per_second": self.steps * self.options.batch_size / seconds}), flush=True)
            os._exit(0)  # no trainer has a clean way out of the middle of an epoch
