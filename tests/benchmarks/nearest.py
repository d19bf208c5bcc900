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

BUILD_WIDTH = 200  # efConstruction of HNSW
SEARCH_WIDTHS = (64, 128, 256)  # efSearch
SHARES = (16, 8, 4)  # of the lists of IVF, one in so many is searched
ALONE = 1000  # users who are asked for one by one


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


def equally_long(items: np.ndarray) -> np.ndarray:
    """One coordinate more, so that the item with the largest product is the nearest one (Bachrach et al., 2014)."""
    norms = (items**2).sum(axis=1)
    return np.column_stack([items, np.sqrt(norms.max() - norms)])


class Search:
    """Searches indexes for the vectors [U, W] of users, beside the exact result [U, K].

    Args:
        topk: K.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, topk: int) -> None:
        import faiss

        self.users, self.topk = users, topk
        self.exact = faiss.IndexFlatIP(items.shape[1])
        self.exact.add(items)
        self.expected = self.exact.search(users, topk)[1]

    def row(self, name: str, index: Any, built: float) -> list[str]:
        """Recall, seconds to build, users a second all at once, and milliseconds of one alone."""
        users = np.pad(self.users, ((0, 0), (0, index.d - self.users.shape[1])))
        started = time.perf_counter()
        found = index.search(users, self.topk)[1]
        rate = len(users) / (time.perf_counter() - started)
        started = time.perf_counter()
        for user in users[:ALONE]:
            index.search(user[None], self.topk)
        milliseconds = 1000 * (time.perf_counter() - started) / len(users[:ALONE])
        hits = sum(len(np.intersect1d(*pair)) for pair in zip(found, self.expected, strict=True))
        return [name, f"{hits / found.size:.4f}", f"{built:.1f}", f"{rate:,.0f}", f"{milliseconds:.2f}"]


def built(name: str, vectors: np.ndarray, metric: int) -> tuple[Any, float]:
    """A faiss index of vectors, and the seconds that it took."""
    import faiss

    index = faiss.index_factory(vectors.shape[1], name, metric)
    if "HNSW" in name:
        index.hnsw.efConstruction = BUILD_WIDTH
    started = time.perf_counter()
    index.train(vectors)
    index.add(vectors)
    return index, time.perf_counter() - started


def main() -> None:
    given = options()
    import faiss

    with tempfile.TemporaryDirectory() as scratch:
        items, users = write_vectors(given, given.folder or Path(scratch))
    print(f"{len(items):,} items, {len(users):,} users")
    faiss.omp_set_num_threads(given.threads)
    search = Search(users, items, given.topk)
    rows = [search.row("exact", search.exact, 0.0)]
    product, distance = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
    lists = int(len(items) ** 0.5)
    index, seconds = built(f"IVF{lists},Flat", items, product)
    for share in SHARES:
        index.nprobe = 1 + lists // share
        rows.append(search.row(f"IVF, {index.nprobe} of {lists} lists", index, seconds))
    for what, vectors, metric in (("product", items, product), ("distance", equally_long(items), distance)):
        index, seconds = built("HNSW32,Flat", vectors, metric)
        for width in SEARCH_WIDTHS:
            index.hnsw.efSearch = width
            rows.append(search.row(f"HNSW by {what}, efSearch={width}", index, seconds))
    header = ["index", f"recall@{given.topk}", "built in s", "users per second", "one user, ms"]
    common.print_table(header, rows)


if __name__ == "__main__":
    main()
