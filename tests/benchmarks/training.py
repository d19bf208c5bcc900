"""Training speed: this package against itself without each of its tricks, and against the peers.

python -m tests.benchmarks.training --data FOLDER/ml-1m.csv --max-len 200 --mask 0.2
"""

import argparse
import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import PAD, TrainBatch
from src.data import BERT4RecDataModule, batching
from src.kernels import compiler, cross_entropy, door
from src.models import BERT4Rec, dropout, losses, network
from tests.benchmarks import common

STEPS, LEAST_SECONDS = 24, 2.0  # timed in one turn: so many steps, again and again until so long


def build(options: argparse.Namespace) -> tuple[BERT4Rec, BERT4RecDataModule]:
    data = BERT4RecDataModule(
        str(options.data.parent),
        options.data.name,
        batch_size=options.batch_size,
        max_len=options.max_len,
        mask_prob=options.mask,
        num_negatives=0 if options.loss == "softmax" else options.negatives,
    )
    data.setup()
    torch.manual_seed(1)
    model = BERT4Rec(
        data.num_items,
        hidden_units=options.width,
        num_heads=options.heads,
        num_layers=options.layers,
        max_len=options.max_len,
        dropout_rate=options.dropout,
        loss=options.loss,
        lr=0.001,
    )
    return model, data


class Left(NamedTuple):
    """What a variant does without."""

    tricks: tuple[str, ...] = ()
    has_compiled_code: bool = True


class Run:
    """Training as the trainer does it, batches included, to be timed some steps at a time."""

    def __init__(self, options: argparse.Namespace, left: Left | None = None, is_bf16: bool = False) -> None:
        self.left = left or Left()
        self.is_bf16 = is_bf16
        with without(self.left):
            self.model, self.data = build(options)
            self.optimizer = self.model.configure_optimizers()
            self.loader = self.data.train_dataloader()
        if "fused optimiser" in self.left.tricks:
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)
        self.sequences, self.operations = 0, 0.0

    def sequences_per_second(self) -> float:
        """Over the same batches in each turn, as many as an epoch has, or the first `STEPS`, as often as it takes."""
        self.sequences, self.operations = 0, 0.0
        seconds = 0.0
        with without(self.left):
            while seconds < LEAST_SECONDS:
                self.loader.sampler.set_epoch(0)
                batches = iter(self.loader)
                for _ in range(min(STEPS, len(self.loader))):
                    started = time.perf_counter()
                    batch = next(batches)
                    self.optimizer.zero_grad()
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_bf16):  # as Lightning does
                        self.model.loss(batch).backward()
                    self.optimizer.step()
                    seconds += time.perf_counter() - started
                    self.sequences += len(batch.inputs)
                    self.operations += operations(self.model, batch)
        return self.sequences / seconds


def operations(model: BERT4Rec, batch: TrainBatch) -> float:
    """Multiplications and additions of the matrix products that a batch needs, forward and backward.

    Padding, and queries and logits that nobody asks for, are not needed and do not count.
    """
    lengths = (batch.inputs != PAD).sum(dim=1).double()
    targets = torch.bincount(batch.places // batch.inputs.shape[1], minlength=len(lengths)).double()
    width, layers = model.hparams["hidden_units"], model.hparams["num_layers"]
    forward = 0.0
    for layer in range(layers):
        queries = targets if layer == layers - 1 else lengths
        projections = 2 * width * width * (2 * lengths + 2 * queries)
        attention = 4 * width * queries * lengths
        feed_forward = 2 * 8 * width * width * queries
        forward += float((projections + attention + feed_forward).sum())
    tokens = model.num_items + 2 if batch.negatives is None else len(batch.negatives.items) + 1
    forward += 2.0 * width * tokens * float(targets.sum())
    return 3.0 * forward  # each product has two more of its size in the backward pass


# The tricks, and what stands in for each of them.


def _modules_encode(network: network.Network, inputs: Tensor, places: Tensor) -> Tensor:
    return network.encode(inputs, places)


def _torch_attention(q: Tensor, k: Tensor, v: Tensor, is_visible: Tensor, rate: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=is_visible, dropout_p=rate)


def _plain_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), targets)


