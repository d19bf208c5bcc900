"""What time and memory grow with: items, length, width, layers, loss, users; table and picture of docs/scale.md.

pip install -e ".[plots]"
python -m tests.benchmarks.scale --out growth.png

Each line is measured in a process of its own, on one thread, with generated histories as long as the input.
"""

import argparse
import json
import os
import resource
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure

from src.data.batching import EvaluationSet, NegativeSampler, ShuffledBatches, TrainingSet
from src.data.sequences import Spans
from src.kernels import door
from src.models import BERT4Rec
from src.models.network import last_places

BATCH, USERS = 128, 512
USUAL = {"items": 10_000, "length": 50, "width": 64, "layers": 3, "loss": "softmax"}
# What is drawn: along the x axis, and the lines, each with what it has in common beside the usual sizes.
PANELS: list[tuple[str, list[int], dict[str, dict[str, Any]]]] = [
    (
        "items",
        [1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000],
        {"softmax": {}, "sampled_softmax": {"loss": "sampled_softmax"}},
    ),
    ("length", [25, 50, 100, 200], {"softmax": {}}),
    ("width", [32, 64, 128, 256], {"softmax": {}}),
    ("layers", [1, 2, 3, 6], {"softmax": {}}),
]
MOST_ITEMS_OF_SOFTMAX = 100_000
USERS_EVALUATED = [1_000, 4_000, 16_000]


def generated(users: int, items: int, length: int) -> tuple[np.ndarray, Spans]:
    """Histories of uniformly drawn items, all of the same length."""
    tokens = np.random.default_rng(0).integers(1, items, users * length, endpoint=True)
    starts = np.arange(users) * length
    return tokens, Spans(starts, starts + length)


def evaluate(users: int, items: int, length: int, width: int, layers: int, loss: str) -> dict[str, float]:
    """Milliseconds to rank the last item of every user among all items, and MiB that it took."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens, spans = generated(users, items, length)
    model = BERT4Rec(items, width, 4, layers, length, loss=loss).eval()
    histories = Spans(spans.starts, spans.stops - 1)
    dataset = EvaluationSet(tokens, histories, items, length, True, tokens[spans.stops - 1])
    started = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, users, 256):
            batch = dataset[np.arange(start, min(start + 256, users))]
            hidden = door.encode(model.network, batch.inputs, last_places(batch.inputs))
            door.target_ranks(model.network, hidden, batch.targets, batch.seen_rows, batch.seen_items)
    taken = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ms": 1000 * taken, "mib": (after - before) / 1024}


def train(items: int, length: int, width: int, layers: int, loss: str, seconds: float = 4.0) -> dict[str, float]:
    """Milliseconds of a step of 128 sequences, and MiB that the model and its steps took."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens, spans = generated(USERS, items, length)
    sampler = NegativeSampler(np.ones(items, dtype=np.int64), 256, 0.0) if loss != "softmax" else None
    dataset = TrainingSet(tokens, spans, items, 0.15, 0.8, 0.1, 0.0, negative_sampler=sampler)
    plans = ShuffledBatches(np.full(USERS, length), BATCH, 0)
    model = BERT4Rec(items, width, 4 if width >= 64 else 2, layers, length, loss=loss)
    optimizer = model.configure_optimizers()
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    for epoch in count():
        plans.set_epoch(epoch)
        for plan in plans:
            started = time.perf_counter()
            batch = dataset[plan]
            optimizer.zero_grad()
            model.loss(batch).backward()
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
        figures = evaluate(**sizes) if "users" in sizes else train(**sizes)
        os.write(writing, json.dumps(figures).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        result: dict[str, float] = json.loads(answer.read())
    os.waitpid(child, 0)
    return result


def row(sizes: dict[str, Any], figures: dict[str, float]) -> str:
    keys = ("length", "width", "layers", "loss")
    if "users" in sizes:
        keys = ("length", "width", "layers")
    cells = [f"{sizes['users']:,}"] if "users" in sizes else []
    cells += [f"{sizes['items']:,}", *(str(sizes[key]) for key in keys)]
    return "| " + " | ".join([*cells, f"{figures['ms']:,.0f}", f"{figures['mib']:,.0f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="PNG or SVG to draw it in")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, pytorch-lightning {pl.__version__}, one thread, {BATCH} sequences a step\n")
    print("| items | length | width | layers | loss | ms a step | MiB |\n|---|---|---|---|---|---|---|")
    drawing = Figure(figsize=(11, 6.5), layout="constrained")
    axes = iter(drawing.subplots(2, 3).flat)
    known: dict[str, dict[str, float]] = {}
    for key, values, lines in PANELS:
        panel = next(axes)
        for label, common in lines.items():
            points = []
            for value in values:
                if key == "items" and label == "softmax" and value > MOST_ITEMS_OF_SOFTMAX:
                    continue
                sizes = USUAL | common | {key: value}
                name = json.dumps(sizes, sort_keys=True)
                if name not in known:
                    known[name] = in_a_process_of_its_own(**sizes)
                    print(row(sizes, known[name]), flush=True)
                points.append((value, known[name]["ms"]))
            panel.plot(*zip(*points, strict=True), marker="o", label=label)
        panel.set(xlabel=key, ylabel="ms a step", ylim=(0, None), xscale="log" if key == "items" else "linear")
        panel.legend()
    print("\n| users evaluated | items | length | width | layers | ms | MiB |\n|---|---|---|---|---|---|---|")
    panel = next(axes)
    for items in (10_000, 100_000):
        points = []
        for users in USERS_EVALUATED:
            sizes = USUAL | {"users": users, "items": items}
            figures = in_a_process_of_its_own(**sizes)
            print(row(sizes, figures), flush=True)
            points.append((users, figures["ms"] / 1000))
        panel.plot(*zip(*points, strict=True), marker="o", label=f"{items:,} items")
    panel.set(xlabel="users", ylabel="seconds of evaluation", ylim=(0, None), xlim=(0, None))
    panel.legend()
    next(axes).set_axis_off()
    if options.out:
        drawing.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
