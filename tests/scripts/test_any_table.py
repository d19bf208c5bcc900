"""Whatever a person gives as a table: the run ends with figures, or with one clear line, and nothing is lost."""

import csv
import gzip
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.data import BERT4RecDataModule
from src.data.table import TableOptions
from src.errors import UserError
from src.prediction.predict import predict
from src.runs import memory
from src.training.train import train
from tests.data import test_download
from tests.data.test_download import server  # noqa: F401
from tests.scripts.conftest import TINY, Run, Table, call, files_below, make_rows

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # they print a traceback

USERS = ["007", "7", "ann", "이용자", "a b", "user,42", "=1+1"]
ITEMS = ["x", "X", "1.0", "1", "🎬", "film, the", 'say "hi"', "two\nlines", " x"]
TIMES = ["5", "30", "-7", "2", "1e3", "99999999999999"]
DIRT = ["", "NA", "nan", "soon", "2024-01-31", "1e400", '"', '"open', 'a"b', "\x00", "é", "12:30", "true", " "]
HEADERS = [
    ["user", "item", "time"],
    ["userId", "movieId", "timestamp"],
    ["user_id:token", "item_id:token", "timestamp:float"],
    ["user", "item", "rating"],
    ["user", "user", "item"],
    ["who", "what", "when"],
    ["user", "item"],
    [],
]


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Bytes of a table that is rather dirty: of the wrong names, with odd cells, broken quotes, cut short, ..."""
    is_dirty = draw(st.booleans())
    pick = st.sampled_from
    users, items, times = (
        pick(values + DIRT) if is_dirty and draw(st.booleans()) else pick(values) for values in (USERS, ITEMS, TIMES)
    )
    rows = draw(st.lists(st.tuples(users, items, times).map(list), max_size=25))
    header = draw(pick(HEADERS)) if is_dirty else HEADERS[draw(st.integers(0, 2))]
    form = draw(pick(["text"] * 4 + ["parquet", "json"]))
    if form == "json":
        lines = [json.dumps(dict(zip([*header, "p", "q", "r"], row, strict=False))) for row in rows]
        content = "\n".join(lines).encode()
        return content[: draw(st.integers(0, len(content)))] if is_dirty and draw(st.booleans()) else content
    if form == "parquet":
        names = [*header, "p", "q", "r"][:3]
        sink = pa.BufferOutputStream()
        columns = [[row[place] or None for row in rows] for place in range(3)]
        pyarrow.parquet.write_table(pa.Table.from_arrays([pa.array(c, pa.string()) for c in columns], names), sink)
        content = sink.getvalue().to_pybytes()
        return content[: draw(st.integers(0, len(content)))] if is_dirty and draw(st.booleans()) else content
    delimiter = draw(pick([",", "\t", ";", "::"]))
    end = draw(pick(["\n", "\r\n"]))
    is_quoted = len(delimiter) == 1 and (not is_dirty or draw(st.booleans()))
    text = io.StringIO()
    if is_quoted:
        csv.writer(text, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    else:
        text.write("".join(delimiter.join(row) + end for row in [header, *rows]))
    encoding = draw(pick(["utf-8"] * 4 + ["utf-8-sig", "latin-1", "utf-16"])) if is_dirty else "utf-8"
    content = text.getvalue().encode(encoding, errors="replace")
    if is_dirty and draw(st.booleans()):
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(max_size=3)) + content[place + draw(st.integers(0, 4)) :]
    packed = draw(pick(["", "", "gzip", "cut"]))
    if packed:
        content = gzip.compress(content)
    return content[:-7] if packed == "cut" else content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


@settings(max_examples=250, deadline=None)
@given(content=tables(), on_bad_rows=st.sampled_from(["error", "drop"]), deduplicate=st.booleans())
def test_any_table_is_prepared_or_refused_in_one_line(
    content: bytes, on_bad_rows: str, deduplicate: bool, folder: Path
) -> None:
    (folder / "t.csv").write_bytes(content)
    options = TableOptions(on_bad_rows=on_bad_rows, deduplicate=deduplicate)
    data = BERT4RecDataModule(str(folder), "t.csv", table_options=options, min_interactions=1, holdout=0)
    refusal = None
    try:
        data.setup()
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(folder / "t.csv") in refusal
        assert "\n" not in refusal
        return
    assert data.summary["rows"] >= data.summary["train_rows"] == len(data.sequences.tokens) > 0
    assert sum(len(batch.inputs) for batch in data.train_dataloader()) == len(data.spans)
    assert all("\n" not in note for note in data.notes)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=tables(), on_bad_rows=st.sampled_from(["error", "drop"]))
def test_any_run_ends_with_figures_or_one_clear_line(content: bytes, on_bad_rows: str, folder: Path) -> None:
    (folder / "t.csv").write_bytes(content)
    shutil.rmtree(folder / "run", ignore_errors=True)
    overrides = (f"data.data_dir={folder}", "data.data_file=t.csv", f"output_dir={folder / 'run'}")
    bad_rows = (f"data.on_bad_rows={on_bad_rows}", "data.min_interactions=2", "data.holdout=1")
    outcome = call(train, *overrides, *bad_rows, *TINY, "training.num_epochs=1")
    if outcome.code == 0:
        figures = json.loads((folder / "run" / "metrics.json").read_text())["figures"]["val"]
        assert all(0 <= value <= 1 for row in figures.values() for value in row.values())
        outcome = call(predict, *overrides, *bad_rows, *TINY)
        assert outcome.code == 0
        assert (folder / "run" / "predictions.csv").stat().st_size > 0
        return
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert str(folder / "t.csv") in outcome.err


def test_notes_are_printed_by_training_prediction_and_evaluation(tmp_path: Path) -> None:
    rows = [f"{user}::{item}::3::{time}" for user, item, time in make_rows() if "," not in user + item]
    (tmp_path / "r.dat").write_text("\n".join(["userId::movieId::rating::timestamp", *rows, "broken", ""]))
    overrides = [f"data.data_dir={tmp_path}", "data.data_file=r.dat", f"output_dir={tmp_path / 'run'}"]
    overrides += ["data.on_bad_rows=drop", "training.num_epochs=1", "data.min_item_interactions=2", *TINY]
    outcomes = [call(task, *overrides) for task in (train, predict)]
    outcomes.append(call(predict, *overrides, "inference.evaluate=true", "evaluation.report=false"))
    for outcome in outcomes:
        assert outcome.code == 0, outcome
        assert "columns     userId as user, movieId as item, timestamp as time" in outcome.out
        assert f"left out    1 bad rows of {len(rows) + 1}" in outcome.out
    assert "and every item data.min_item_interactions=2" in outcomes[0].out


@pytest.mark.parametrize("shape", ["one user", "one item", "one interaction"])
def test_tables_of_almost_nothing(shape: str, tmp_path: Path) -> None:
    rows = {
        "one user": [("a", item) for item in "vwxyz"],
        "one item": [(user, "x") for user in "abc" for _ in range(4)],
        "one interaction": [("a", "x")],
    }[shape]
    (tmp_path / "t.csv").write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in rows))
    overrides = (f"data.data_dir={tmp_path}", "data.data_file=t.csv", f"output_dir={tmp_path / 'run'}", *TINY)
    outcome = call(train, *overrides, "training.num_epochs=1")
    if shape == "one interaction":
        assert outcome.code == 1
        assert outcome.err.endswith(
            "t.csv has no user with at least data.min_interactions=3 interactions: the longest history has 1\n"
        )
        return
    assert (outcome.code, outcome.err) == (0, "")
    outcome = call(predict, *overrides, "inference.exclude_seen=false", "inference.topk=2")
    assert (outcome.code, outcome.err) == (0, "")
    written = (tmp_path / "run" / "predictions.csv").read_text().splitlines()
    assert len(written) == 1 + (2 if shape == "one user" else 3)


def test_a_full_disk_at_prediction(trained: Run, table: Table, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("earlier\n")
    (tmp_path / "p.csv.part").symlink_to("/dev/full")
    before = files_below(trained.folder)
    overrides = (f"inference.checkpoint_path={trained.best}", f"inference.output_path={tmp_path / 'p.csv'}")
    outcome = call(predict, *table.overrides, *TINY, *overrides)
    assert outcome.code == 1
    assert outcome.err == (
        f"error: {tmp_path / 'p.csv'} cannot be written (No space left on device): free some room, or write elsewhere"
        " with inference.output_path=FILE\n"
    )
    assert (tmp_path / "p.csv").read_text() == "earlier\n"
    assert files_below(trained.folder) == before


def test_a_model_too_large_for_the_memory(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*table.overrides, *TINY, f"output_dir={tmp_path / 'run'}", "training.num_epochs=1")
    outcome = call(train, *overrides)
    count = re.search(r"model +([0-9,]+) parameters", outcome.out)
    assert count is not None
    parameters = int(count[1].replace(",", ""))
    monkeypatch.setattr(memory, "of", lambda _: 16 * parameters - 1)
    refused = call(train, *overrides)
    assert refused.code == 1
    assert refused.err.startswith(f"error: the memory does not suffice ({count[1]} parameters take ")
    assert "data.min_item_interactions=5" in refused.err
    assert refused.err.count("\n") == 1
    monkeypatch.setattr(memory, "of", lambda _: 16 * parameters)
    assert call(train, *overrides).code == 0


@pytest.mark.parametrize("key", ["model.max_len", "model.hidden_units"])
def test_an_allocation_that_fails(key: str, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one piece that is larger than all there is, or than a number can say."""
    monkeypatch.setattr(memory, "of", lambda _: 2**200)
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 * 2
    outcome = call(train, *table.overrides, *TINY, f"{key}={size}", f"output_dir={tmp_path / 'run'}")
    assert outcome.code == 1
    assert outcome.err.startswith("error: the memory does not suffice (")
    assert "training.loss=sampled_softmax" in outcome.err
    assert outcome.err.count("\n") == 1


