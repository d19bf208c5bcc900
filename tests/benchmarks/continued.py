"""A run that continues on a later table by `training.init_from`, beside one from scratch, after equal training time.

python -m tests.benchmarks.continued --data FOLDER/ml-1m.csv

The earlier table is the first part of each history, without some items, which stand for those that come later. A model
is trained on it beforehand. Then both runs train on the whole table; the clock stops while they are evaluated, on each
user's last item. Neither run has ever trained on what validates or tests: the earlier table's last two items are held
out as well.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch

from src import metrics
from src.kernels import door
from src.models.network import last_places
from tests.benchmarks import common


class Clock(pl.Callback):
    """Evaluates after so many seconds of training, and ends it after the last of them.

    Args:
        seconds: ascending.
        path: where a list with NDCG@10 at each of them is written, as JSON.
    """

    def __init__(self, seconds: list[float], path: str) -> None:
        self.left, self.path = list(seconds), Path(path)
        self.figures: list[float] = []
        self.started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        now = time.perf_counter()
        if not self.left or now - self.started < self.left[0]:
            return
        self.figures.append(ndcg(trainer, pl_module))
        self.path.write_text(json.dumps(self.figures))
        self.left.pop(0)
        trainer.should_stop = not self.left
        self.started += time.perf_counter() - now


@torch.inference_mode()
def ndcg(trainer: pl.Trainer, model: Any) -> float:
    """NDCG@10 on each user's last item, all items ranked."""
    model.eval()
    ranks = []
    for batch in trainer.datamodule.test_dataloader():  # type: ignore[attr-defined]
        hidden = door.encode(model.network, batch.inputs, last_places(batch.inputs))
        ranks.append(door.target_ranks(model.network, hidden, batch.targets, batch.seen_rows, batch.seen_items))
    model.train()
    return metrics.means(torch.cat(ranks), [10], "")["ndcg@10"]


def write_earlier(given: argparse.Namespace, path: Path) -> None:
    """The first `--share` of each history, without the items of which nobody knows yet."""
    table = pd.read_csv(given.data, dtype={"user": str, "item": str}).sort_values(["user", "time"], kind="stable")
    histories = table.groupby("user")["time"]
    place, length = histories.cumcount(), histories.transform("size")
    items = table["item"].drop_duplicates().sort_values()
    later = items.sample(frac=given.new_items, random_state=1)
    earlier = table[(place < given.share * length) & ~table["item"].isin(later)]
    earlier.to_csv(path, index=False)
    print(
        f"earlier table: {len(earlier):,} of {len(table):,} interactions, {earlier['item'].nunique():,} of"
        f" {len(items):,} items"
    )


def train(given: argparse.Namespace, data: Path, folder: Path, seconds: list[float], *overrides: str) -> list[float]:
    """NDCG@10 at each of these seconds of a run into `folder`."""
    figures = folder.with_suffix(".json")
    clock = f"{{_target_:tests.benchmarks.continued.Clock,seconds:{json.dumps(seconds)},path:'{figures}'}}"
    arguments = [
        f"experiment={given.experiment}",
        f"data.data_dir={data.resolve().parent}",
        f"data.data_file={data.name}",
        f"output_dir={folder}",
        f"training.callbacks=[{clock}]",
        "training.accelerator=cpu",
        "training.scheduler=none",  # a decay would need to know the end
        "training.num_epochs=100000",
        "training.max_steps=null",
        "training.val_check_interval=100000",
        "training.logger=[]",
        "evaluation.bootstrap=0",
        "evaluation.report=false",
        *overrides,
    ]
    printed = common.run_python(["train_bert4rec.py", *arguments], given.threads)
    for line in printed.splitlines():
        if line.startswith(("trained", "init_from", "new items")):
            print(line.replace(f"{folder.parent}/", ""), flush=True)
    found: list[float] = json.loads(figures.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CSV with the columns user, item, time")
    parser.add_argument("--experiment", default="best/ml-1m", help="a preset of configs/experiment")
    parser.add_argument("--share", type=float, default=0.8, help="of each history that is in the earlier table")
    parser.add_argument("--new-items", type=float, default=0.05, help="share of the items that it does not have")
    parser.add_argument("--earlier-seconds", type=float, default=90.0, help="of training on it")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0, 10.0, 20.0, 40.0])
    parser.add_argument("--folder", type=Path, help="of the runs: kept, and an earlier run in it is used")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        earlier, table = folder / "earlier", folder / "earlier.csv"
        checkpoint = earlier / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            write_earlier(given, table)
            train(given, table, earlier, [given.earlier_seconds])
        rows = {
            "from scratch": train(given, given.data, folder / "scratch", given.seconds),
            "training.init_from": train(
                given, given.data, folder / "continued", given.seconds, f"training.init_from={checkpoint}"
            ),
        }
    header = ["NDCG@10 after", *(f"{second:g} s" for second in given.seconds)]
    common.print_table(header, [[name, *(f"{value:.4f}" for value in values)] for name, values in rows.items()])


if __name__ == "__main__":
    main()
