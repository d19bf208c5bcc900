"""Evaluation speed: the rank of every user's last item among all items, beside the peers.

python -m tests.benchmarks.evaluation --data FOLDER/ml-1m.csv --max-len 200

RecTools has no such evaluation: its time is that of the ten best items, from which HIT@10 and NDCG@10 follow.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytorch_lightning as pl
import torch
from torch import Tensor

from src.kernels import compiler, door
from src.runs.freed_memory import FreedMemory
from tests.benchmarks import common
from tests.benchmarks.training import build


def _sorted_ranks(network, hidden: Tensor, targets: Tensor, seen_rows: Tensor, seen_items: Tensor) -> Tensor:
    ranks = []
    for rows, scores in door.candidate_scores(network, hidden, seen_rows, seen_items):
        order = scores.argsort(dim=1, descending=True)
        ranks.append((order == targets[rows, None]).int().argmax(dim=1))
    return torch.cat(ranks)


TRICKS: dict[str, Callable[[], list]] = {
    "compiled kernels": lambda: [mock.patch.dict(os.environ, {compiler.SWITCH: "0"})],
    "ranks by counting": lambda: [mock.patch.object(door, "target_ranks", _sorted_ranks)],
}


@contextmanager
def without(trick: str) -> Iterator[None]:
    patches = TRICKS[trick]()
    for patch in patches:
        patch.start()
    yield
    for patch in patches:
        patch.stop()


def seconds(options: argparse.Namespace) -> float:
    """One evaluation of all users by Lightning's trainer, as the training script has it."""
    model, data = build(options)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[FreedMemory()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.perf_counter()
    trainer.test(model, data.test_dataloader(), verbose=False)
    return time.perf_counter() - started


def seconds_without(trick: str, options: argparse.Namespace) -> float:
    with without(trick):
        return seconds(options)


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--no-ablation", action="store_true", help="time the package as it is, and the peers")
    options = parser.parse_args()
    options.loss, options.negatives = "softmax", 0
    torch.set_num_threads(options.threads)
    variants: dict[str, Callable[[], float]] = {"this package": lambda: seconds(options)}
    if not options.no_ablation:
        variants |= {f"without {trick}": lambda trick=trick: seconds_without(trick, options) for trick in TRICKS}
    variants |= {
        name: lambda name=name: common.peer_seconds(name, "evaluate", options)
        for name in ("rectools", "replay")
        if getattr(options, name)
    }
    medians = common.median_of_turns(variants, options.rounds)
    best = medians["this package"]
    rows = [[name, f"{value:.2f}", f"{value / best:.2f}"] for name, value in medians.items()]
    common.print_table(["all users evaluated", "seconds", "this package is faster by"], rows)


if __name__ == "__main__":
    main()
