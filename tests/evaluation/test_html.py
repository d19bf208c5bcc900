"""report.html: whole, self-contained, true to its content, and readable in a real browser where one is found."""

import base64
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
from src.evaluation import html, plots
from src.evaluation.contest import Contest, tables_of
from tests.evaluation.test_contest import ITEMS, USERS, contest  # noqa: F401

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
    return {**tables, "seconds": 75.0, "epochs": 12, "data": {"rows": 12345, "has_time": 1}}


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
    html.write(path, content, curves, contest, vocabulary, titles, SETTINGS)
    return path


def test_nothing_is_fetched_and_nothing_runs(report: Path) -> None:
    reader = read(report)
    assert {tag for tag, _ in reader.tags} >= {"html", "main", "table", "img", "section"}
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in reader.tags}
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 2 + 2 + 2  # data, curves, slices
    assert all(source and source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(attributes.get("alt") for tag, attributes in reader.tags if tag == "img")
    assert not re.search(r"url\(|@import", report.read_text(encoding="utf-8"))
    assert [path.name for path in report.parent.iterdir()] == ["report.html"]
    assert report.stat().st_size < 500_000


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
    assert len(examples) == html.EXAMPLES < USERS
    assert "Title & 3" in reader.text
    users = np.random.default_rng(contest.seed).permutation(USERS)[: html.EXAMPLES]
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
    html.write(tmp_path / "report.html", content, {}, None, vocabulary, Titles(), SETTINGS)
    assert "Examples" not in read(tmp_path / "report.html").text


def test_intervals_may_be_left_out(contest: Contest, vocabulary: Vocabulary, tmp_path: Path) -> None:  # noqa: F811
    content = {**tables_of({"test": contest}, 0), "data": {}}
    html.write(tmp_path / "report.html", content, {}, contest, vocabulary, Titles(), SETTINGS)
    assert "lead over" not in read(tmp_path / "report.html").text


def test_curves_of_several_k_can_be_told_apart() -> None:
    curve = ([1, 2], [0.1, 0.2])
    drawn = plots.curves({"val_hit@5": curve, "val_hit@10": curve, "val_ndcg@5": curve}, "Validation")
    lines = re.findall(r'id="line2d_.*?<path .*?style="(fill: none; stroke.*?)"', _svg(drawn), re.DOTALL)
    of_hits = {line for line in lines if plots.COLOURS["val_hit"] in line}
    assert len({"dasharray" in line for line in of_hits}) == 2


def _svg(uri: str) -> str:
    return base64.b64decode(uri.partition("base64,")[2]).decode("utf-8")


def test_no_logs_no_curves(tmp_path: Path) -> None:
    assert html.read_curves(tmp_path / "absent") == {}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_pictures_and_the_tables(report: Path, tmp_path: Path) -> None:
    """As rendered: every picture has a size, nothing went wrong, and the page is not wider than the window."""
    assert CHROMIUM is not None
    probe = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify({"
        "pictures: [...document.images].filter(i => i.complete && i.naturalWidth > 100).length,"
        "rows: document.querySelectorAll('tr').length,"
        "wide: document.documentElement.scrollWidth > innerWidth,"
        "text: document.querySelector('#figures').innerText.includes('lead over popularity')}) })</script></body>"
    )
    page = tmp_path / "page.html"
    page.write_text(report.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1200,900", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search("<title>(.*?)</title>", ended.stdout)
    assert title
    rows = len(read(report).rows)
    assert title[1] == f'{{"pictures":6,"rows":{rows},"wide":false,"text":true}}'
