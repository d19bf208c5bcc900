"""The short tables that the scripts end with, and metrics.json."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from ..atomic_files import write_whole
from ..runs.folder import RunFolder

STAGES = {"val": "validation", "test": "test"}
PROTOCOLS = {
    "uniform-100": "target among 100 items drawn uniformly: not comparable with the ranking of every item",
    "popularity-100": "target among 100 items drawn by popularity: not comparable with the ranking of every item",
}


def describe_data(summary: dict[str, Any], min_interactions: int, holdout: int, min_item_interactions: int = 1) -> str:
    """What was read, what was left out and why, and what is evaluated; a few lines."""
    s = summary
    items = s.get("items_before", s["items"])  # those that could have trained
    lines = [
        f"data        {s['rows']:,} interactions of {s['users']:,} users with {s['items']:,} items"
        + ("" if s["has_time"] else " (no time column: the file's order is taken as the order)"),
    ]
    if min_item_interactions > 1:
        lines.append(
            f"left out    {s['short_users_rows']:,} interactions, {s['short_users']:,} users and"
            f" {items - s['train_items']:,} items, until every user has data.min_interactions={min_interactions}"
            f" and every item data.min_item_interactions={min_item_interactions}"
        )
    elif s["short_users"]:
        lines.append(
            f"left out    {s['short_users']:,} users with fewer than data.min_interactions={min_interactions}"
            f" interactions ({s['short_users_rows']:,} interactions,"
            f" {items - s['train_items']:,} items that only they have)"
        )
    lines.append(
        f"training    {s['train_rows']:,} interactions of {s['train_users']:,} users with {s['train_items']:,} items"
    )
    if holdout:
        _, _, held_out = s["split"].partition(": ")
        targets = f" with {s['evaluated_targets']:,} targets" if "evaluated_targets" in s else ""
        lines.append(
            f"evaluation  {s['evaluated_users']:,} users{targets}: {held_out}, all {s['train_items']:,} items ranked"
        )
    return "\n".join(lines)


def figures_table(rows: dict[str, dict[str, float]]) -> str:
    """A table of metrics: one line for each entry, one column for each metric.

    Args:
        rows: name -> {"test_hit@10": ..., "test_uniform-100_hit@10": ..., ...}; the column heads say the metric and,
            unless it is the full ranking, the protocol, not the stage.
    """

    def head(key: str) -> str:
        *before, metric = key.split("_")
        return " ".join([metric.upper(), *before[1:]])

    named = {name: {head(key): value for key, value in row.items()} for name, row in rows.items()}
    return str(pd.DataFrame.from_dict(named, orient="index").to_string(float_format="{:.4f}".format, na_rep=""))


def figures(content: dict[str, Any]) -> str:
    """All tables of figures, from what metrics.json or evaluation.json holds; ends with an empty line."""
    lines = []
    kind = content.get("data", {}).get("split", "").partition(": ")[0]
    split = f", split by {kind}" if kind in ("time", "files") else ""
    for stage, rows in content["figures"].items():
        lines += [f"{STAGES[stage]}, every item ranked{split}", figures_table(rows)]
        by_name = content.get("details", {}).get(stage, {}).get("intervals", {}).get("full", {})
        if by_name:
            ends = list(by_name.values())[-1]  # of the model
            named = (f"{metric.upper()} {low:.4f} to {high:.4f}" for metric, (low, high) in ends.items())
            lines.append(f"95% interval: {', '.join(named)}")
        lines.append("")
        for protocol, sampled in content.get("sampled_figures", {}).get(stage, {}).items():
            lines += [f"{STAGES[stage]}{split}, {PROTOCOLS[protocol]}", figures_table(sampled), ""]
    return "\n".join(lines)


def verdict(content: dict[str, Any], topk: list[int]) -> str | None:
    """One sentence: whether the model beats popularity and item-item, by how much, and whether by more than chance.

    By NDCG at the first K, on the last stage that was evaluated, against the better of the two.

    Args:
        content: of metrics.json or evaluation.json.
        topk: `evaluation.topk`.

    Returns:
        None without figures or without intervals.
    """
    if not content["figures"]:
        return None
    stage, rows = list(content["figures"].items())[-1]
    lead = content["details"][stage].get("lead", {}).get("full", {})
    if not lead:
        return None
    metric = f"ndcg@{topk[0]}"
    figures = {name: row[f"{stage}_{metric}"] for name, row in rows.items() if name in lead}
    best = max(figures, key=lambda name: figures[name])
    model = next(name for name in rows if name.startswith("BERT4Rec"))
    difference = rows[model][f"{stage}_{metric}"] - figures[best]
    low, high = lead[best][metric]
    by = f"{metric.upper()} {difference:+.4f}, 95% interval {low:+.4f} to {high:+.4f}"
    if low > 0:
        others = " and ".join(figures)
        return f"verdict: {model} beats {others}; its lead over {best} is {by}"
    used = content.get("settings", {})
    longer = "train longer" if used.get("data", {}).get("window_stride") else "try experiment=best, or train longer"
    if high < 0:
        return f"verdict: {model} is behind {best} ({by}): {longer}"
    return f"verdict: {model} and {best} cannot be told apart ({by}): {longer}"


def closing(folder: RunFolder) -> str:
    """What a run has reached and where its files are, from metrics.json and what is there."""
    content = json.loads(folder.metrics.read_text())
    steps = f", {content['steps']:,} steps," if "steps" in content else ""
    lines = [f"trained {content['epochs']} epochs{steps} in {content['seconds']:.0f} s", ""]
    if content["figures"]:
        lines.append(figures(content))
    if content.get("verdict"):
        lines += [content["verdict"], ""]
    paths = {
        "checkpoints": folder.last,
        "": folder.best,
        "logs": folder.logs,
        "figures": folder.metrics,
        "report": folder.report,
        "predictions": folder.predictions,
    }
    return "\n".join(lines + [f"{name:<12}{path}" for name, path in paths.items() if path.exists()])


def next_steps(steps: dict[str, str]) -> str:
    """What may be run next: a name and a command a line, folded between words where the terminal is narrower."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    return "\n".join(["", "next", *(f"  {name:<13}{_folded(command, width - 15)}" for name, command in steps.items())])


def _folded(command: str, width: int) -> str:
    """A shell command on lines of at most this width, if its words allow that; it stays one command when pasted."""
    lines = [""]
    for word in re.findall(r"(?:'[^']*'|\S)+", command):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return f" \\\n{'':15}".join(lines)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
