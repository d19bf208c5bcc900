"""The pictures of the report, by matplotlib, as SVG in data URIs.

Needs no display; imported when a report is written, so that training does not wait for matplotlib.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

STYLE = {
    "svg.fonttype": "none",  # text as text: smaller files
    "svg.hashsalt": "bert4rec",  # the same report from the same run
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.prop_cycle": mpl.cycler(color=["#9aa5b1", "#d98e32", "#2f6fb0", "#4c9f70", "#8e5ea2"]),  # type: ignore[attr-defined]
}

COLOURS = {"train_loss": "#d98e32", "val_hit": "#4c9f70", "val_ndcg": "#2f6fb0", "val_mrr": "#8e5ea2"}
LINES = ("-", "--", ":", "-.")

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values


def curves(by_name: Mapping[str, Curve], title: str) -> str:
    """Values against optimiser steps, one line for each name; metrics of several K share a colour, not a style."""
    kinds = [name.split("@")[0] for name in by_name]
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = _figure(title)
        for place, (name, (steps, values)) in enumerate(by_name.items()):
            axes.plot(
                steps,
                values,
                marker="." if len(steps) < 60 else None,
                label=name,
                color=COLOURS.get(kinds[place]),
                linestyle=LINES[kinds[:place].count(kinds[place]) % len(LINES)],
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(by_name) > 1:
            axes.legend(frameon=False)
        return _uri(figure)


def histogram(amounts: NDArray[np.int64], title: str, unit: str) -> str:
    """How many users or items have an amount, in bins that grow with it."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = _figure(title)
        low, high = max(1, int(amounts.min())), int(amounts.max()) + 2
        edges = np.unique(np.geomspace(low, high, 25).round())
        axes.hist(np.clip(amounts, low, None), bins=edges.tolist(), color="#2f6fb0")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(unit)
        return _uri(figure)


def bars(groups: Sequence[Mapping[str, Any]], metric: str, title: str, unit: str) -> str:
    """A metric of each contestant in each group of `Contest.details`' slices."""
    names = list(groups[0]["figures"])
    width = 0.8 / len(names)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = _figure(title)
        for place, name in enumerate(names):
            heights = [group["figures"][name][metric] for group in groups]
            axes.bar(np.arange(len(groups)) + (place - (len(names) - 1) / 2) * width, heights, width, label=name)
        axes.set_xticks(range(len(groups)), [group["label"] for group in groups])
        axes.set_xlabel(unit)
        figure.legend(loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
        return _uri(figure)


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10)
    return figure, axes


def _uri(figure: Figure) -> str:
    with io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")
