"""RecTools' Dataset of a table, for the benchmarks: runs where `rectools` is installed and prints JSON."""

import json
import resource
import sys
import time

import pandas as pd
from rectools.dataset import Dataset


def construct(path):
    table = pd.read_parquet(path) if path.endswith(".parquet") else pd.read_csv(path)
    table = table.rename(columns={"user": "user_id", "item": "item_id"})
    table["datetime"] = pd.to_datetime(table.pop("time"), unit="s")
    table["weight"] = 1.0
    return Dataset.construct(table)


started = time.perf_counter()
construct(sys.argv[1])
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
