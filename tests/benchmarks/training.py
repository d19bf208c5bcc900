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
from src.models.helpers import Helpers
from torch import Tensor

from src import memory
from src.batch import PAD, TrainStep
from src.data import BERT4RecDataModule, batching, bert4rec_data
from src.models import BERT4Rec, functional, losses, network, objective
from src.native import compiler, cross_entropy, encoder
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

    def __init__(
        self, options: argparse.Namespace, left: Left | None = None, processes: int = 1, is_bf16: bool = False
    ) -> None:
        self.left = left or Left()
        self.is_bf16 = is_bf16
        with without(self.left):
            self.model, self.data = build(options)
            self.optimizer = self.model.configure_optimizers()
            self.data.shares = processes
            self.loader = self.data.train_dataloader()
        if "fused optimiser" in self.left.tricks:
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)
        self.helpers = None
        if processes > 1:
            self.helpers = Helpers(self.model.network, self.model.objective, processes - 1)
            self.sequences_per_second()  # they are slow until they have started
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
                        self.backward(batch)
                    self.optimizer.step()
                    seconds += time.perf_counter() - started
                    self.sequences += sum(len(part.inputs) for part in batch.parts)
                    self.operations += sum(operations(self.model, part, batch) for part in batch.parts)
        return self.sequences / seconds

    def backward(self, batch: TrainStep) -> None:
        if self.helpers is None:
            self.model.loss(*batch.parts, negatives=batch.negatives).backward()
            return
        counts = [sum(len(part.targets) for part in share) for share in batch.shares]
        self.helpers.start(batch.shares[1:], batch.negatives, sum(counts))
        loss = self.model.loss(*batch.shares[0], negatives=batch.negatives) * (counts[0] / sum(counts))
        loss.backward()
        self.helpers.finish()


def operations(model: BERT4Rec, part, step: TrainStep) -> float:
    """Multiplications and additions of the matrix products that one part needs, forward and backward.

    Padding, and queries and logits that nobody asks for, are not needed and do not count.
    """
    lengths = (part.inputs != PAD).sum(dim=1).double()
    targets = torch.bincount(part.slots // part.positions.shape[1], minlength=len(lengths)).double()
    width, layers = model.hparams["hidden_units"], model.hparams["num_layers"]
    forward = 0.0
    for layer in range(layers):
        queries = targets if layer == layers - 1 else lengths
        projections = 2 * width * width * (2 * lengths + 2 * queries)
        attention = 4 * width * queries * lengths
        feed_forward = 2 * 8 * width * width * queries
        forward += float((projections + attention + feed_forward).sum())
    tokens = model.num_items + 2 if step.negatives is None else len(step.negatives.items) + 1
    forward += 2.0 * width * tokens * float(targets.sum())
    return 3.0 * forward  # each product has two more of its size in the backward pass


# The tricks, and what stands in for each of them.


def _encode_everywhere(self: network.Network, inputs: Tensor, positions=None, slots=None, table=None) -> Tensor:
    hidden = _encode(self, inputs, table=table)
    if positions is None:
        return hidden
    return hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[2])).flatten(0, 1)[slots]


def _encode_parts_everywhere(self: network.Network, parts, table=None) -> Tensor:
    """All tokens are asked for, and then those that a target is at are picked."""
    everything, asked, before = [], [], 0
    for inputs, positions, slots in parts:
        is_token = inputs != PAD
        columns = torch.arange(inputs.shape[1]).expand(inputs.shape)
        everything.append((inputs, columns, is_token.flatten().nonzero()[:, 0]))
        number = is_token.flatten().cumsum(dim=0) - 1 + before
        row = slots // positions.shape[1]
        asked.append(number[row * inputs.shape[1] + positions.flatten()[slots]])
        before = int(number[-1]) + 1
    return _encode_parts(self, everything, table)[torch.cat(asked)]


_encode = network.Network.encode
_encode_parts = network.Network.encode_parts
_compiled_encode = encoder.encode
_embedding = F.embedding


def _modules_encode(self: network.Network, parts, table=None) -> Tensor:
    return torch.cat([_encode(self, *part, table) for part in parts])


def _torch_dropout(x: Tensor, rate: float, is_training: bool) -> Tensor:
    return F.dropout(x, rate, is_training)


