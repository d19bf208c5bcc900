"""BERT4Rec of RecTools on a CSV, for the benchmarks: runs where `rectools[torch]` is installed and prints JSON."""

import tempfile

import pandas as pd
from clock import Clock, arguments, report_seconds
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel

options = arguments()
clock = Clock(options)


class Tick(Callback):
    def on_train_batch_end(self, *_):
        clock.tick()


def make_trainer():
    return Trainer(
        accelerator="cpu",
        max_epochs=1000,
        max_steps=clock.max_steps,
        callbacks=[Tick()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


table = pd.read_csv(options.csv).rename(columns={"user": "user_id", "item": "item_id"})
table["datetime"] = pd.to_datetime(table.pop("time"), unit="s")
table["weight"] = 1.0
table = table.sort_values(["user_id", "datetime"], kind="stable")
train = table[table.groupby("user_id").cumcount(ascending=False) > 0]
model = BERT4RecModel(
    n_factors=options.width,
    n_blocks=options.layers,
    n_heads=options.heads,
    session_max_len=options.max_len,
    mask_prob=options.mask,
    dropout_rate=options.dropout,
    batch_size=options.batch_size,
    lr=0.001,
    loss="softmax",
    get_trainer_func=make_trainer,
    recommend_batch_size=256,
    verbose=0,
)
dataset = Dataset.construct(train)
model.fit(dataset)


def recommend():
    table = model.recommend(train["user_id"].unique(), dataset, k=10, filter_viewed=True)
    if options.task == "recommend":
        with tempfile.NamedTemporaryFile(suffix=".csv") as file:
            table.to_csv(file.name, index=False)


report_seconds(recommend)
