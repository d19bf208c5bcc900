"""A frame gives exactly what a Parquet file with its columns gives, and a bad one ends with one clear line."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from src.data import BERT4RecDataModule
from src.data.splits import SplitOptions
from src.data.table import TableOptions
from src.errors import UserError

ROWS = 200
DRAWS = np.random.default_rng(5)
USERS, ITEMS = DRAWS.integers(7, 27, ROWS), DRAWS.integers(0, 15, ROWS)
DAYS = pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(DRAWS.integers(0, 10**5, ROWS), unit="min"))
PLAIN = pd.DataFrame({"user": USERS, "item": ITEMS, "time": DAYS, "rating": DRAWS.integers(1, 6, ROWS)})

IDS: dict[str, Callable[[pd.Series], Any]] = {
    "int": lambda ids: ids,
    "uint8": lambda ids: ids.astype("uint8"),
    "float": lambda ids: ids.astype("float64"),
    "text": lambda ids: ids.map("{:03}".format),
    "text that is a number": lambda ids: ids.map("{}.0".format),
    "object": lambda ids: ids.map("id {}".format).astype(object),
    "string": lambda ids: ids.astype("string"),
    "category of texts": lambda ids: ids.map("id {}".format).astype("category"),
    "category of numbers": lambda ids: ids.astype("category"),
    "category of fractions": lambda ids: ids.astype("float32").astype("category"),
    "a category that nobody has": lambda ids: ids.astype(pd.CategoricalDtype(range(40, -1, -1))),
    "nullable": lambda ids: ids.astype("Int64"),
    "arrow": lambda ids: ids.astype("int16[pyarrow]"),
}
TIMES: dict[str, Callable[[pd.Series], Any]] = {
    "nanoseconds": lambda times: times.astype("datetime64[ns]"),
    "seconds": lambda times: times.astype("datetime64[s]"),
    "a zone": lambda times: times.dt.tz_localize("Asia/Seoul"),
    "int": lambda times: times.astype("datetime64[s]").astype("int64"),
    "float": lambda times: times.astype("datetime64[s]").astype("int64") / 2,
    "nullable": lambda times: times.astype("datetime64[s]").astype("int64").astype("Int64"),
    "text": lambda times: times.astype(str),
    "category": lambda times: times.astype(str).astype("category"),
    "days": lambda times: times.dt.date,
    "arrow": lambda times: times.astype("timestamp[ms][pyarrow]"),
}


def seen(data: BERT4RecDataModule) -> list[Any]:
    """All that follows from a table."""
    data.prepare_data()
    data.setup()
    notes = [note.replace(str(data.path), "TABLE") for note in data.notes]
    sets = [data.evaluation_set(from_end) for from_end in (1, 2)]
    held_out = [(*vars(each.histories).values(), each.targets) for each in sets]
    arrays = [data.sequences.tokens, data.sequences.offsets, *vars(data.spans).values(), *held_out[0], *held_out[1]]
    ids = [*data.user_ids.to_pylist(), *data.vocabulary.ids.to_pylist()]
    return [data.state_dict(), data.summary, notes, ids, [np.asarray(array).tolist() for array in arrays]]


def require_parity(frame: Any, folder: Path, options: TableOptions | None = None, **settings: Any) -> list[Any]:
    """See that a frame and a Parquet file of it give the same; what they give."""
    if isinstance(frame, pa.Table):
        pyarrow.parquet.write_table(frame, folder / "table.parquet")
    else:  # pandas or polars
        getattr(frame, "to_parquet" if hasattr(frame, "to_parquet") else "write_parquet")(folder / "table.parquet")
    settings = {"min_interactions": 2, "table_options": options, **settings}
    expected = seen(BERT4RecDataModule(str(folder), "table.parquet", **settings))
    assert seen(BERT4RecDataModule.from_frame(frame, **settings)) == expected
    return expected


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_kind(kind: str, tmp_path: Path) -> None:
    frame = PLAIN.assign(user=IDS[kind](PLAIN.user), item=IDS[kind](PLAIN.item))
    require_parity(frame, tmp_path)


@pytest.mark.parametrize("kind", TIMES)
def test_times_of_every_kind(kind: str, tmp_path: Path) -> None:
    frame = PLAIN.assign(time=TIMES[kind](PLAIN.time))
    _, summary, *_ = require_parity(frame, tmp_path)
    assert summary["has_time"] == 1
    if kind != "days":  # other users have one at the cut
        require_parity(frame, tmp_path, split=SplitOptions("time", at=0.8))


def test_days_of_python(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"user": ["a"] * 3, "item": ["x", "y", "z"], "time": [date(2024, 1, day) for day in (2, 3, 1)]}
    )
    [_, _, _, ids, _] = require_parity(frame, tmp_path, holdout=2)
    assert ids == ["a", "x", "y", "z"]


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.rename(columns={"user": "userId", "time": "ts"}),
        lambda frame: frame.set_index("user"),
        lambda frame: frame[::-1],
        lambda frame: frame.drop(columns="time"),
        lambda frame: frame.assign(of_no_use=[{"a": [1]}] * ROWS),
        lambda frame: frame.groupby("user", as_index=False)[["item", "time"]].agg(list),
        lambda frame: frame.assign(item=frame.item.where(frame.item != 3), time=frame.time.where(frame.item != 4)),
        pa.table,
        lambda frame: pa.concat_tables([pa.table(frame[:50]), pa.table(frame[50:])]),
        lambda frame: pa.table(frame.assign(user=frame.user.astype(str))).cast(
            pa.schema({"user": pa.string_view(), "item": pa.uint64(), "time": pa.timestamp("us"), "rating": pa.int8()})
        ),
    ],
)
def test_other_forms_and_options(change: Callable[[pd.DataFrame], Any], tmp_path: Path) -> None:
    frame = change(PLAIN)
    options = TableOptions(on_bad_rows="drop", deduplicate=True, min_rating=2 if "rating" in frame else None)
    require_parity(frame, tmp_path, options, min_item_interactions=2)


def test_polars(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    texts = [f"id {user}" for user in USERS]
    frame = polars.DataFrame({"user": texts, "item": ITEMS, "time": DAYS.to_numpy()})
    require_parity(frame, tmp_path)
    for kind in (polars.Categorical, polars.Enum(sorted(set(texts)))):
        require_parity(frame.with_columns(polars.col("user").cast(kind)), tmp_path)
    lists = frame.group_by("user", maintain_order=True).agg("item", "time")
    require_parity(lists, tmp_path)
    lists = frame.select("user", events=polars.struct("user", "item", "time")).group_by("user", maintain_order=True)
    lists = lists.agg("events").select(polars.col("user").alias("who"), "events")
    require_parity(lists, tmp_path, TableOptions(user="who"))
    with pytest.raises(UserError, match="LazyFrame is no frame"):
        BERT4RecDataModule.from_frame(frame.lazy())


def test_columns_by_name_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    usual = seen(BERT4RecDataModule.from_frame(PLAIN, generate_sample=True, cache_dir=tmp_path / "cache"))
    other = PLAIN.rename(columns={"user": "who", "item": "what", "time": "when"})
    named = seen(BERT4RecDataModule.from_frame(other, user="who", item="what", time="when"))
    assert named[0] == usual[0]
    in_order = PLAIN.sort_values("time", kind="stable")
    timeless = BERT4RecDataModule.from_frame(in_order, time=False, table_options=TableOptions(deduplicate=False))
    assert seen(timeless)[1] == {**usual[1], "has_time": 0}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frame", "line"),
    [
        (PLAIN[["user"]], "the frame has no column item: found user; the header must name user, item and, if there is"),
        (PLAIN.rename(columns={"user": "who"}), "no column user: found who, item, time, rating; .* data.columns.user="),
        (PLAIN[:0], "the frame has columns but no rows"),
        (pd.DataFrame(), "the frame has no column user and no column item"),
        (PLAIN.assign(user=PLAIN.user.where(PLAIN.index != 4)), "the frame has no user in data row 5: fill it in"),
        (PLAIN.assign(time=PLAIN.time.where(PLAIN.index != 4)), "the frame has no time in data row 5: fill it in"),
        (PLAIN.assign(user=PLAIN.user + 0.5), "the frame has fractions in user: ids must be text or whole numbers"),
        (PLAIN.assign(item=True), "the frame has bool in item"),
        (PLAIN.assign(user=["a", *range(1, ROWS)]), "the frame cannot be read as Arrow: .*column user.*; give the"),
        (PLAIN.set_axis(["user", "user", "item", "time"], axis=1), "the frame cannot be read as Arrow: Duplicate"),
        (PLAIN[:0].assign(time=[]), "the frame has columns but no rows"),
        (PLAIN.to_dict("list"), "^dict is no frame: give one of pandas or polars, or a pyarrow table$"),
        (PLAIN.user.to_numpy(), r"^numpy.ndarray is no frame"),
        (PLAIN[:3], "the frame has no user with at least data.min_interactions=3 interactions"),
    ],
)
def test_a_bad_frame_is_one_line(frame: Any, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        BERT4RecDataModule.from_frame(frame).setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"user": 1, "item": 2}, "the frame names its columns: give names in data.columns, not places"),
        ({"history_lines": True}, "the frame has no lines"),
        ({"time": "when"}, "the frame has no column when, which data.columns.time names: found user, item, time"),
    ],
)
def test_options_that_no_frame_has(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        BERT4RecDataModule.from_frame(PLAIN, table_options=TableOptions(**options)).setup()
