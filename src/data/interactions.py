"""From a table `user,item[,time]` to interactions grouped by user and ordered by time.

Ids are strings throughout, exactly as they stand in the file, so that `007` and `7` stay two ids.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from src.errors import UserError


@dataclass(frozen=True)
class Interactions:
    """All rows of a table, sorted by user in order of first appearance, then by time, then by place in the file.

    Attributes:
        items: [R] int64, index into `item_ids`.
        offsets: [U + 1] int64; the rows of user u are items[offsets[u] : offsets[u + 1]].
        user_ids: [U] strings.
        item_ids: [I] strings, in order of first appearance.
        has_time: whether the table had a time column.
    """

    items: NDArray[np.int64]
    offsets: NDArray[np.int64]
    user_ids: pa.StringArray
    item_ids: pa.StringArray
    has_time: bool

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Interactions of each user. [U] int64."""
        return np.diff(self.offsets)


def read_interactions(path: Path) -> Interactions:
    """Read a CSV with a header line and the columns `user`, `item` and, if there is one, `time`.

    Raises:
        UserError: if the file is missing, empty, unreadable, lacks a column, or has a missing id or unusable time.
    """
    table = _read_csv(path)
    users, items = (_codes(table, name, path) for name in ("user", "item"))
    has_time = "time" in table.column_names
    order = np.argsort(_times(table["time"], path), kind="stable") if has_time else np.arange(len(table))
    order = order[np.argsort(users.indices.to_numpy()[order], kind="stable")]
    counts = np.bincount(users.indices.to_numpy(), minlength=len(users.dictionary))
    return Interactions(
        items=items.indices.to_numpy()[order].astype(np.int64),
        offsets=np.concatenate([[0], counts.cumsum()]).astype(np.int64),
        user_ids=users.dictionary,
        item_ids=items.dictionary,
        has_time=has_time,
    )


def _read_csv(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(
            f"there is no file {path}: name yours with data.data_dir=FOLDER data.data_file=FILE,"
            " or try the built-in sample with experiment=sample"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: it must begin with the line user,item,time")
    ids_are_text = pyarrow.csv.ConvertOptions(column_types={"user": pa.string(), "item": pa.string()})
    try:
        table = pyarrow.csv.read_csv(
            path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=ids_are_text
        )
        names = table.column_names  # which are decoded only now
    except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as CSV: {' '.join(str(error).split())}") from error
    missing = [name for name in ("user", "item") if name not in names]
    if missing:
        raise UserError(
            f"{path} has no column {' and no column '.join(missing)}: found {', '.join(names)};"
            " the header must name user, item and, if there is one, time"
        )
    repeated = sorted({name for name in ("user", "item", "time") if names.count(name) > 1})
    if repeated:
        raise UserError(f"{path} has the column {repeated[0]} more than once: keep one of them")
    if len(table) == 0:
        raise UserError(f"{path} has a header but no rows: it needs one row for each interaction")
    return table


def _codes(table: pa.Table, name: str, path: Path) -> pa.DictionaryArray:
    """A column of ids as indices into its distinct values, in order of first appearance."""
    empty = pc.index(table[name], pa.scalar("", pa.string())).as_py()
    if empty >= 0:
        raise UserError(f"{path} has no {name} in data row {empty + 1}: fill it in or delete the row")
    return table[name].combine_chunks().dictionary_encode()


def _times(column: pa.ChunkedArray, path: Path) -> NDArray[np.generic]:
    """Times as something that sorts: numbers as they are, dates as int64."""
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise UserError(f"{path} has no time in data row {row + 1}: fill it in, or leave the column out altogether")
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        column = column.cast(pa.int32() if pa.types.is_date32(column.type) else pa.int64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        row, value = _first_bad_time(column)
        raise UserError(
            f"{path} has a time that is neither a number nor an ISO date, or not of the kind of the others:"
            f" {value!r} in data row {row + 1}: use Unix times or dates like 2024-01-31 12:00:00 throughout"
        )
    times: NDArray[np.generic] = column.to_numpy()
    if not np.isfinite(times).all():
        row = int(np.flatnonzero(~np.isfinite(times))[0])
        raise UserError(f"{path} has the time {times[row]} in data row {row + 1}: every time must be a finite number")
    return times


def _first_bad_time(column: pa.ChunkedArray) -> tuple[int, str]:
    """Row and text of the first time that reads neither as what most of the column is, a number or a date."""
    texts = pd.Series([str(value) for value in column.to_pylist()])
    is_bad = min(
        (pd.to_numeric(texts, errors="coerce").isna(), pd.to_datetime(texts, errors="coerce", format="ISO8601").isna()),
        key=lambda bad: int(bad.sum()),
    )
    row = int(is_bad.to_numpy().argmax())
    return row, str(texts[row])
