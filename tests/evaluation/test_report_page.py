"""report.html: whole, self-contained, true to its content, and readable in a real browser where one is found."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from src.data.titles import Titles
from src.data.vocabulary import Vocabulary
from src.evaluation import plots, report_page
from src.evaluation.comparison import Contest, tables_of
from tests.evaluation.test_comparison import ITEMS, USERS, contest  # noqa: F401

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SETTINGS = {"output_dir": "runs/a <b>", "model.max_len": "50", "data.items_file": "null"}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags, text and table cells, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def vocabulary(contest: Contest) -> Vocabulary:  # noqa: F811
    return Vocabulary(pa.array([f"i<{item}>" for item in range(1, ITEMS + 1)]), contest.counts)


@pytest.fixture(scope="module")
def content(contest: Contest) -> dict[str, Any]:  # noqa: F811
    tables = tables_of({"val": contest, "test": contest}, 100)
    tables["figures"]["test"]["best reachable"] = {"hit@5": 0.87654}
    tables["figures"]["val"]["BERT4Rec (best.ckpt)"] = tables["figures"]["val"].pop("model")
    origin = {
        "started": "2026-11-27 21:00",
        "command": f"python train_bert4rec.py output_dir={'x' * 300}",
        "version": "9.1",
    }
    origin |= {"commit": "1a2b3c4 with changes", "device": "CPU, one", "precision": "32-true", "parameters": 54321}
    monitor = {"settings": {"training": {"monitor_metric": "val_ndcg@5"}}}
    data = {"split": "time: the first item from 7 on tests", "rows": 12345, "has_time": 1, "short_users_rows": 7}
    return {**tables, **origin, **monitor, "best_step": 2, "seconds": 75.0, "epochs": 12, "data": data}


@pytest.fixture(scope="module")
def report(
    contest: Contest,  # noqa: F811
    vocabulary: Vocabulary,
    content: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    curves = {"train_loss": ([1, 2, 3], [3.0, 2.0, 1.5]), "val_ndcg@5": ([2, 3], [0.1, 0.2]), "epoch": ([1], [0.0])}
    titles = Titles({f"i<{item}>": f"Title & {item}" for item in range(1, ITEMS)})
    report_page.write(path, content, curves, contest, vocabulary, titles, SETTINGS)
    return path


def test_nothing_is_fetched(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    reader = read(report)
    assert {tag for tag, _ in reader.tags} >= {"html", "main", "table", "figure", "section"}
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in reader.tags}
    assert not any(attributes.get("src") for _, attributes in reader.tags)
    named = [attributes["aria-label"] for tag, attributes in reader.tags if tag == "figure"]
    assert len(named) == 2 + 2 + 2  # curves, slices, data
    assert set(named) > {"Training loss", "Validation, every item ranked", "Users by length of history"}
    assert not re.search(r"url\(|@import", text[: text.index("<script")])
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]
    assert report.stat().st_size < 5 * 2**20


def test_the_origin_of_the_figures_and_the_data_are_told_in_words(report: Path) -> None:
    rows = read(report).rows
    names = ("started", "version", "commit", "device", "precision", "model")
    assert [row for row in rows if row[0] in names and len(row) == 2] == [
        ["started", "2026-11-27 21:00"],
        ["version", "9.1"],
        ["commit", "1a2b3c4 with changes"],
        ["device", "CPU, one"],
        ["precision", "32-true"],
        ["model", "54,321 parameters"],
    ]
    assert any(row[0] == "command" and row[1].startswith("python train_bert4rec.py") for row in rows)
    assert ["split", "time: the first item from 7 on tests"] in rows
    assert "Split: time: the first item from 7 on tests." in read(report).text
    assert ["interactions", "12,345"] in rows
    assert ["time column", "yes"] in rows
    assert ["their interactions", "7"] in rows


def test_validation_has_the_baselines_and_a_mark_at_the_best_checkpoint(content: dict[str, Any]) -> None:
    plot = report_page._curve_plots({"val_ndcg@5": ([0, 2], [0.1, 0.2])}, content)["Validation, every item ranked"]
    legend = [item.label.value for item in plot.legend[0].items]
    assert legend == ["val_ndcg@5", "popularity NDCG@5", "item-item NDCG@5", "best.ckpt, step 2"]
    drawn = {renderer.name: renderer.data_source.data for renderer in plot.renderers if renderer.name in legend}
    assert drawn["val_ndcg@5"]["value"] == [0.1, 0.2]
    value = content["figures"]["val"]["item-item"]["val_ndcg@5"]
    assert drawn["item-item NDCG@5"] == {"step": [1, 3], "value": [value] * 2, "name": ["item-item NDCG@5"] * 2}
    assert [r.data_source.data["x"] for r in plot.renderers if type(r.glyph).__name__ == "VSpan"] == [[2]]
    assert len(plot.hover) == 1


def test_amounts_that_are_all_as_frequent_give_bars_of_one_height() -> None:
    edges, heights, counts = plots.bins(np.repeat(np.arange(3, 203), 5))
    assert set(heights) == {5.0}
    assert counts.sum() == 1000
    assert (edges[0], edges[-1]) == (3, 203)
    edges, heights, counts = plots.bins(np.array([4, 4, 4]))
    assert (edges.tolist(), heights.tolist(), counts.tolist()) == ([4, 5], [3.0], [3])


def test_grid_lines_lie_behind_bars() -> None:
    plot = plots.histogram(np.array([1, 2, 3]), "t", "u")
    assert {grid.level for grid in plot.ygrid} == {"underlay"}
    assert not any(grid.visible for grid in plot.xgrid)


def test_tables_have_every_figure_under_its_protocol(report: Path, content: dict[str, Any]) -> None:
    rows = read(report).rows
    for stage in ("val", "test"):
        for name, figures in content["figures"][stage].items():
            ends = content["details"][stage]["intervals"]["full"].get(name, {})
            cells = {
                f"{value:.4f}" + (f"{ends[key.removeprefix(f'{stage}_')][0]:.4f} to" if ends else "")
                for key, value in figures.items()
            }
            found = [row for row in rows if row[0] == name]
            assert any(all(any(cell in got for got in row) for cell in cells) for row in found)
    heads = [row for row in rows if row and row[0] == "" and "MRR" in row[-1]]
    assert ["", "HIT@1", "NDCG@1", "HIT@5", "NDCG@5", "MRR"] in heads
    assert ["", *(f"{name} uniform-100" for name in ("HIT@1", "NDCG@1", "HIT@5", "NDCG@5", "MRR"))] in heads
    assert read(report).text.count("not comparable with the ranking of every item") == 2


def test_examples_show_users_with_titles_and_the_place_of_the_target(report: Path, contest: Contest) -> None:  # noqa: F811
    reader = read(report)
    examples = [attributes for tag, attributes in reader.tags if attributes.get("class") == "example"]
    assert len(examples) == report_page.EXAMPLES < USERS
    assert "Title & 3" in reader.text
    users = np.random.default_rng(contest.seed).permutation(USERS)[: report_page.EXAMPLES]
    hits = [attributes for tag, attributes in reader.tags if tag == "li" and attributes.get("class") == "hit"]
    assert len(hits) == sum(contest.outcomes["model"].ranks["full"][users] < 5)
    for user in users:
        assert f"ranked {contest.outcomes['model'].ranks['full'][user] + 1}" in reader.text


def test_text_of_the_user_is_never_markup(report: Path) -> None:
    reader = read(report)
    assert "runs/a <b>" in reader.text
    assert ["data.items_file", "null"] in reader.rows


def test_slices_name_their_groups(report: Path, content: dict[str, Any]) -> None:
    rows = read(report).rows
    for groups in content["details"]["test"]["slices"].values():
        for group in groups:
            assert any(row[:2] == [group["label"], str(group["users"])] for row in rows)


def test_a_run_without_evaluation_has_a_report_too(vocabulary: Vocabulary, tmp_path: Path) -> None:
    content = {"figures": {}, "sampled_figures": {}, "details": {}, "data": {"rows": 3}, "seconds": 1.0, "epochs": 2}
    report_page.write(tmp_path / "report.html", content, {}, None, vocabulary, Titles(), SETTINGS)
    assert "Examples" not in read(tmp_path / "report.html").text


def test_intervals_may_be_left_out(contest: Contest, vocabulary: Vocabulary, tmp_path: Path) -> None:  # noqa: F811
    content = {**tables_of({"test": contest}, 0), "data": {}}
    report_page.write(tmp_path / "report.html", content, {}, contest, vocabulary, Titles(), SETTINGS)
    assert "lead over" not in read(tmp_path / "report.html").text


def test_curves_of_several_k_can_be_told_apart() -> None:
    curve = ([1, 2], [0.1, 0.2])
    drawn = plots.curves({"val_hit@5": curve, "val_hit@10": curve, "val_ndcg@5": curve}, "Validation")
    lines = {r.name: (r.glyph.line_color, tuple(r.glyph.line_dash)) for r in drawn.renderers if r.name}
    assert len(set(lines.values())) == 3
    assert lines["val_hit@5"][0] == lines["val_hit@10"][0] != lines["val_ndcg@5"][0]


def test_no_logs_no_curves(tmp_path: Path) -> None:
    assert report_page.read_curves(tmp_path / "absent") == {}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_all_within_its_width(report: Path, scheme: str, tmp_path: Path) -> None:
    """In frames as wide as a phone, a tablet and a laptop: all plots are drawn, and nothing is wider."""
    assert CHROMIUM is not None
    widths = (390, 768, 1366)
    probe = (
        "<script>addEventListener('load', () => setTimeout(() => { parent.found[innerWidth] = {"
        "plots: document.querySelectorAll('figure').length,"
        "drawn: [...document.querySelectorAll('figure > div > *')].filter(d => d.offsetHeight > 200).length,"
        "overflow: Math.max(0, document.documentElement.scrollWidth - innerWidth),"
        "dark: getComputedStyle(document.body).backgroundColor != 'rgb(245, 246, 248)'"
        "}; parent.document.title = JSON.stringify(parent.found) }, 1500))</script></body>"
    )
    text = probe.join(report.read_text(encoding="utf-8").rsplit("</body>", 1))
    if scheme == "dark":
        text = text.replace("@media (prefers-color-scheme: dark)", "@media all")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    frames = [f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>' for width in widths]
    (tmp_path / "frames.html").write_text(
        "<title></title><script>var found = {}</script>" + "".join(frames), encoding="utf-8"
    )
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--allow-file-access-from-files", "--window-size=1500,3000", "--virtual-time-budget=9000", "--dump-dom"]
    command += [(tmp_path / "frames.html").as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search("<title>(.*?)</title>", ended.stdout)
    assert title
    expected = {"plots": 6, "drawn": 6, "overflow": 0, "dark": scheme == "dark"}
    assert json.loads(title[1]) == {str(width): expected for width in widths}
