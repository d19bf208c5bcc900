"""RecBole's BERT4Rec on a CSV, for the benchmarks: runs in an interpreter that has `recbole` and prints JSON."""

import argparse
import json
import os
import tempfile
import time

import numpy as np
import pandas as pd
import torch

# Names that RecBole still uses and NumPy 2 has not any more.
np.float64, np.complex128, np.str_ = np.float64, np.complex128, np.str_

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, init_seed  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("task", choices=["train"])
parser.add_argument("csv")
for name in ("max-len", "width", "layers", "heads", "batch-size"):
    parser.add_argument(f"--{name}", type=int, required=True)
for name in ("mask", "dropout", "seconds"):
    parser.add_argument(f"--{name}", type=float, required=True)
options = parser.parse_args()
torch.set_num_threads(2)

with tempfile.TemporaryDirectory() as folder:
    pathlike = f"{folder}/bench"
    os.makedirs(pathlike)
    header = ["user_id:token", "item_id:token", "timestamp:float"]
    pd.read_csv(options.csv).to_csv(f"{pathlike}/bench.inter", sep="\t", index=False, header=header)
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
steps, started = -2, time.perf_counter()
while True:
    for batch in batches:
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        steps += 1
        if steps == 0:
            started = time.perf_counter()
        elif steps > 0 and time.perf_counter() - started > options.seconds:
            print(json.dumps({"sequences_per_second": steps * options.batch_size / (time.perf_counter() - started)}))
            raise SystemExit
