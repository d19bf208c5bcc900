"""RePlay's BERT4Rec on a CSV, for the benchmarks: runs in an interpreter that has `replay-rec[torch]`, prints JSON."""

import argparse
import json
import os
import time

import lightning
import pandas as pd
import torch
from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureSource, FeatureType
from replay.data.nn import SequenceTokenizer, SequentialDataset, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.optimizer_utils import FatOptimizerFactory
from replay.models.nn.sequential import Bert4Rec
from replay.models.nn.sequential.bert4rec import Bert4RecTrainingDataset, Bert4RecValidationDataset
from replay.models.nn.sequential.callbacks import ValidationMetricsCallback
from replay.models.nn.sequential.postprocessors import RemoveSeenItems
from torch.utils.data import DataLoader


class Stopwatch(lightning.Callback):
    """Counts steps after the first few and stops training after some seconds."""

    def __init__(self, seconds, batch_size):
        self.seconds, self.batch_size, self.steps = seconds, batch_size, -2

    def on_train_batch_end(self, *_):
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

table = pd.read_csv(options.csv).sort_values(["user", "time"], kind="stable")
from_end = table.groupby("user").cumcount(ascending=False)
history, truth = table[from_end > 0], table[from_end == 0]
ids = [
    FeatureInfo("user", FeatureType.CATEGORICAL, FeatureHint.QUERY_ID),
    FeatureInfo("item", FeatureType.CATEGORICAL, FeatureHint.ITEM_ID),
]
timed = [*ids, FeatureInfo("time", FeatureType.NUMERICAL, FeatureHint.TIMESTAMP)]
dataset = Dataset(
    FeatureSchema(timed),
    history,
    query_features=table[["user"]].drop_duplicates(),
    item_features=table[["item"]].drop_duplicates(),
)
schema = TensorSchema(
    TensorFeatureInfo(
        name="item_sequence",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        feature_hint=FeatureHint.ITEM_ID,
        embedding_dim=options.width,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item")],
    )
)
tokenizer = SequenceTokenizer(schema).fit(dataset)
sequences = tokenizer.transform(dataset)
model = Bert4Rec(
    schema,
    block_count=options.layers,
    head_count=options.heads,
    hidden_size=options.width,
    max_seq_len=options.max_len,
    dropout_rate=options.dropout,
    loss_type="CE_restricted",
    enable_embedding_tying=True,
    optimizer_factory=FatOptimizerFactory(learning_rate=0.001),
)
stopwatch = Stopwatch(options.seconds, options.batch_size)
truths = tokenizer.transform(Dataset(FeatureSchema(ids), truth[["user", "item"]]), ["item_sequence"])
histories, truths = SequentialDataset.keep_common_query_ids(sequences, truths)
ranking = ValidationMetricsCallback(metrics=["ndcg", "recall"], ks=[10], postprocessors=[RemoveSeenItems(histories)])
trainer = lightning.Trainer(
    accelerator="cpu",
    max_epochs=1000,
    max_steps=-1 if options.task == "train" else 1,
    callbacks=[stopwatch, ranking],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
loader = DataLoader(
    Bert4RecTrainingDataset(sequences, options.max_len, mask_prob=options.mask), options.batch_size, shuffle=True
)
trainer.fit(model, loader)  # to train, ends in Stopwatch
validation = DataLoader(Bert4RecValidationDataset(histories, truths, sequences, options.max_len), 256)
started = time.perf_counter()
trainer.validate(model, validation, verbose=False)
print(json.dumps({"rank_seconds": time.perf_counter() - started}))
