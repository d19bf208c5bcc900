"""Reading and preparing tables of three sizes, beside plain pandas and RecTools; and the memory that prediction takes.

python -m tests.benchmarks.data
python -m tests.benchmarks.data --sizes 5.2M --rectools PYTHON
python -m tests.benchmarks.data --sizes --prediction-users 20000 200000

Each figure is of a process of its own, its memory the largest it had, libraries included. Tables are generated: the
popularity of items is Zipf's, the activity of users log-normal, and rows stand in order of time, as in a log.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tests.benchmarks.common import print_table

ROOT = Path(__file__).resolve().parents[2]
ROWS_AT_A_TIME = 2**20
# name -> rows, users, items, file; the first has the size of the competition that the defaults come from
SIZES = {
    "5.2M": (5_200_000, 31_360, 6_807, "numbers.csv"),
    "5.2M strings": (5_200_000, 31_360, 6_807, "strings.csv"),
    "25M": (25_000_000, 160_000, 60_000, "large.csv"),
    "100M": (100_000_000, 1_000_000, 200_000, "huge.parquet"),
}


def tables(rows: int, users: int, items: int, has_strings: bool) -> Iterator[pa.Table]:
    """A log in pieces."""
    generator = np.random.default_rng(rows)
    activity = generator.lognormal(0.0, 1.0, users).cumsum()
    popularity = (1.0 / np.arange(1, items + 1) ** 0.9).cumsum()
    ids = {"user": generator.permutation(10 * users)[:users], "item": generator.permutation(10 * items)[:items]}
    names = {role: pa.array([f"{role}-{n:08d}" for n in ids[role]] if has_strings else ids[role]) for role in ids}
    clock = 1_400_000_000.0
    for start in range(0, rows, ROWS_AT_A_TIME):
        count = min(ROWS_AT_A_TIME, rows - start)
        drawn = {
            "user": np.searchsorted(activity, generator.random(count) * activity[-1]),
            "item": np.searchsorted(popularity, generator.random(count) * popularity[-1]),
        }
        times = clock + generator.exponential(2e8 / rows, count).cumsum()
        clock = float(times[-1])
        columns = {role: names[role].take(pa.array(places)) for role, places in drawn.items()}
        yield pa.table({**columns, "time": times.astype(np.int64)})


def write(path: Path, pieces: Iterator[pa.Table]) -> None:
    first = next(pieces)
    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetWriter(path, first.schema) as parquet:
            for piece in (first, *pieces):
                parquet.write_table(piece)
        return
    options = pyarrow.csv.WriteOptions(quoting_style="none")
    with pyarrow.csv.CSVWriter(path, first.schema, write_options=options) as text:
        text.write_table(first)
        for piece in pieces:
            text.write_table(piece)


def time_it(task: str, path: Path, folder: Path) -> None:
    """In a process of its own: do one task and print what it took."""
    small = folder / f"small{path.suffix}"
    run = TASKS[task]
    run(small, folder)  # whatever is imported at first use
    started = time.perf_counter()
    run(path, folder)
    print(json.dumps({"seconds": time.perf_counter() - started, "bytes": peak(resource.RUSAGE_SELF)}))


def peak(who: int) -> int:
    """Largest size in memory, in bytes."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_with_pandas(path: Path, folder: Path) -> object:
    import pandas as pd

    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, engine="pyarrow")


def prepare_with_pandas(path: Path, folder: Path) -> object:
    """What a script would write: ids to numbers, then sorted by user and time."""
    import pandas as pd

    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    for name in ("user", "item"):
        table[name], _ = pd.factorize(table[name])
    table = table.sort_values(["user", "time"], kind="stable")
    return table["item"].to_numpy(), table.groupby("user").size()


def prepare(path: Path, folder: Path, cache: Path | None = None) -> object:
    from src.data.loading import load_training_data
    from src.data.table import TableOptions

    return load_training_data(path, TableOptions(), 3, 1, cache)


def prepare_with_cache(path: Path, folder: Path) -> object:
    return prepare(path, folder, folder / "cache")


TASKS = {"pandas": read_with_pandas, "plain": prepare_with_pandas, "ours": prepare, "cached": prepare_with_cache}


