"""A GPU at work through the user's own commands, beside what the same network reaches there without any of it.

python -m tests.benchmarks.gpu --data FOLDER/ml-1m.csv --max-len 200 --mask 0.2 --batch-sizes 128 1024
python -m tests.benchmarks.gpu --data FOLDER/beauty.csv --losses softmax sampled_softmax --works train memory

Training has three figures. The yardstick is a bare loop over one batch of fixed shape: the compiled loss, its gradients
and Adam, replayed as one CUDA graph. The other two are the throughput that `train_bert4rec.py` logs for its last epoch,
with the default settings and with `training.cuda_graph=true`; the first epochs, in which steps are compiled and
recorded, do not count. `--device cpu` shows on a small table that it runs, without graphs.
"""

import csv
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from src.batch import TrainBatch
from src.command_line import cli
from src.data import BERT4RecDataModule
from src.data.batching import NegativeSampler, Plan
from src.data.fixed_shapes import FixedShapes, RowSet, shapes
from src.data.sequences import Sequences, Spans
from src.data.vocabulary import Vocabulary
from src.models import BERT4Rec
from src.prediction.writer import write_predictions
from src.runs.folder import RunFolder
from src.settings import CONFIGS, parse
from tests.benchmarks import common, start

DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16}
EPOCHS, NEGATIVES = 4, 256
GENERATED_HISTORY = 50  # items of everybody, in tables that are made up


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--precisions", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--losses", nargs="+", default=["softmax"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=330.0, help="no further line is begun after so many")
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--users", type=int, default=1_000_000, help="of the predicted table")
    parser.add_argument("--items", type=int, default=100_000, help="of the predicted table; training's has ten times")
    options = parser.parse_args()
    cli.quiet()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.data.name}, N = {options.max_len}, width {options.width}")
    started = time.perf_counter()
    for work in options.works:
        header, lines = WORKS[work]
        rows = []
        for label, measure in lines(options):
            late = time.perf_counter() - started > options.seconds
            rows.append([label, *(["not run, no time left"] + [""] * (len(header) - 2) if late else measure())])
        common.print_table(header, rows)


Line = tuple[str, Callable[[], list[str]]]  # its name, and what measures its figures


def training(options: Namespace) -> Iterator[Line]:
    for loss in options.losses:
        for precision in options.precisions:
            for batch_size in options.batch_sizes:

                def measure(work: tuple[int, str, str] = (batch_size, precision, loss)) -> list[str]:
                    best = yardstick(options, *work)
                    plain = package(options, *work, [])
                    graph = package(options, *work, ["training.cuda_graph=true"]) if options.device == "cuda" else 0.0
                    return [f"{best:,.0f}", f"{plain:,.0f}", f"{graph:,.0f}", f"{max(plain, graph) / best:.2f}"]

                yield f"{loss}, {precision}, batch {batch_size}", measure


def yardstick(options: Namespace, batch_size: int, precision: str, loss: str) -> float:
    """Sequences a second of a bare loop."""
    data = table(options, batch_size, loss)
    device = torch.device(options.device)
    steps = [data.on_after_batch_transfer(rows, 0) for rows in data.train_dataloader()]
    longest = max(steps, key=lambda step: step.inputs.shape[1])
    batch = TrainBatch(*(_moved(part, device) for part in longest))._replace(num_rows=0)
    model = network(options, data.num_items, loss)
    is_cuda = device.type == "cuda"
    model.compiles, model.is_recorded = is_cuda, is_cuda
    optimizer = model.configure_optimizers()
    compute = torch.compile(model.loss, dynamic=False) if is_cuda else model.loss

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, DTYPES[precision], DTYPES[precision] is not None, cache_enabled=False):
            value = compute(batch)
        value.backward()
        optimizer.step()

    run = _captured(step) if is_cuda else step
    rates = []
    for number in range(6):  # the first one warms up
        seconds = _seconds(run, device, 50 if is_cuda else 2)
        rates += [batch_size / seconds] if number else []
    return statistics.median(rates)


