"""What time and memory of a training step grow with: items, length, width, loss; the table of docs/scale.md.

python -m tests.benchmarks.scale

Each line is measured in a process of its own, on one thread, with generated histories as long as the input.
"""

import json
import os
import resource
import time
from itertools import count
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from src.data.batching import TOKENS_PER_PART, NegativeSampler, ShuffledBatches, TrainingSet
from src.data.sequences import Spans
from src.models import BERT4Rec

BATCH, USERS = 128, 512
USUAL = {"items": 10_000, "length": 50, "width": 64, "layers": 3, "loss": "softmax"}
CHANGES: list[dict[str, Any]] = [
    {},
    {"items": 1_000},
    {"items": 100_000},
    {"items": 100_000, "loss": "sampled_softmax"},
    {"items": 1_000_000, "loss": "sampled_softmax"},
    {"length": 25},
    {"length": 100},
    {"length": 200},
    {"width": 32},
    {"width": 128},
    {"layers": 6},
]


def measure(items: int, length: int, width: int, layers: int, loss: str, seconds: float = 4.0) -> dict[str, float]:
    """Milliseconds of a step of 128 sequences, and MiB that the model and its steps took."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = np.random.default_rng(0).integers(1, items, USERS * length, endpoint=True)
    starts = np.arange(USERS) * length
    sampler = NegativeSampler(np.ones(items, dtype=np.int64), 256, 0.0) if loss != "softmax" else None
    dataset = TrainingSet(
        tokens, Spans(starts, starts + length), items, 0.15, 0.8, 0.1, 0.0, TOKENS_PER_PART, negative_sampler=sampler
    )
    plans = ShuffledBatches(np.full(USERS, length), BATCH, 0)
    model = BERT4Rec(items, width, 4 if width >= 64 else 2, layers, length, loss=loss)
    optimizer = model.configure_optimizers()
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    for epoch in count():
        plans.set_epoch(epoch)
        for plan in plans:
            started = time.perf_counter()
            step = dataset[plan]
            optimizer.zero_grad()
            model.loss(*step.parts, negatives=step.negatives).backward()
            optimizer.step()
            taken.append(time.perf_counter() - started)
            if time.perf_counter() > ends and len(taken) > 3:
                after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                return {"ms": 1000 * float(np.median(taken[1:])), "mib": (after - before) / 1024}
    raise AssertionError


def in_a_process_of_its_own(**sizes: Any) -> dict[str, float]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(measure(**sizes)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        result: dict[str, float] = json.loads(answer.read())
    os.waitpid(child, 0)
    return result


if __name__ == "__main__":
    print(f"torch {torch.__version__}, pytorch-lightning {pl.__version__}, one thread, {BATCH} sequences a step\n")
    print("| items | length | width | layers | loss | ms a step | MiB |\n|---|---|---|---|---|---|---|")
    for change in CHANGES:
        sizes = USUAL | change
        result = in_a_process_of_its_own(**sizes)
        cells = [f"{sizes['items']:,}", *(str(sizes[key]) for key in ("length", "width", "layers", "loss"))]
        print("| " + " | ".join([*cells, f"{result['ms']:.0f}", f"{result['mib']:,.0f}"]) + " |", flush=True)