def test_train_and_predict_on_a_download(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    url = test_download.serve("ml-100k", server, monkeypatch)
    overrides = (f"data.data_dir={tmp_path}", "data.download=ml-100k", f"data.download_url={url}", *TINY)
    settings = ("data.min_interactions=2", "data.holdout=1", f"output_dir={tmp_path / 'run'}", "training.num_epochs=1")
    for task in (train, predict):
        outcome = call(task, *overrides, *settings)
        assert outcome.code == 0, outcome
    assert len(server.asked) == 1


def test_sessions_of_events_train_and_numbers_written_otherwise_are_served(tmp_path: Path) -> None:
    """JSON lines without a setting; then a table in which pandas wrote the ids as 37.0."""
    by_user: dict[str, list[dict[str, int]]] = {}
    items = {item: 10 + n for n, item in enumerate(dict.fromkeys(item for _, item, _ in make_rows()))}
    for user, item, time in make_rows():
        by_user.setdefault(user, []).append({"aid": items[item], "ts": time})
    lines = [json.dumps({"session": n, "events": events}) for n, events in enumerate(by_user.values())]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    overrides = [f"data.data_dir={tmp_path}", "data.data_file=t.jsonl", f"output_dir={tmp_path / 'run'}", *TINY]
    outcome = call(train, *overrides, "training.num_epochs=1")
    assert (outcome.code, outcome.err) == (0, "")
    assert "columns     session as user, aid as item, ts as time" in outcome.out
    assert f"data        {len(make_rows()):,} interactions of {len(by_user):,} users" in outcome.out
    (tmp_path / "new.csv").write_text("user,item\nann,10.0\nann,11.0\nann,x\nbob,012\n")
    outcome = call(predict, *overrides, f"inference.history={tmp_path / 'new.csv'}", "inference.topk=3")
    assert (outcome.code, outcome.err) == (0, "")
    assert "ids         2 items are matched as numbers: 10.0 is known as 10, 11.0 is known as 11" in outcome.out
    assert "left out: x, 012; 1 of them is known in another form: 012 is known as 12" in outcome.out


def test_delimiters_are_named_in_the_shell(tmp_path: Path) -> None:
    rows = make_rows()
    (tmp_path / "t.csv").write_text(
        "".join(f"{n}|{user} x\n" for n, (user, _, _) in enumerate(rows) if "|" not in user)
    )
    overrides = [f"data.data_dir={tmp_path}", "data.data_file=t.csv", "data.columns.user=2", "data.columns.item=1"]
    outcome = call(
        train, *overrides, f"output_dir={tmp_path / 'run'}", *TINY, "training.num_epochs=1", "data.delimiter=bar"
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert f"data        {len(rows):,} interactions" in outcome.out
