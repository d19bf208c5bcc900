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
import torch.nn.functional as F
from torch import Tensor

from src import ranking
from src.batch import PAD, EvalBatch
from src.callbacks import FreedMemory
from src.data import batching, bert4rec_data
from src.models import BERT4Rec, functional, network
from src.native import compiler
from tests.benchmarks import common
from tests.benchmarks.training import build


def _sorted_ranks(self: BERT4Rec, part: EvalBatch) -> Tensor:
    order = self.candidate_scores(part, self.reused).argsort(dim=1, descending=True)
    return (order == part.targets[:, None]).int().argmax(dim=1) + 1


def _ranks_of_all_scores(self: BERT4Rec, part: EvalBatch) -> Tensor:
    return ranking.target_ranks(self.candidate_scores(part, self.reused), part.targets)


def _encode_everywhere(self: network.Network, inputs: Tensor) -> Tensor:
    is_token = inputs != PAD
    columns = torch.arange(inputs.shape[1]).expand(inputs.shape)
    hidden = self.encode_parts([(inputs, columns, is_token.flatten().nonzero()[:, 0])])
    return hidden[is_token.sum(dim=1).cumsum(dim=0) - 1]


def _linear(self: functional.Reused, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


TRICKS: dict[str, Callable[[], list]] = {
    "compiled code": lambda: [mock.patch.dict(os.environ, {compiler.SWITCH: "0"})],
    "ranks by counting": lambda: [mock.patch.object(BERT4Rec, "target_ranks", _sorted_ranks)],
    "counting while scores are in cache": lambda: [
        mock.patch.object(BERT4Rec, "target_ranks", _ranks_of_all_scores),
    ],
    "that, nor scores in memory used again": lambda: [
        mock.patch.object(BERT4Rec, "target_ranks", _ranks_of_all_scores),
        mock.patch.object(functional.Reused, "linear", _linear),
    ],
    "queries only where needed": lambda: [mock.patch.object(network.Network, "encode_last", _encode_everywhere)],
    "batches in parts": lambda: [
        mock.patch.object(bert4rec_data, "TOKENS_PER_PART", None),
        mock.patch.object(batching, "TOKENS_PER_PART", None),
    ],
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
