"""The plots of the report and of sweeps, by Bokeh: values under the pointer, no network, light and dark.

Imported when something is drawn, so that training does not wait for Bokeh. Backgrounds are transparent and all colours
can be read on white and on black.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from bokeh.embed import components
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Legend, NumeralTickFormatter
from bokeh.plotting import figure
from bokeh.resources import Resources
from bokeh.transform import dodge
from markupsafe import Markup
from numpy.typing import NDArray

INK = "#808791"  # text and axes
COLOURS = ("#2f7ed8", "#d98e32", "#3fa06c", "#9b6fb5", "#c85a5a")
OF_METRICS = {"train_loss": "#d98e32", "val_hit": "#3fa06c", "val_ndcg": "#2f7ed8", "val_mrr": "#9b6fb5"}
OF_CONTESTANTS = (INK, "#d98e32", "#2f7ed8")  # popularity, item-item, the model
DASHES = ("solid", "dashed", "dotted", "dotdash")
BINS = 30
HEIGHT = 280  # pixels

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values


class Embedded(NamedTuple):
    """Plots in a page."""

    library: Markup  # the scripts of Bokeh, once a page
    script: Markup  # the data of all plots
    places: dict[str, Markup]  # title -> the element that shows the plot


def embed(plots: Mapping[str, figure]) -> Embedded:
    """Plots by title, ready to be put into a page."""
    if not plots:
        return Embedded(Markup(), Markup(), {})
    for plot in plots.values():
        legend = plot.legend[0]
        legend.visible = len(legend.items) > 0
        legend.ncols = 2  # as wide as a phone
        legend.background_fill_color = legend.border_line_color = None
        legend.label_text_color, legend.label_text_font_size = INK, "12px"
    script, places = components(dict(plots), wrap_script=True)
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return Embedded(Markup(library), Markup(script), {title: Markup(place) for title, place in places.items()})


def curves(
    by_name: Mapping[str, Curve],
    title: str,
    levels: Mapping[str, float] | None = None,
    mark: tuple[str, float] | None = None,
) -> figure:
    """Values against optimiser steps, one line for each name; metrics of several K share a colour, not a dash.

    Args:
        levels: values to compare with, as horizontal lines.
        mark: a name and a step, as a vertical line.
    """
    tooltips = [("", "@name"), ("step", "@step{0,0}"), ("value", "@value{0.0000[00]}")]
    plot = _plot(title, "step", tooltips)
    kinds = [name.split("@")[0] for name in by_name]
    first = min(steps[0] for steps, _ in by_name.values())
    last = max(steps[-1] for steps, _ in by_name.values())
    lines: dict[str, tuple[Curve, str, str]] = {}
    for place, (name, curve) in enumerate(by_name.items()):
        dash = DASHES[kinds[:place].count(kinds[place]) % len(DASHES)]
        lines[name] = curve, OF_METRICS.get(kinds[place], COLOURS[place % len(COLOURS)]), dash
    for name, value in (levels or {}).items():
        lines[name] = ([first, last], [value, value]), INK, DASHES[1 + (len(lines) - len(by_name)) % 3]
    for name, ((steps, values), colour, dash) in lines.items():
        source = ColumnDataSource({"step": list(steps), "value": list(values), "name": [name] * len(steps)})
        label = {"legend_label": name} if len(lines) > 1 or mark else {}
        plot.line("step", "value", source=source, color=colour, line_dash=dash, line_width=2, name=name, **label)
        plot.scatter("step", "value", source=source, color=colour, size=4 if len(steps) < 60 else 0)
    if mark is not None:
        plot.vspan(x=[mark[1]], color=INK, line_dash="dotdash", legend_label=f"{mark[0]}, step {mark[1]:,.0f}")
    return plot


def histogram(amounts: NDArray[np.int64], title: str, unit: str) -> figure:
    """How many users or items have each amount, on average over the whole numbers of a bin."""
    edges, heights, counts = bins(amounts)
    tooltips = [(unit, "@range"), ("in all", "@count{0,0}"), ("for each", "@height{0,0.0}")]
    plot = _plot(title, unit, tooltips, x_axis_type="log")
    source = ColumnDataSource(
        {
            "left": edges[:-1],
            "right": edges[1:],
            "height": heights,
            "count": counts,
            "range": [
                f"{low:,}" if high - low == 1 else f"{low:,} to {high - 1:,}" for low, high in itertools.pairwise(edges)
            ],
        }
    )
    plot.quad(left="left", right="right", bottom=0, top="height", source=source, color=COLOURS[0], line_width=0)
    plot.y_range.start = 0
    return plot


def bins(amounts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Bins whose widths grow with the amount.

    Returns:
        [B + 1] whole edges, the upper one left out of its bin; [B] how many each whole number of a bin has, so that
        bins of different widths compare; [B] how many are in the bin.
    """
    low, high = max(1, int(amounts.min())), int(amounts.max()) + 1
    edges = np.unique(np.geomspace(low, max(high, low + 1), BINS).round().astype(np.int64))
    counts, _ = np.histogram(np.clip(amounts, low, None), bins=edges)
    return edges, counts / np.diff(edges), counts


