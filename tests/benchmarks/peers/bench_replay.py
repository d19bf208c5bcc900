"""BERT4Rec of RePlay on a CSV, for the benchmarks: runs where `replay-rec[torch]` is installed and prints JSON."""

import lightning
import pandas as pd
from clock import Clock, arguments, report_seconds
from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureSource, FeatureType
from replay.data.nn import (
    SequenceTokenizer,
    SequentialDataset,
    TensorFeatureInfo,
    TensorFeatureSource,
    TensorSchema,
)
from replay.models.nn.optimizer_utils import FatOptimizerFactory
from replay.models.nn.sequential import Bert4Rec
from replay.models.nn.sequential.bert4rec import Bert4RecTrainingDataset, Bert4RecValidationDataset
from replay.models.nn.sequential.callbacks import ValidationMetricsCallback
from replay.models.nn.sequential.postprocessors import RemoveSeenItems
from torch.utils.data import DataLoader

options = arguments()
clock = Clock(options)


class Tick(lightning.Callback):
    def on_train_batch_end(self, *_):
        clock.tick()


table = pd.read_csv(options.csv).sort_values(["user", "time"], kind="stable")
is_last = table.groupby("user").cumcount(ascending=False) == 0
history, truth = table[~is_last], table[is_last & table["user"].duplicated()]
features = [
    FeatureInfo("user", FeatureType.CATEGORICAL, FeatureHint.QUERY_ID),
    FeatureInfo("item", FeatureType.CATEGORICAL, FeatureHint.ITEM_ID),
    FeatureInfo("time", FeatureType.NUMERICAL, FeatureHint.TIMESTAMP),
]
dataset = Dataset(
    FeatureSchema(features),
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
targets = tokenizer.transform(Dataset(FeatureSchema(features[:2]), truth[["user", "item"]]), ["item_sequence"])
histories, targets = SequentialDataset.keep_common_query_ids(sequences, targets)
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
trainer = lightning.Trainer(
    accelerator="cpu",
    max_epochs=1000,
    max_steps=clock.max_steps,
    callbacks=[
        Tick(),
        ValidationMetricsCallback(metrics=["ndcg", "recall"], ks=[10], postprocessors=[RemoveSeenItems(histories)]),
    ],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
masked = Bert4RecTrainingDataset(sequences, options.max_len, mask_prob=options.mask)
trainer.fit(model, DataLoader(masked, options.batch_size, shuffle=True))
validation = DataLoader(Bert4RecValidationDataset(histories, targets, sequences, options.max_len), 256)
report_seconds(lambda: trainer.validate(model, validation, verbose=False))
