"""The report of a run: one HTML file with its plots inside, which opens from the disk without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ..atomic_files import write_whole
from ..data.sequences import Indices
from ..data.titles import Titles
from ..data.vocabulary import Vocabulary
from . import plots
from .closing_tables import PROTOCOLS, STAGES
from .comparison import Contest
from .protocols import FULL

EXAMPLES = 8
SHOWN_OF_HISTORY = 10
SLICES = {"history_length": "items in the history", "target_popularity": "training interactions of the target"}
CURVES = {  # title -> how the names of its curves begin
    "Training loss": "train_loss",
    "Validation, every item ranked": "val_",
    "Learning rate": "lr",
    "Training sequences per second": "sequences_per_second",
}
DATA = ("Users by length of history", "Items by popularity")
SUMMARY = {
    "rows": "interactions",
    "has_time": "time column",
    "items_before": "items before the first target",
    "unknown_users": "users left out, no known item before the target",
    "unknown_targets": "users left out, target not in training",
    "short_users": "users left out, too few interactions",
    "short_users_rows": "their interactions",
    "train_users": "users in training",
    "train_items": "items in training",
    "train_rows": "interactions in training",
    "evaluated_users": "users evaluated",
    "repeated_targets": "test items that the user had before",
}
BEYOND = {"coverage": "coverage", "gini": "Gini", "popularity": "popularity", "popularity_lift": "popularity lift"}


def write(
    path: Path,
    content: Mapping[str, Any],
    curves: Mapping[str, plots.Curve],
    contest: Contest | None,
    vocabulary: Vocabulary,
    titles: Titles,
    settings: Mapping[str, str],
) -> None:
    """Write a report that is there whole or not at all.

    Args:
        content: what metrics.json or evaluation.json holds.
        curves: name -> steps and values, from `read_curves`.
        contest: of the last stage, for the examples; its last contestant is the model. None without evaluation.
        titles: names for the items in the examples.
        settings: dotted key -> value.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"figure": lambda value: f"{value:.4f}", "stage": STAGES.get}
    slices = _slices(content)
    shown = _data_plots(contest, vocabulary) | _curve_plots(curves, content)
    shown |= {entry["title"]: entry.pop("plot") for entry in slices}
    text = environment.get_template("report.html.jinja").render(
        content=content,
        plots=plots.embed(shown),
        curve_titles=[title for title in shown if title in CURVES],
        data_titles=[title for title in shown if title in DATA],
        origin=_origin(content),
        summary=_summary(content["data"]),
        protocols={FULL: "every item ranked", **PROTOCOLS},
        tiles=_tiles(content),
        tables=_tables(content),
        beyond=BEYOND,
        slices=slices,
        examples=_examples(contest, vocabulary, titles) if contest else [],
        settings=settings,
    )
    write_whole(path, text.encode())


def read_curves(logs: Path) -> dict[str, plots.Curve]:
    """Every scalar of the TensorBoard logs in a folder as steps and values; nothing if there are no logs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(logs.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(logs), size_guidance={"scalars": 2000})
    events.Reload()
    return {
        name: ([event.step for event in events.Scalars(name)], [event.value for event in events.Scalars(name)])
        for name in events.Tags()["scalars"]
    }


def _tiles(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few numbers at the top: caption and text."""
    tiles = []
    if content["figures"]:
        stage, rows = list(content["figures"].items())[-1]
        details = content["details"][stage]
        name = list(details["beyond_accuracy"])[-1]  # the model comes last
        for key, value in rows[name].items():
            metric = key.removeprefix(f"{stage}_")
            ends = details.get("intervals", {}).get(FULL, {}).get(name, {}).get(metric)
            of_users = f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
            tiles.append((f"{STAGES[stage]} {metric.upper()}{of_users}", f"{value:.4f}"))
        tiles.append(("evaluated users", f"{details['users']:,}"))
    if "seconds" in content:
        tiles.append((f"{content['epochs']:,} epochs", f"{content['seconds']:,.0f} s"))
    return tiles