def package(options: Namespace, batch_size: int, precision: str, loss: str, others: list[str]) -> float:
    """Sequences a second that `train_bert4rec.py` logs."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *common.overrides(options, Path(folder)),
            f"data.batch_size={batch_size}",
            f"model.mask_prob={options.mask}",
            f"model.dropout_rate={options.dropout}",
            f"training.precision={precision}",
            f"training.loss={loss}",
            f"training.num_negatives={NEGATIVES}",
            f"training.num_epochs={EPOCHS if options.device == 'cuda' else 2}",
            f"training.accelerator={_accelerator(options)}",
            "training.devices=1",
            "training.logger=[csv]",
            "data.holdout=0",
            "evaluation.report=false",
        ]
        common.run_python(["train_bert4rec.py", *settings, *others], options.threads)
        [path] = Path(folder).glob("logs/csv/**/metrics.csv")
        with path.open(newline="") as file:
            rates = [float(row["sequences_per_second"]) for row in csv.DictReader(file) if row["sequences_per_second"]]
    return rates[-1]


def memory(options: Namespace) -> Iterator[Line]:
    """Training with full softmax: a large batch of this table, and ten times as many items as are predicted."""

    def measure(batch_size: int, num_items: int | None) -> list[str]:
        device, generator = torch.device(options.device), np.random.default_rng(0)
        if num_items is None:
            data = table(options, batch_size, "softmax")
            tokens, spans, num_items = data.sequences.tokens, data.train_rows(), data.num_items
        else:
            tokens, spans = _generated(batch_size, num_items, options.max_len)
        step = RowSet(spans.lengths, batch_size, shapes(int(spans.lengths.max())))[
            Plan(generator.permutation(len(spans))[:batch_size], (1,), (2,))
        ]
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        sampler: NegativeSampler | None = None
        lying = FixedShapes(tokens, spans, device, num_items, options.mask, 0.8, 0.1, 0.0, sampler)
        model = network(options, num_items, "softmax")
        optimizer = model.configure_optimizers()

        def run() -> None:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = model.loss(lying.batch(step._replace(order=step.order.to(device))))
            loss.backward()
            optimizer.step()

        run()
        seconds = _seconds(run, device, 5 if device.type == "cuda" else 1)
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
        return [f"{1000 * seconds:,.1f}", f"{peak:.2f}"]

    yield f"{options.data.stem}, batch 2,048, bf16", lambda: measure(2048, None)
    yield f"{10 * options.items:,} items, batch 128, bf16", lambda: measure(128, 10 * options.items)


def ranking(options: Namespace) -> Iterator[Line]:
    """The seconds of evaluation and of prediction, each once to warm up and once to count."""

    def evaluate() -> list[str]:
        data = table(options, 128, "softmax")
        model = network(options, data.num_items, "softmax")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        seconds = []
        for _ in range(2):
            trainer = pl.Trainer(accelerator=_accelerator(options), devices=1, **quiet)
            started = time.perf_counter()
            trainer.test(model, data.test_dataloader(), verbose=False)
            seconds.append(time.perf_counter() - started)
        return [f"{value:.2f}" for value in seconds]

    def recommend() -> list[str]:
        tokens, spans = _generated(options.users, options.items, GENERATED_HISTORY)
        model = BERT4Rec(options.items, options.width, options.heads, options.layers, GENERATED_HISTORY)
        ids = pa.array([f"item {number}" for number in range(options.items)])
        seconds = []
        with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONFIGS), version_base="1.3"):
            arguments = [f"output_dir={folder}", f"training.accelerator={_accelerator(options)}", "training.devices=1"]
            config = parse(compose("bert4rec", arguments))
            for users in (min(options.users, 10_000), options.users):
                started = time.perf_counter()
                write_predictions(
                    config,
                    model=model,
                    vocabulary=Vocabulary(ids, np.ones(options.items, np.int64)),
                    user_ids=pa.array(np.arange(users)).cast(pa.string()),
                    sequences=Sequences(tokens, np.append(spans.starts[:users], spans.stops[users - 1])),
                    is_barred=None,
                    output_path=RunFolder.at(folder).predictions.with_suffix(".parquet"),
                )
                seconds.append(time.perf_counter() - started)
        return [f"{value:.1f}" for value in seconds]

    yield f"evaluation of {options.data.stem}", evaluate
    yield f"top 10 of {options.users:,} users among {options.items:,} items, to Parquet", recommend


def starting(options: Namespace) -> Iterator[Line]:
    def measure() -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*common.overrides(options, Path(folder)), f"training.accelerator={_accelerator(options)}"]
            return [f"{start.seconds_to_first_step(arguments, options.threads):.1f}" for _ in range(2)]

    yield "from the command to the first step", measure


WORKS: dict[str, tuple[list[str], Callable[[Namespace], Iterator[Line]]]] = {
    "train": (["sequences a second", "yardstick", "by default", "cuda_graph=true", "share"], training),
    "memory": (["full softmax", "ms a step", "peak GiB"], memory),
    "rank": (["ranking", "s, the first time", "s"], ranking),
    "start": (["start", "s, the first time", "s"], starting),
}


def table(options: Namespace, batch_size: int, loss: str) -> BERT4RecDataModule:
    data = BERT4RecDataModule(
        str(options.data.parent),
        options.data.name,
        batch_size=batch_size,
        max_len=options.max_len,
        mask_prob=options.mask,
        num_negatives=0 if loss == "softmax" else NEGATIVES,
        on_device=True,
    )
    data.prepare_data()
    data.setup()
    return data


def network(options: Namespace, num_items: int, loss: str) -> BERT4Rec:
    return BERT4Rec(
        num_items,
        hidden_units=options.width,
        num_heads=options.heads,
        num_layers=options.layers,
        max_len=options.max_len,
        dropout_rate=options.dropout,
        loss=loss,
    ).to(options.device)


def _generated(users: int, num_items: int, length: int) -> tuple[np.ndarray, Spans]:
    """Histories of uniformly drawn items, all of the same length."""
    starts = np.arange(users) * length
    return np.random.default_rng(0).integers(1, num_items + 1, users * length), Spans(starts, starts + length)


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph; see `torch.cuda.graph`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay  # type: ignore[no-any-return]


def _seconds(run: Callable[[], None], device: torch.device, times: int) -> float:
    """Of one run, on average."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        run()
    _wait(device)
    return (time.perf_counter() - started) / times


def _moved(part: object, device: torch.device) -> object:
    if isinstance(part, torch.Tensor):
        return part.to(device)
    return type(part)(*(tensor.to(device) for tensor in part)) if isinstance(part, tuple) else part


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _accelerator(options: Namespace) -> str:
    return "gpu" if options.device == "cuda" else "cpu"


if __name__ == "__main__":
    main()
