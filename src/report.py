"""The short tables that the scripts end with, and metrics.json."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from src.files import write_whole
from src.run_folder import RunFolder


def describe_data(summary: dict[str, int], min_interactions: int, holdout: int, min_item_interactions: int = 1) -> str:
    """What was read, what was left out and why, and what is evaluated; a few lines."""
    s = summary
    lines = [
        f"data        {s['rows']:,} interactions of {s['users']:,} users with {s['items']:,} items"
        + ("" if s["has_time"] else " (no time column: the file's order is taken as the order)"),
    ]
    if min_item_interactions > 1:
        lines.append(
            f"left out    {s['short_users_rows']:,} interactions, {s['short_users']:,} users and"
            f" {s['items'] - s['train_items']:,} items, until every user has data.min_interactions={min_interactions}"
            f" and every item data.min_item_interactions={min_item_interactions}"
        )
    elif s["short_users"]:
        lines.append(
            f"left out    {s['short_users']:,} users with fewer than data.min_interactions={min_interactions}"
            f" interactions ({s['short_users_rows']:,} interactions,"
            f" {s['items'] - s['train_items']:,} items that only they have)"
        )
    lines.append(
        f"training    {s['train_rows']:,} interactions of {s['train_users']:,} users with {s['train_items']:,} items"
    )
    if holdout:
        held_out = "the last item tests, the one before validates" if holdout == 2 else "the last item validates"
        lines.append(f"evaluation  {s['evaluated_users']:,} users: {held_out}, all {s['train_items']:,} items ranked")
    return "\n".join(lines)


def figures_table(rows: dict[str, dict[str, float]]) -> str:
    """A table of metrics: one line for each entry, one column for each metric.

    Args:
        rows: name -> {"test_hit@10": ..., "test_ndcg@10": ..., ...}; prefixes are dropped from the column heads.
    """
    heads = {name: {key.split("_")[-1].upper(): value for key, value in row.items()} for name, row in rows.items()}
    return str(pd.DataFrame.from_dict(heads, orient="index").to_string(float_format="{:.4f}".format, na_rep=""))


def closing(folder: RunFolder) -> str:
    """What a run has reached and where its files are, from metrics.json and what is there.

    Its own reading of the folder, so that training and prediction end alike.
    """
    content = json.loads(folder.metrics.read_text())
    lines = [f"trained {content['epochs']} epochs in {content['seconds']:.0f} s", ""]
    for stage, rows in content["figures"].items():
        lines += [f"{'validation' if stage == 'val' else stage}, every item ranked", figures_table(rows), ""]
    paths = {
        "checkpoints": folder.last,
        "": folder.best,
        "logs": folder.logs,
        "figures": folder.metrics,
        "predictions": folder.predictions,
    }
    return "\n".join(lines + [f"{name:<12}{path}" for name, path in paths.items() if path.exists()])


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
