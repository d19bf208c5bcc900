"""How well and how fast an approximate index finds what exact search finds: the ten best items of every user.

python -m tests.benchmarks.nearest --data FOLDER/beauty.csv --experiment best/beauty

Trains a model, unless `--folder` has one, writes the vectors by the script, and searches them with faiss:
pip install -e '.[ann]'. Seen items are not excluded.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.benchmarks import common

NEIGHBOURS, WIDTH_OF_BUILD = 32, 200  # M and efConstruction of HNSW
WIDTHS = (16, 32, 64, 128, 256)  # efSearch
ALONE = 1000  # queries that are asked one by one


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CSV with the columns user, item, time")
    parser.add_argument("--experiment", default="null", help="a preset of configs/experiment")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="of the run: kept, and used if there is a model in it")
    parser.add_argument("--topk", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def write_vectors(given: argparse.Namespace, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [N, W] of all items and [U, W] of all users, from a model that is trained first if there is none."""
    overrides = [f"experiment={given.experiment}", "training.accelerator=cpu", *common.data_overrides(given, folder)]
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        training = [f"training.num_epochs={given.epochs}", "data.holdout=0", "training.logger=[]"]
        common.run_python(["train_bert4rec.py", *overrides, *training], given.threads)
    paths = {name: folder / f"{name}.parquet" for name in ("embeddings", "user_vectors")}
    outputs = [f"inference.{name}={path}" for name, path in paths.items()]
    common.run_python(["predict_bert4rec.py", *overrides, *outputs], given.threads)
    items, users = (np.stack(pd.read_parquet(path)["vector"].to_list()) for path in paths.values())
    return items, users


def measured(index: Any, users: np.ndarray, topk: int) -> tuple[np.ndarray, float, float]:
    """What is found [U, topk], users a second all at once, and milliseconds of one alone."""
    started = time.perf_counter()
    found = index.search(users, topk)[1]
    rate = len(users) / (time.perf_counter() - started)
    started = time.perf_counter()
    for user in users[:ALONE]:
        index.search(user[None], topk)
    return found, rate, 1000 * (time.perf_counter() - started) / min(ALONE, len(users))


def main() -> None:
    given = options()
    import faiss

    with tempfile.TemporaryDirectory() as scratch:
        items, users = write_vectors(given, given.folder or Path(scratch))
    faiss.omp_set_num_threads(given.threads)
    exact = faiss.IndexFlatIP(items.shape[1])
    exact.add(items)
    expected, *speed = measured(exact, users, given.topk)
    rows = [["exact, IndexFlatIP", "1", f"{speed[0]:,.0f}", f"{speed[1]:.2f}"]]
    index = faiss.IndexHNSWFlat(items.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = WIDTH_OF_BUILD
    started = time.perf_counter()
    index.add(items)
    print(f"{len(items):,} items, {len(users):,} users, index built in {time.perf_counter() - started:.1f} s")
    for width in WIDTHS:
        index.hnsw.efSearch = width
        found, *speed = measured(index, users, given.topk)
        hits = [len(np.intersect1d(*pair)) for pair in zip(found, expected, strict=True)]
        recall = sum(hits) / expected.size
        rows.append([f"HNSW, efSearch={width}", f"{recall:.4f}", f"{speed[0]:,.0f}", f"{speed[1]:.2f}"])
    common.print_table(["index", f"recall@{given.topk}", "users per second", "one user, ms"], rows)


if __name__ == "__main__":
    main()
