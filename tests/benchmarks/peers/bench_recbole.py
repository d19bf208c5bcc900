"""RecBole's BERT4Rec on a CSV, for the benchmarks: runs in an interpreter that has `recbole` and prints JSON."""

import os
import tempfile

import numpy as np
import pandas as pd
import torch
from clock import Clock, arguments

# Names that RecBole still uses and NumPy 2 has not any more.
for old, new in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
    setattr(np, old, new)

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, init_seed  # noqa: E402

options = arguments()
clock = Clock(options)

with tempfile.TemporaryDirectory() as folder:
    os.mkdir(f"{folder}/bench")
    header = ["user_id:token", "item_id:token", "timestamp:float"]
    pd.read_csv(options.csv).to_csv(f"{folder}/bench/bench.inter", sep="\t", index=False, header=header)
    config = Config(
        "BERT4Rec",
        "bench",
        config_dict={
            "data_path": folder,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "n_layers": options.layers,
            "n_heads": options.heads,
            "hidden_size": options.width,
            "inner_size": 4 * options.width,
            "hidden_dropout_prob": options.dropout,
            "attn_dropout_prob": options.dropout,
            "mask_ratio": options.mask,
            "ft_ratio": 0.0,
            "MAX_ITEM_LIST_LENGTH": options.max_len,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "train_batch_size": options.batch_size,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            "use_gpu": False,
            "gpu_id": "",
            "show_progress": False,
            "state": "ERROR",
        },
    )
    init_seed(config["seed"], True)
    batches, _, _ = data_preparation(config, create_dataset(config))
model = get_model("BERT4Rec")(config, batches._dataset)
model.train()
optimizer = torch.optim.Adam(model.parameters(), 0.001)
while True:  # until the clock ends it
    for batch in batches:
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        clock.tick()
