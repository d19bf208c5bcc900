"""Prediction speed: ten items for every user, written to a CSV, beside the peers.

python -m tests.benchmarks.prediction --data FOLDER/ml-1m.csv --max-len 200

Timed is what lies between a model in memory beside encoded histories, and the finished file. This package's whole
command, from the start of Python on, stands beside it.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from src.prediction.inputs import encode_histories, read_histories
from src.prediction.writer import write_predictions
from src.runs import checkpoint
from src.runs.folder import RunFolder
from src.settings import CONFIGS, parse
from tests.benchmarks import common


def seconds_of(script: str, arguments: list[str], threads: int) -> float:
    """Of one whole command."""
    started = time.perf_counter()
    common.run_python([script, *arguments], threads)
    return time.perf_counter() - started


def in_process(arguments: list[str]) -> Callable[[], float]:
    """Seconds of ranking for everybody and of writing, with the model and the histories in memory."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = parse(compose("bert4rec", arguments))
    folder = RunFolder.at(config.output_dir)
    model, vocabulary = checkpoint.load(folder.last)
    interactions = read_histories(config)
    sequences = encode_histories(interactions, vocabulary)

    def measure() -> float:
        started = time.perf_counter()
        write_predictions(
            config,
            model=model,
            vocabulary=vocabulary,
            user_ids=interactions.user_ids,
            sequences=sequences,
            is_barred=None,
            output_path=folder.predictions,
        )
        return time.perf_counter() - started

    return measure


def main() -> None:
    options = common.parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        arguments = common.overrides(options, Path(folder))
        common.run_python(["train_bert4rec.py", *arguments, "training.max_steps=1", "data.holdout=0"], options.threads)
        variants: dict[str, Callable[[], float]] = {
            "this package": in_process(arguments),
            "this package, the whole command": lambda: seconds_of("predict_bert4rec.py", arguments, options.threads),
        }
        if options.rectools:
            variants["rectools"] = lambda: common.peer_seconds("rectools", "recommend", options)
        medians = common.median_of_turns(variants, options.rounds)
    best = next(iter(medians.values()))
    rows = [[name, f"{value:.2f}", f"{value / best:.2f}"] for name, value in medians.items()]
    common.print_table(["ten items for all users", "seconds", "this package is faster by"], rows)


if __name__ == "__main__":
    main()
