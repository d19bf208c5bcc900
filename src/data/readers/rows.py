"""Rows: what in them cannot be used, and columns in their final types."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...errors import UserError
from ..table import DROP_HINT, TEXT, BadRow, Part, TableOptions, Times
from . import times as times_

ROWS_SHOWN = 5


def is_clean(table: pa.Table, options: TableOptions, has_cells: bool = False) -> bool:
    """Whether Arrow understood every value of every row."""
    for role in table.column_names:
        column = table[role]
        may_be_empty = role not in ("user", "item") or (has_cells and role == "item")
        if column.null_count or (not may_be_empty and _has_empty(column)):
            return False
        if role in ("time", "rating"):
            is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
            is_date = pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)
            if not (is_number or (is_date and role == "time")):
                return False
            if is_number and role == "time" and options.time_format is not None:
                return False
            if pa.types.is_floating(column.type) and not pc.all(pc.is_finite(column)).as_py():
                return False
    return True


def _has_empty(column: pa.ChunkedArray) -> bool:
    """Whether an id is empty or missing in the distinct values, used or not: the second look is exact."""
    empty = pa.scalar("", pa.string())
    return any(
        chunk.dictionary.null_count > 0 or int(pc.index(chunk.dictionary, empty).as_py()) >= 0
        for chunk in column.chunks
    )


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
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
    path: Path,
    table: pa.Table,
    options: TableOptions,
    notes: list[str],
    bad: list[BadRow],
    row_numbers: NDArray[np.int64] | None,
    is_text: bool,
    has_cells: bool = False,
) -> Part:
    """Columns in their final types; bad rows are found, named, and left out if they may be.

    Args:
        table: R rows, its columns named by their roles.
        bad: rows that are left out of it already.
        row_numbers: [R] of the rows in the file; None if they are 1, 2, 3, ...
        is_text: whether the columns are `TEXT`, so that bad rows are still among them.
        has_cells: whether an item is a cell of several, which may be empty.

    Raises:
        UserError: if there are bad rows and they are not to be dropped, or no others.
    """
    times: Times | None = None
    ratings = None
    if is_text:
        row_numbers = np.arange(1, len(table) + 1) if row_numbers is None else row_numbers
        table, times, ratings, found, is_good = _sift(table, options, row_numbers, has_cells)
        bad = sorted([*bad, *found])
        row_numbers = row_numbers[is_good]
    else:
        if "time" in table.column_names:
            times = times_.as_times(table["time"])
        if "rating" in table.column_names:
            ratings = table["rating"].to_numpy().astype(np.float64)
    if bad and options.on_bad_rows == "error":
        raise UserError(f"{path} has {bad[0]}: {bad[0].way_out}, {DROP_HINT}")
    if len(table) == 0 and bad:
        raise UserError(f"{path} has no row that can be used: the first has {bad[0]}: {bad[0].way_out}")
    if bad:
        total = len(table) + len(bad)
        shown = ", ".join(str(row) for row in bad[:ROWS_SHOWN]) + (", ..." if len(bad) > ROWS_SHOWN else "")
        notes.append(f"left out    {len(bad):,} bad rows of {total:,} in {path} (data.on_bad_rows=drop): {shown}")
    if times is not None:
        notes += times_.notes(times, path, row_numbers)
    return Part({role: table[role] for role in ("user", "item") if role in table.column_names}, times, ratings, notes)


def _sift(
    table: pa.Table, options: TableOptions, row_numbers: NDArray[np.int64], has_cells: bool
) -> tuple[pa.Table, Times | None, NDArray[np.float64] | None, list[BadRow], NDArray[np.bool_]]:
    """Tell usable rows from bad ones in columns of text.

    Returns:
        The usable rows with their ids as strings, their times and ratings, the bad rows, and [R] which are usable.
    """
    reasons: dict[int, tuple[str, str]] = {}  # place in the table -> what is wrong there, the first thing found
    words: dict[str, pa.Array] = {}
    codes: dict[str, NDArray[np.int64]] = {}
    values: dict[str, Any] = {}
    for role in table.column_names:
        column = table[role].unify_dictionaries().combine_chunks()
        texts = [_decoded(word) for word in column.dictionary.to_pylist()]
        codes[role] = column.indices.to_numpy().astype(np.int64)
        verdicts: dict[int, tuple[str, str]] = {
            code: ("bytes that are not utf-8", "name the encoding, such as data.encoding=latin-1")
            for code, text in enumerate(texts)
            if text is None
        }
        if role in ("user", "item"):
            may_be_empty = has_cells and role == "item"
            verdicts |= {
                c: (f"no {role}", "fill it in or delete the row")
                for c, text in enumerate(texts)
                if text == "" and not may_be_empty
            }
        else:
            counts = np.bincount(codes[role], minlength=len(texts))
            known = [text or "" for text in texts]
            values[role], judged = times_.judge(known, counts, options) if role == "time" else _judge_ratings(known)
            verdicts = judged | verdicts
        words[role] = pa.array(["" if code in verdicts else text for code, text in enumerate(texts)], pa.string())
        is_bad = np.zeros(len(texts), dtype=bool)
        is_bad[list(verdicts)] = True
        for place in np.flatnonzero(is_bad[codes[role]]).tolist():
            reasons.setdefault(place, verdicts[int(codes[role][place])])
    is_good = np.ones(len(table), dtype=bool)
    is_good[list(reasons)] = False
    ids = {
        role: pa.chunked_array([pa.DictionaryArray.from_arrays(codes[role][is_good].astype(np.int32), words[role])])
        for role in ("user", "item")
        if role in words
    }
    kept = {role: values[role][codes[role][is_good]] for role in values}
    bad = [BadRow(int(row_numbers[place]), *reason) for place, reason in reasons.items()]
    return pa.table(ids), kept.get("time"), kept.get("rating"), bad, is_good


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
