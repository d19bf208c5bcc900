"""Draws learning curves: a figure of validation against minutes of training, a line for each run.

pip install -e ".[plots]"
python -m tests.benchmarks.curves --out curves.png --level "RecTools=0.1618" saved/ml-1m saved/other=label

Prints, for each run, how long it took to reach each of `--reach`. The minutes are those of the
TensorBoard points, so that validation and checkpoints count as well.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.benchmarks import common


def curve(folder: Path, figure: str) -> tuple[list[float], list[float]]:
    """Minutes since the run's first point, and the figure, of all sessions of a run."""
    events = EventAccumulator(str(next(path for path in sorted(folder.glob("logs/**/events*")))).rsplit("/", 1)[0])
    events.Reload()
    points = events.Scalars(figure)
    began = events.FirstEventTimestamp()
    return [(point.wall_time - began) / 60 for point in points], [point.value for point in points]


def minutes_to(minutes: list[float], values: list[float], level: float) -> str:
    reached = [minute for minute, value in zip(minutes, values, strict=True) if value >= level]
    return f"{reached[0]:.1f}" if reached else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="output folder of a run, or FOLDER=LABEL")
    parser.add_argument("--out", type=Path, required=True, help="PNG or SVG to write")
    parser.add_argument("--figure", default="val_ndcg@10")
    parser.add_argument("--level", action="append", default=[], help="NAME=VALUE, a horizontal line")
    parser.add_argument("--reach", type=float, nargs="*", default=[0.10, 0.13, 0.15, 0.16])
    options = parser.parse_args()

    drawing = Figure(figsize=(7, 4.2), layout="constrained")
    axes = drawing.add_subplot()
    rows = []
    for run in options.runs:
        folder, _, label = run.partition("=")
        minutes, values = curve(Path(folder), options.figure)
        axes.plot(minutes, values, label=label or Path(folder).name)
        rows.append([label or folder, f"{max(values):.4f}", *(minutes_to(minutes, values, at) for at in options.reach)])
    for level in options.level:
        name, _, value = level.rpartition("=")
        axes.axhline(float(value), color="grey", linewidth=0.8, linestyle="--")
        axes.annotate(name, (1, float(value)), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel="minutes of training", ylabel=options.figure, ylim=(0, None), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    drawing.savefig(options.out, dpi=120)
    common.print_table(["run", "best", *(f"minutes to {at:.2f}" for at in options.reach)], rows)


if __name__ == "__main__":
    main()
