"""How fast `Recommender` loads and answers: python -m tests.benchmarks.recommender

A model of the default size with 50,000 items and random weights, in a process of its own for the load.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

LOAD = """
import time, sys
start = time.perf_counter()
import torch
imported = time.perf_counter()
from src import Recommender
recommender = Recommender.from_checkpoint(sys.argv[1])
loaded = time.perf_counter()
recommender.recommend([[recommender.items[0]]])
print(imported - start, loaded - imported, time.perf_counter() - loaded)
"""


def write_checkpoint(path: Path, num_items: int) -> None:
    import numpy as np
    import pyarrow as pa
    import torch

    from src.data.vocabulary import Vocabulary
    from src.models import BERT4Rec

    model = BERT4Rec(num_items)
    vocabulary = Vocabulary(pa.array([f"item-{n:06d}" for n in range(num_items)]), np.arange(num_items))
    torch.save(
        {
            "state_dict": model.state_dict(),
            "hyper_parameters": dict(model.hparams),
            "BERT4RecDataModule": {"vocabulary": vocabulary.state_dict()},
        },
        path,
    )


def milliseconds(call: Callable[[], object], rounds: int) -> str:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return f"{1000 * statistics.median(seconds):.1f} ms (median of {rounds}), slowest {1000 * max(seconds):.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=50_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        write_checkpoint(path, arguments.items)
        for _ in range(3):
            ended = subprocess.run(
                [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True
            ).stdout.split()
            torch_seconds, load_seconds, first_seconds = map(float, ended)
            print(f"import torch {torch_seconds:.2f} s, load {load_seconds:.2f} s, first answer {first_seconds:.3f} s")

        import numpy as np

        from src import Recommender

        recommender = Recommender.from_checkpoint(path)
        generator = np.random.default_rng(0)
        histories = [[recommender.items[n] for n in generator.integers(0, arguments.items, 49)] for _ in range(256)]
        print(f"one history      {milliseconds(lambda: recommender.recommend(histories[:1]), 100)}")
        print(f"256 histories    {milliseconds(lambda: recommender.recommend(histories), 5)}")


if __name__ == "__main__":
    main()