def bars(groups: Sequence[Mapping[str, Any]], metric: str, title: str, unit: str) -> figure:
    """A metric of each contestant in each group of `Contest.details`' slices."""
    names = list(groups[0]["figures"])
    labels = [str(group["label"]) for group in groups]
    tooltips = [("", "@name"), (unit, "@label"), (metric.upper(), "@height{0.0000}")]
    plot = _plot(title, unit, tooltips, x_range=FactorRange(*labels))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        heights = [group["figures"][name][metric] for group in groups]
        source = ColumnDataSource({"label": labels, "height": heights, "name": [name] * len(labels)})
        at = dodge("label", (place - (len(names) - 1) / 2) * width, range=plot.x_range)
        plot.vbar(
            at, top="height", width=0.9 * width, source=source, color=OF_CONTESTANTS[place % len(OF_CONTESTANTS)],
            legend_label=name,
        )  # fmt: skip
    plot.y_range.start = 0
    return plot


def points(
    across: Sequence[float] | Sequence[str],
    values: Sequence[float],
    states: Sequence[str],
    *,
    name: str,
    figure_name: str,
    has_best: bool = False,
) -> figure:
    """The figure of each run of a sweep against one setting; where its values span magnitudes, on a log axis.

    Args:
        has_best: whether to draw the best of all up to each run.
    """
    numbers = [value for value in across if not isinstance(value, str)]
    is_log = len(numbers) == len(across) and min(numbers) > 0 and max(numbers) / min(numbers) > 5 and name != "run"
    options: dict[str, Any] = {"x_axis_type": "log"} if is_log else {}
    if not numbers:
        options["x_range"] = FactorRange(*dict.fromkeys(map(str, across)))
    plot = _plot("", name, [("run", "@run"), (name, "@x"), (figure_name, "@y{0.0000}")], **options)
    for state, colour in (("done", COLOURS[0]), ("stopped", INK)):
        places = [place for place, each in enumerate(states) if each == state]
        columns = {"x": [across[p] for p in places], "y": [values[p] for p in places], "run": places}
        if places:
            plot.scatter("x", "y", source=ColumnDataSource(columns), color=colour, size=8, legend_label=state)
    if has_best:
        best = [max(values[: place + 1]) for place in range(len(values))]
        plot.step(list(across), best, color=COLOURS[1], mode="after", legend_label="best so far")
    plot.yaxis.axis_label = figure_name
    return plot


def _plot(title: str, across: str, tooltips: list[tuple[str, str]], **options: Any) -> figure:
    plot = figure(
        title=title, height=HEIGHT, sizing_mode="stretch_width", toolbar_location=None, tools="", **options
    )  # fmt: skip
    plot.add_tools(HoverTool(tooltips=tooltips))
    plot.background_fill_color = plot.border_fill_color = plot.outline_line_color = None
    plot.title.text_color = INK
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_line_color = axis.major_tick_line_color = INK
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
    plot.xaxis.axis_label = across
    if not isinstance(plot.x_range, FactorRange):
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0[.][0000]")
    plot.add_layout(Legend(visible=False), "below")  # labels of glyphs go to the legend that is there
    plot.xgrid.visible = False
    plot.ygrid.grid_line_color, plot.ygrid.grid_line_alpha = INK, 0.25
    return plot


def page(title: str, plots: Mapping[str, figure]) -> str:
    """A page of plots alone."""
    embedded = embed(plots)
    style = "body{font:15px system-ui,sans-serif;margin:16px;color-scheme:light dark;background:Canvas}"
    grid = "main{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{Markup.escape(title)}</title><style>{style}{grid}</style>{embedded.library}</head><body><main>"
        + "".join(f"<div>{place}</div>" for place in embedded.places.values())
        + f"</main>{embedded.script}</body></html>"
    )
