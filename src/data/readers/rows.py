"""Rows: what in them cannot be used, and columns in their final types."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...errors import UserError
from ..table import TEXT, BadRow, Part, Reading, Times
from . import lists
from . import times as times_

ROWS_SHOWN = 5


def is_clean(table: pa.Table, reading: Reading) -> bool:
    """Whether Arrow understood every value of every row."""
    for role in table.column_names:
        column, kind = table[role], table[role].type
        if column.null_count or (role in must_be_filled(reading) and _has_empty(column)):
            return False
        if role in ("time", "rating"):
            is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
            is_date = role == "time" and (pa.types.is_date(kind) or pa.types.is_timestamp(kind))
            needs_text = is_number and role == "time" and reading.options.time_format is not None
            if needs_text or not (is_number or is_date):
                return False
            if pa.types.is_floating(kind) and not pc.all(pc.is_finite(column)).as_py():
                return False
    return True


def must_be_filled(reading: Reading) -> tuple[str, ...]:
    """Columns in which no cell may be empty."""
    return ("user",) if reading.has_cells else ("user", "item")


def _has_empty(column: pa.ChunkedArray) -> bool:
    """Whether an id is empty or missing in the distinct values, used or not: the second look is exact."""
    empty = pa.scalar("", pa.string())
    return any(
        chunk.dictionary.null_count > 0 or int(pc.index(chunk.dictionary, empty).as_py()) >= 0
        for chunk in column.chunks
    )


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Any column as `TEXT`, missing values as empty text."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    chunks = []
    for chunk in column.chunks:
        words = pa.array([*chunk.dictionary.to_pylist(), ""], pa.string()).cast(pa.binary())
        places = chunk.indices.fill_null(len(words) - 1).cast(pa.int32())
        chunks.append(pa.DictionaryArray.from_arrays(places, words))
    return pa.chunked_array(chunks, TEXT)


def finish(
    reading: Reading, table: pa.Table, bad: Sequence[BadRow] = (), row_numbers: NDArray[np.int64] | None = None
) -> Part:
    """Columns in their final types, with a row for each item; bad rows are found, named, and left out if they may be.

    Args:
        table: R rows, its columns named by their roles; typed, or all `TEXT`.
        bad: rows that are left out of it already.
        row_numbers: [R] of the rows in the file; None if they are 1, 2, 3, ...

    Raises:
        UserError: if there are bad rows and they are not to be dropped, or no others.
    """
    path, notes = reading.path, reading.notes
    times: Times | None = None
    ratings = None
    is_text = table.column(0).type == TEXT
    if is_text or not is_clean(table, reading):
        if not is_text:
            table = pa.table([_as_text(column) for column in table.columns], names=table.column_names)
        row_numbers = np.arange(1, len(table) + 1) if row_numbers is None else row_numbers
        table, times, ratings, found, is_good = _sift(table, reading, row_numbers)
        bad = sorted([*bad, *found])
        row_numbers = row_numbers[is_good]
    else:
        if "time" in table.column_names:
            times = times_.as_times(table["time"])
        if "rating" in table.column_names:
            ratings = table["rating"].to_numpy().astype(np.float64)
    if bad:
        first = f"{bad[0]}: {bad[0].way_out}"
        if reading.options.on_bad_rows == "error":
            raise UserError(f"{path} has {first}, or leave such rows out with data.on_bad_rows=drop")
        if len(table) == 0:
            raise UserError(f"{path} has no row that can be used: the first has {first}")
        total = len(table) + len(bad)
        shown = ", ".join(str(row) for row in bad[:ROWS_SHOWN]) + (", ..." if len(bad) > ROWS_SHOWN else "")
        notes.append(f"left out    {len(bad):,} bad rows of {total:,} in {path} (data.on_bad_rows=drop): {shown}")
    if times is not None:
        notes += times_.notes(times, path, row_numbers)
    part = Part({role: table[role] for role in ("user", "item") if role in table.column_names}, times, ratings, notes)
    return lists.split_cells(part, reading) if reading.has_cells else part


def _sift(
    table: pa.Table, reading: Reading, row_numbers: NDArray[np.int64]
) -> tuple[pa.Table, Times | None, NDArray[np.float64] | None, list[BadRow], NDArray[np.bool_]]:
    """Of columns of text: ids, times and ratings of the usable rows, the bad rows, and [R] which rows are usable."""
    reasons: dict[int, tuple[str, str]] = {}  # place in the table -> what is wrong there, the first thing found
    ids: dict[str, pa.DictionaryArray] = {}
    values: dict[str, Any] = {}
    for role in table.column_names:
        column = table[role].unify_dictionaries().combine_chunks()
        decoded = [_decoded(word) for word in column.dictionary.to_pylist()]
        texts = [text or "" for text in decoded]
        codes = column.indices.to_numpy()
        wrong: dict[int, tuple[str, str]] = {}  # index of a text -> what it is, and the way out
        if role in must_be_filled(reading):
            empty = (code for code, text in enumerate(texts) if not text)
            wrong = dict.fromkeys(empty, (f"no {role}", "fill it in or delete the row"))
        if role == "time":
            values[role], wrong = times_.judge(texts, np.bincount(codes, minlength=len(texts)), reading.options)
        if role == "rating":
            values[role], wrong = _judge_ratings(texts)
        undecoded = (code for code, text in enumerate(decoded) if text is None)
        wrong |= dict.fromkeys(
            undecoded, ("bytes that are not utf-8", "name the encoding, such as data.encoding=latin-1")
        )
        if role in values:
            values[role] = values[role][codes]
        else:
            ids[role] = pa.DictionaryArray.from_arrays(column.indices, pa.array(texts, pa.string()))
        is_wrong = np.zeros(len(texts), dtype=bool)
        is_wrong[list(wrong)] = True
        for place in np.flatnonzero(is_wrong[codes]).tolist():
            reasons.setdefault(place, wrong[int(codes[place])])
    is_good = np.ones(len(table), dtype=bool)
    is_good[list(reasons)] = False
    kept = {role: array[is_good] for role, array in values.items()}
    bad = [BadRow(int(row_numbers[place]), *reason) for place, reason in reasons.items()]
    return pa.table(ids).filter(is_good), kept.get("time"), kept.get("rating"), bad, is_good


def _decoded(word: bytes | None) -> str | None:
    try:
        return (word or b"").decode()
    except UnicodeDecodeError:
        return None


def _judge_ratings(texts: list[str]) -> tuple[NDArray[np.float64], dict[int, tuple[str, str]]]:
    """Ratings of distinct texts, and what is wrong with those that are none."""
    ratings = pd.to_numeric(pd.Series(texts, dtype="object"), errors="coerce").to_numpy(np.float64)
    way_out = "every rating must be a number, with a point, where data.min_rating is given"
    return ratings, {
        code: (f"the rating {texts[code][:60]!r}" if texts[code] else "no rating", way_out)
        for code in np.flatnonzero(~np.isfinite(ratings)).tolist()
    }