def _origin(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the figures come from: name and text."""
    names = ("started", "command", "version", "commit", "device", "precision", "torch")
    found = [(name, str(content[name])) for name in names if content.get(name)]
    if content.get("parameters"):
        found.append(("model", f"{content['parameters']:,} parameters"))
    return found


def _summary(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The data in words: name and number."""
    lines = []
    for key, value in data.items():
        text = f"{value:,}" if isinstance(value, int) else str(value)
        if key == "has_time":
            text = "yes" if value else "no: the order of the file counts"
        lines.append((SUMMARY.get(key, key.replace("_", " ")), text))
    return lines


def _data_plots(contest: Contest | None, vocabulary: Vocabulary) -> dict[str, Any]:
    by_length, by_popularity = DATA
    found = {}
    if contest:
        lengths = contest.evaluation_set.histories.lengths
        found[by_length] = plots.histogram(lengths, by_length, "items before the target")
    return found | {by_popularity: plots.histogram(vocabulary.counts, by_popularity, "training interactions")}


def _curve_plots(curves: Mapping[str, plots.Curve], content: Mapping[str, Any]) -> dict[str, Any]:
    """Title -> plot; that of the validation has the baselines and the step of best.ckpt."""
    last = curves["train_loss"][0][-1] if "train_loss" in curves else float("inf")
    found = {}
    for title, prefix in CURVES.items():
        lines = {name: _until(curve, last) for name, curve in curves.items() if name.startswith(prefix)}
        lines = {name: curve for name, curve in lines.items() if curve[0]}
        if not lines:
            continue
        is_validation = prefix == "val_"
        levels = _baselines(content) if is_validation else {}
        mark = ("best.ckpt", content["best_step"]) if is_validation and content.get("best_step") is not None else None
        found[title] = plots.curves(lines, title, levels, mark)
    return found


def _baselines(content: Mapping[str, Any]) -> dict[str, float]:
    """What the baselines reach in validation, by the metric that best.ckpt is chosen by."""
    monitor = content.get("settings", {}).get("training", {}).get("monitor_metric")
    rows = content["figures"].get("val", {})
    label = str(monitor).removeprefix("val_").upper()
    others = {name: row for name, row in rows.items() if not name.startswith("BERT4Rec") and monitor in row}
    return {f"{name} {label}": row[monitor] for name, row in others.items()}


def _until(curve: plots.Curve, last: float) -> plots.Curve:
    """A curve without what the closing evaluation of the best checkpoint logs after training's last step.

    Lightning counts the steps of its logs from 0; here, as in checkpoints, a step is the number of those done.
    """
    kept = [(step + 1, value) for step, value in zip(*curve, strict=True) if step <= last]
    return [step for step, _ in kept], [value for _, value in kept]


def _tables(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table for each stage and protocol; a sampled protocol is never in the table of the full one."""
    tables = []
    for stage, full in content["figures"].items():
        details = content["details"][stage]
        for protocol, rows in {FULL: full, **content["sampled_figures"][stage]}.items():
            prefix = f"{stage}_" if protocol == FULL else f"{stage}_{protocol}_"
            named = {name: {key.removeprefix(prefix): row[key] for key in row} for name, row in rows.items()}
            table = {"stage": stage, "protocol": protocol, "metrics": list(next(iter(named.values()))), "rows": named}
            tables.append(table | {part: details.get(part, {}).get(protocol, {}) for part in ("intervals", "lead")})
    return tables


def _slices(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of the last stage, each way of grouping with a plot."""
    if not content["figures"]:
        return []
    stage = list(content["figures"])[-1]
    found = []
    for by, groups in content["details"][stage]["slices"].items():
        *_, hit, ndcg = (name for name in next(iter(groups[0]["figures"].values())) if name.startswith(("hit", "ndcg")))
        title = f"{ndcg.upper()} by {SLICES[by]}"
        plot = plots.bars(groups, ndcg, title, SLICES[by])
        found.append({"title": title, "plot": plot, "unit": SLICES[by], "groups": groups, "metrics": [hit, ndcg]})
    return found


def _examples(contest: Contest, vocabulary: Vocabulary, titles: Titles) -> list[dict[str, Any]]:
    """Users drawn by the seed alone, good and bad as they come: the end of the history, the target and the list."""
    sets, outcome = contest.evaluation_set, list(contest.outcomes.values())[-1]
    users = np.random.default_rng(contest.seed).permutation(len(sets.targets))[:EXAMPLES]

    def named(tokens: Indices) -> list[str]:
        return titles.of(vocabulary.decode(tokens).to_pylist())

    found = []
    for user in users:
        history = sets.tokens[sets.histories.starts[user] : sets.histories.stops[user]]
        target, rank = sets.targets[user], int(outcome.ranks[FULL][user])
        items = outcome.lists[user][outcome.lists[user] > 0]
        found.append(
            {
                "user": contest.user_ids[user].as_py(),
                "length": len(history),
                "history": named(history[-SHOWN_OF_HISTORY:]),
                "target": named(np.array([target]))[0],
                "rank": rank + 1,
                "is_candidate": rank < len(vocabulary),
                "list": list(zip(named(items), (items == target).tolist(), strict=True)),
            }
        )
    return found
