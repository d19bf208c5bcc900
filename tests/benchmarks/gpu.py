"""Training on a GPU through the user's own command, beside what the same network reaches there without any of it.

python -m tests.benchmarks.gpu --data FOLDER/ml-1m.csv --max-len 200 --mask 0.2 --batch-sizes 128 1024

The yardstick is a bare loop over one batch of fixed shape: the compiled loss, its gradients and Adam, replayed as one
CUDA graph. The package's figure is the throughput that `train_bert4rec.py` logs for its last epoch; the first one, in
which the step is compiled, does not count. `--device cpu` shows on a small table that it runs.
"""

import csv
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch

from src.batch import TrainBatch
from src.data import BERT4RecDataModule
from src.models import BERT4Rec
from tests.benchmarks import common

DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16}
EPOCHS = 4


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--precisions", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--losses", nargs="+", default=["softmax"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=330.0, help="no further row is begun after so many")
    options = parser.parse_args()
    started, rows = time.perf_counter(), []
    works = [(b, p, loss) for loss in options.losses for p in options.precisions for b in options.batch_sizes]
    for batch_size, precision, loss in works:
        if time.perf_counter() - started > options.seconds:
            rows.append([f"{loss}, {precision}, batch {batch_size}", "not run, no time left", "", "", ""])
            continue
        best, peak = yardstick(options, batch_size, precision, loss)
        reached = package(options, batch_size, precision, loss)
        share = reached / best
        rows.append(
            [f"{loss}, {precision}, batch {batch_size}", f"{best:,.0f}", f"{reached:,.0f}", f"{share:.2f}", f"{peak:,}"]
        )
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.data.name}, N = {options.max_len}, width {options.width}")
    common.print_table(["sequences a second", "yardstick", "train_bert4rec.py", "share", "peak MiB"], rows)


def yardstick(options: Namespace, batch_size: int, precision: str, loss: str) -> tuple[float, int]:
    """Sequences a second of a bare loop, and MiB that the device held at most."""
    data = BERT4RecDataModule(
        str(options.data.parent),
        options.data.name,
        batch_size=batch_size,
        max_len=options.max_len,
        mask_prob=options.mask,
        num_negatives=0 if loss == "softmax" else 256,
        on_device=True,
    )
    data.prepare_data()
    data.setup()
    device = torch.device(options.device)
    steps = [data.on_after_batch_transfer(rows, 0) for rows in data.train_dataloader()]
    longest = max(steps, key=lambda step: step.inputs.shape[1])
    batch = TrainBatch(*(_moved(part, device) for part in longest))._replace(num_rows=0)
    model = BERT4Rec(
        data.num_items,
        hidden_units=options.width,
        num_heads=options.heads,
        num_layers=options.layers,
        max_len=options.max_len,
        dropout_rate=options.dropout,
        loss=loss,
    ).to(device)
    is_cuda = device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=is_cuda)
    compute = torch.compile(model.loss, dynamic=False) if is_cuda and loss == "softmax" else model.loss
    model.network.item_embedding.sparse = False

    def step() -> None:
        with torch.autocast(device.type, dtype=DTYPES[precision], enabled=DTYPES[precision] is not None):
            value = compute(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    run = _captured(step) if is_cuda and loss == "softmax" else step
    for _ in range(3):
        run()
    rates = []
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        for _ in range(50 if is_cuda else 2):
            run()
        _wait(device)
        rates.append(batch_size * (50 if is_cuda else 2) / (time.perf_counter() - started))
    return statistics.median(rates), torch.cuda.max_memory_allocated() // 2**20 if is_cuda else 0


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


def _moved(part: object, device: torch.device) -> object:
    if isinstance(part, torch.Tensor):
        return part.to(device)
    return type(part)(*(tensor.to(device) for tensor in part)) if isinstance(part, tuple) else part


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def package(options: Namespace, batch_size: int, precision: str, loss: str) -> float:
    """Sequences a second that `train_bert4rec.py` logs."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *common.overrides(options, Path(folder)),
            f"data.batch_size={batch_size}",
            f"model.mask_prob={options.mask}",
            f"model.dropout_rate={options.dropout}",
            f"training.precision={precision}",
            f"training.loss={loss}",
            f"training.num_epochs={EPOCHS if options.device == 'cuda' else 2}",
            f"training.accelerator={'gpu' if options.device == 'cuda' else 'cpu'}",
            "training.devices=1",
            "training.logger=[csv]",
            "data.holdout=0",
            "evaluation.report=false",
        ]
        common.run_python(["train_bert4rec.py", *settings], options.threads)
        [path] = Path(folder).glob("logs/csv/**/metrics.csv")
        with path.open(newline="") as file:
            rates = [float(row["sequences_per_second"]) for row in csv.DictReader(file) if row["sequences_per_second"]]
    return rates[-1]


if __name__ == "__main__":
    main()