def _torch_cross_entropy(library, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return losses.linear_cross_entropy(hidden, weight, bias, targets)


def _random_order(self: batching.ShuffledBatches, *args) -> None:
    _shuffled_init(self, *args)
    self.lengths = np.zeros_like(self.lengths)


_shuffled_init = batching.ShuffledBatches.__init__

ORDER: Callable[[], list] = lambda: [mock.patch.object(batching.ShuffledBatches, "__init__", _random_order)]  # noqa: E731
# Beside compiled kernels.
TRICKS: dict[str, Callable[[], list]] = {
    "compiled encoder": lambda: [mock.patch.object(door, "encode", _modules_encode)],
    "compiled cross entropy": lambda: [mock.patch.object(cross_entropy, "linear_cross_entropy", _torch_cross_entropy)],
    "batches by length": ORDER,
    "fused optimiser": lambda: [],
}
# Without it, in plain PyTorch.
WITHOUT_COMPILED = "compiled kernels"
TORCH_TRICKS: dict[str, Callable[[], list]] = {
    "batches by length": ORDER,
    "byte dropout": lambda: [mock.patch.object(dropout, "dropout", F.dropout)],
    "attention with byte dropout": lambda: [mock.patch.object(network, "attention", _torch_attention)],
    "cross entropy in chunks": lambda: [mock.patch.object(losses, "linear_cross_entropy", _plain_cross_entropy)],
    "fused optimiser": lambda: [],
}
# Those that the sampled losses do not have.
SOFTMAX_TRICKS = ("compiled cross entropy", "cross entropy in chunks", "fused optimiser")


@contextlib.contextmanager
def without(left: Left) -> Iterator[None]:
    """The package without some of its tricks."""
    with contextlib.ExitStack() as stack:
        if not left.has_compiled_code:
            stack.enter_context(mock.patch.dict(os.environ, {compiler.SWITCH: "0"}))
        for name in left.tricks:
            for patch in (TRICKS if left.has_compiled_code else TORCH_TRICKS)[name]():
                stack.enter_context(patch)
        yield


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--loss", choices=["softmax", "sampled_softmax", "gbce"], default="softmax")
    parser.add_argument("--negatives", type=int, default=256)
    parser.add_argument("--bf16", action="store_true", help="training.precision=bf16-mixed beside it")
    parser.add_argument("--no-ablation", action="store_true", help="time the package as it is, and the peers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    ours = Run(options)
    # The peak takes its turn too: what a shared machine has to give changes from minute to minute.
    variants: dict[str, Callable[[], float]] = {"this package": ours.sequences_per_second, "peak": common.matrix_peak}
    if options.bf16:
        in_bf16 = Run(options, is_bf16=True)
        variants["in bf16-mixed"] = in_bf16.sequences_per_second
    bases: dict[str, str] = {}  # of each variant that lacks something, what it is compared with
    if not options.no_ablation:
        plain = f"without {WITHOUT_COMPILED}"
        variants[plain] = Run(options, Left(has_compiled_code=False)).sequences_per_second
        bases[plain] = "this package"
        for tricks, base, has_compiled_code in ((TRICKS, "this package", True), (TORCH_TRICKS, plain, False)):
            named = [trick for trick in tricks if options.loss == "softmax" or trick not in SOFTMAX_TRICKS]
            for left in [(trick,) for trick in named] + ([] if has_compiled_code else [tuple(named)]):
                words = "all of them" if len(left) > 1 else left[0]
                name = f"without {words}" if has_compiled_code else f"{plain} or {words}"
                variants[name] = Run(options, Left(left, has_compiled_code)).sequences_per_second
                bases[name] = base
    for name in common.PEERS:
        if getattr(options, name):
            variants[name] = lambda name=name: common.peer_rate(name, options)
    rates = common.median_of_turns(variants, options.rounds)

    best, peak = rates["this package"], rates.pop("peak")
    print(
        f"{options.data.name}: {ours.data.num_items:,} items, max_len {options.max_len}, mask {options.mask},"
        f" {options.layers} layers of {options.width}, batch {options.batch_size}, loss {options.loss},"
        f" {options.threads} threads\n"
    )
    rows = [
        [name, f"{rate:,.0f}", f"{best / rate:.2f}", f"{rates[bases[name]] / rate:.2f}" if name in bases else ""]
        for name, rate in rates.items()
    ]
    common.print_table(["training", "sequences/s", "this package is faster by", "that trick"], rows)
    needed = ours.operations / ours.sequences
    print(f"matrix peak (float32)      {peak / 1e9:,.0f} GFLOP/s")
    print(f"operations needed          {needed / 1e6:,.1f} MFLOP a sequence")
    print(f"arithmetic efficiency      {100 * needed * best / peak:.0f} %")
    peaks = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"peak memory                {peaks[0]:.2f} GiB here, {peaks[1]:.2f} GiB in the largest peer")


if __name__ == "__main__":
    main()