def _torch_attention(
    q: Tensor, key_value: Tensor, num_heads: int, is_visible: Tensor | None, dropout_rate: float
) -> Tensor:
    heads = [x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, *key_value.chunk(2, dim=2))]
    mixed = F.scaled_dot_product_attention(*heads, attn_mask=is_visible, dropout_p=dropout_rate)
    return mixed.transpose(1, 2).flatten(2)


def _plain_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), targets)


def _torch_cross_entropy(library, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return losses._LinearCrossEntropy.apply(hidden, weight, bias, targets, None)


def _dense_embedding(*args, sparse: bool = False, **kwargs) -> Tensor:
    return _embedding(*args, **kwargs)


def _dense_encode(*args) -> Tensor:
    return _compiled_encode(*args[:-1], False)


def _random_order(self: batching.ShuffledBatches, *args) -> None:
    _shuffled_init(self, *args)
    self.lengths = np.zeros_like(self.lengths)


_shuffled_init = batching.ShuffledBatches.__init__

ORDER: Callable[[], list] = lambda: [mock.patch.object(batching.ShuffledBatches, "__init__", _random_order)]  # noqa: E731
# Beside compiled code.
TRICKS: dict[str, Callable[[], list]] = {
    "compiled encoder": lambda: [mock.patch.object(network.Network, "encode_parts", _modules_encode)],
    "compiled cross entropy": lambda: [mock.patch.object(cross_entropy, "linear_cross_entropy", _torch_cross_entropy)],
    "queries only where needed": lambda: [mock.patch.object(network.Network, "encode_parts", _encode_parts_everywhere)],
    "batches by length": ORDER,
    "sparse embedding gradient": lambda: [mock.patch.object(encoder, "encode", _dense_encode)],
    "the table's two gradients in one": lambda: [mock.patch.object(objective, "apart", lambda table: (table, table))],
    "fused optimiser": lambda: [],
}
# Without it, in torch alone.
WITHOUT_COMPILED = "compiled code"
TORCH_TRICKS: dict[str, Callable[[], list]] = {
    "queries only where needed": lambda: [mock.patch.object(network.Network, "encode", _encode_everywhere)],
    "batches by length": ORDER,
    "batches in parts": lambda: [mock.patch.object(bert4rec_data, "TOKENS_PER_PART", None)],
    "byte dropout": lambda: [
        mock.patch.object(functional, "dropout", _torch_dropout),
        mock.patch.object(network, "dropout", _torch_dropout),
    ],
    "attention written out": lambda: [mock.patch.object(network, "attention", _torch_attention)],
    "tiled cross entropy": lambda: [mock.patch.object(losses, "linear_cross_entropy", _plain_cross_entropy)],
    "sparse embedding gradient": lambda: [mock.patch.object(F, "embedding", _dense_embedding)],
    "the table's two gradients in one": TRICKS["the table's two gradients in one"],
    "fused optimiser": lambda: [],
}
# Those that the sampled losses do not have.
SOFTMAX_TRICKS = (
    "compiled cross entropy",
    "tiled cross entropy",
    "sparse embedding gradient",
    "the table's two gradients in one",
    "fused optimiser",
)


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
    parser.add_argument("--processes", type=int, default=1, help="training.cpu_processes, beside one process")
    parser.add_argument("--bf16", action="store_true", help="training.precision=bf16-mixed beside it")
    parser.add_argument("--no-ablation", action="store_true", help="time the package as it is, and the peers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory.keep()  # as the trainer does

    ours = Run(options, processes=options.processes)
    # The peak takes its turn too: what a shared machine has to give changes from minute to minute.
    variants: dict[str, Callable[[], float]] = {"this package": ours.sequences_per_second, "peak": common.matrix_peak}
    if options.processes > 1:
        variants["without helpers"] = Run(options).sequences_per_second
    if options.bf16:
        in_bf16 = Run(options, processes=options.processes, is_bf16=True)
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
    for run in [ours, in_bf16] if options.bf16 else [ours]:
        if run.helpers is not None:
            run.helpers.close()
    peaks = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"peak memory                {peaks[0]:.2f} GiB here, {peaks[1]:.2f} GiB in the largest helper or peer")


if __name__ == "__main__":
    main()