def measure(command: list[str]) -> dict[str, float] | None:
    """Seconds and bytes of one run; None if it does not run here."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        print((done.stderr.strip().splitlines() or ["killed"])[-1][:200], file=sys.stderr)
        return None
    outcome: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return outcome


def compare(name: str, folder: Path, rectools: str | None, engines: str | None, rounds: int) -> list[list[str]]:
    """Rows of the table: each way to prepare the file of this size."""
    peers = Path(__file__).parent / "peers"
    rows, users, items, file = SIZES[name]
    path = folder / file
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        write(path, tables(rows, users, items, "strings" in name))
    write(folder / f"small{path.suffix}", tables(1000, 10, 20, "strings" in name))
    this = [sys.executable, "-m", "tests.benchmarks.data", "--folder", str(folder), "--task"]
    tasks = {
        "pandas, reading alone": [*this, "pandas", str(path)],
        "pandas, ids and order": [*this, "plain", str(path)],
        "this package": [*this, "ours", str(path)],
        "this package, again": [*this, "cached", str(path)],
    }
    if rectools:
        tasks["RecTools, Dataset.construct"] = [rectools, str(peers / "bench_rectools_data.py"), str(path)]
    for engine in ("polars", "duckdb") if engines else ():
        tasks[engine] = [str(engines), str(peers / "bench_engines_data.py"), engine, str(path)]
    subprocess.run([*this, "cached", str(path)], cwd=ROOT, capture_output=True, check=False)  # the first run
    outcomes: dict[str, list[dict[str, float] | None]] = {label: [] for label in tasks}
    for _ in range(rounds):  # in turn, so that whatever else the machine does meets all of them
        for label, command in tasks.items():
            print(f"{name}: {label}", file=sys.stderr)
            outcomes[label].append(measure(command))
    lines, reading = [], None
    for label, measured in outcomes.items():
        runs = [outcome for outcome in measured if outcome]
        if len(runs) < rounds:
            lines.append([name, label, "-", "-", "-", "-"])
            continue
        seconds = statistics.median(run["seconds"] for run in runs)
        reading = reading or seconds
        gib = f"{max(run['bytes'] for run in runs) / 2**30:.2f}"
        lines.append([name, label, f"{seconds:.2f}", f"{rows / seconds / 1e6:.2f}", f"{seconds / reading:.2f}", gib])
    return lines


def predict(counts: list[int], items: int, folder: Path) -> list[list[str]]:
    """Rows of the table: predict_bert4rec.py for tables of so many users, of three rows each, with one model."""
    generator = np.random.default_rng(3)
    lines = []
    for count in counts:
        shown = np.concatenate([np.arange(items), generator.integers(0, items, max(0, 3 * count - items))])[: 3 * count]
        users = generator.permutation(np.repeat(np.arange(count), 3))
        path = folder / f"{count}.csv"
        write(path, iter([pa.table({"user": users, "item": shown})]))
        run = [f"data.data_dir={folder}", f"output_dir={folder / 'model'}", "training.accelerator=cpu"]
        if not (folder / "model").exists():
            sizes = ["model.num_layers=1", "model.num_heads=2", "model.max_len=10", "data.holdout=0"]
            steps = ["training.max_steps=1", "training.loss=sampled_softmax", f"data.data_file={path.name}"]
            subprocess.run([sys.executable, "train_bert4rec.py", *run, *sizes, *steps], cwd=ROOT, check=True)
        started = time.perf_counter()
        child = [sys.executable, "predict_bert4rec.py", *run, f"data.data_file={path.name}"]
        child += [f"inference.output_path={folder / 'predictions.parquet'}"]
        code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
        done = subprocess.run([sys.executable, "-c", code, *child], cwd=ROOT, capture_output=True, check=True)
        seconds = time.perf_counter() - started
        gib = int(done.stdout.split()[-1]) / 2**30
        lines.append([f"{count:,}", f"{items:,}", f"{seconds:.1f}", f"{count / seconds:,.0f}", f"{gib:.2f}"])
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--rectools", metavar="PYTHON", help="an interpreter that has rectools")
    options.add_argument("--engines", metavar="PYTHON", help="an interpreter that has polars and duckdb")
    options.add_argument("--folder", type=Path, help="where the tables are written and stay; else a temporary folder")
    options.add_argument("--prediction-users", type=int, nargs="*", default=[20_000, 100_000])
    options.add_argument("--prediction-items", type=int, default=100_000)
    options.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if chosen.task:
            time_it(chosen.task[0], Path(chosen.task[1]), folder)
            return
        for name in chosen.sizes:
            lines = compare(name, folder, chosen.rectools, chosen.engines, chosen.rounds)
            print_table(["rows", "way", "seconds", "million rows/s", "x reading", "peak GiB"], lines)
        if chosen.prediction_users:
            lines = predict(chosen.prediction_users, chosen.prediction_items, folder)
            print_table(["users", "items", "seconds", "users/s", "peak GiB"], lines)


if __name__ == "__main__":
    main()
