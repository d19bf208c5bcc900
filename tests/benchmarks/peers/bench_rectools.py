"""BERT4Rec of RecTools on a CSV, for the benchmarks: runs where `rectools[torch]` is installed and prints JSON."""

import argparse
import json
import os
import tempfile
import time

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel


class Stopwatch(Callback):
    """Counts steps after the first few and stops training after some seconds."""

    def __init__(self, seconds, batch_size):
        self.seconds, self.batch_size, self.steps = seconds, batch_size, -2

    def on_train_batch_end(self, trainer, *_):
        self.steps += 1
        if self.steps == 0:
            self.started = time.perf_counter()
        elif self.steps > 0 and time.perf_counter() - self.started > self.seconds:
            rate = self.steps * self.batch_size / (time.perf_counter() - self.started)
            print(json.dumps({"sequences_per_second": rate}), flush=True)
            os._exit(0)  # the trainer has no clean way out of the middle of an epoch


parser = argparse.ArgumentParser()
parser.add_argument("task", choices=["train", "rank"])
parser.add_argument("csv")
for name in ("max-len", "width", "layers", "heads", "batch-size"):
    parser.add_argument(f"--{name}", type=int, required=True)
for name in ("mask", "dropout", "seconds"):
    parser.add_argument(f"--{name}", type=float, required=True)
options = parser.parse_args()
torch.set_num_threads(2)

table = pd.read_csv(options.csv).rename(columns={"user": "user_id", "item": "item_id"})
table["datetime"] = pd.to_datetime(table.pop("time"), unit="s")
table["weight"] = 1.0
table = table.sort_values(["user_id", "datetime"], kind="stable")
train = table[table.groupby("user_id").cumcount(ascending=False) > 0]
dataset = Dataset.construct(train)
stopwatch = Stopwatch(options.seconds, options.batch_size)


def make_trainer():
    return Trainer(
        accelerator="cpu",
        max_epochs=1000,
        max_steps=-1 if options.task == "train" else 1,
        callbacks=[stopwatch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


model = BERT4RecModel(
    n_factors=options.width,
    n_blocks=options.layers,
    n_heads=options.heads,
    session_max_len=options.max_len,
    mask_prob=options.mask,
    dropout_rate=options.dropout,
    batch_size=options.batch_size,
    recommend_batch_size=256,
    lr=0.001,
    loss="softmax",
    get_trainer_func=make_trainer,
    verbose=0,
)
model.fit(dataset)  # to train, ends in Stopwatch
users = train["user_id"].unique()
started = time.perf_counter()
lists = model.recommend(users, dataset, k=10, filter_viewed=True)
ranked = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    lists.to_csv(f"{folder}/top.csv", index=False)
print(json.dumps({"rank_seconds": ranked - started, "write_seconds": time.perf_counter() - started}))
