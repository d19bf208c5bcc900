"""One file of a table, whatever its format and names, as columns of ids, times and ratings.

Arrow reads a clean file in one go. Only where something is wrong is the file read again, as text, to say which rows
are at fault and why, or to leave them out. pyarrow rather than polars or duckdb, because ids come out of its readers as
indices into their distinct values, which is what sequences are made of, and because it is here already: the vocabulary
and pandas' strings are made of it.
"""

import codecs
import csv
import io
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from ..errors import UserError
from .files import Source

# In small letters, without what RecBole writes behind a colon; the first of a line that is there is taken.
KNOWN_NAMES = {
    role: names.split()
    for role, names in {
        "user": "user user_id userid uid reviewerid reviewer_id customer_id customerid visitor_id visitorid"
        " session_id sessionid session",
        "item": "item item_id itemid iid movie_id movieid product_id productid parent_asin asin article_id articleid"
        " book_id bookid track_id trackid business_id video_id news_id",
        "time": "time timestamp time_stamp unix_timestamp unixreviewtime ts datetime date_time date event_time"
        " created_at created t_dat",
        "rating": "rating ratings overall stars score",
    }.items()
}
# Endings of names of a time column, such as last_watch_dt, if a single column has one.
TIME_ENDINGS = ("_dt", "_ts", "_date", "_time", "_timestamp", "_datetime", "_at")
DELIMITERS = ("\t", "::", ",", ";", "|", " ")
SEPARATOR = "\x1f"  # what stands for a delimiter of several letters, which Arrow does not know
SNIFFED = 2**16  # bytes that show the delimiter and the header
BLOCK = 2**23  # bytes that Arrow reads at a time
ROWS_AT_A_TIME = 2**20  # of a Parquet file
IDS = pa.dictionary(pa.int32(), pa.string())
TEXT = pa.dictionary(pa.int32(), pa.binary())
ROWS_SHOWN = 5
# A column of numbers is Unix time in one of these units, by the size of its median; smaller ones are mere order.
UNITS = ((1e8, 1.0), (1e11, 1e3), (1e14, 1e6), (1e17, 1e9))
YEAR = 365.25 * 86400
DROP_HINT = "or leave such rows out with data.on_bad_rows=drop"

Times = NDArray[np.int64] | NDArray[np.float64] | NDArray[np.datetime64]


@dataclass(frozen=True)
class TableOptions:
    """How a table is to be read.

    Attributes:
        user, item, time, rating: names of the columns, or their places (from 1) in a table without a header line; None
            where the name is one of `KNOWN_NAMES`. `time=False` ignores times.
        delimiter: what stands between the fields of a text; None to find out.
        encoding: of a text.
        on_bad_rows: "error" or "drop".
        min_rating: rows rated lower are left out; None does not look at ratings.
        deduplicate: whether an item that follows itself in a history counts once.
    """

    user: str | int | None = None
    item: str | int | None = None
    time: str | int | bool | None = None
    rating: str | int | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    on_bad_rows: str = "error"
    min_rating: float | None = None
    deduplicate: bool = False

    @property
    def has_header(self) -> bool:
        return not any(type(place) is int for place in (self.user, self.item, self.time, self.rating))


@dataclass(frozen=True)
class Part:
    """What one file holds, R rows.

    Attributes:
        ids: `user`, `item` or both -> R strings as indices into their distinct values.
        times: [R], or None if there are none.
        ratings: [R] float64, or None if nobody asked.
        notes: what was found and done, for the person to read, one line each.
    """

    ids: dict[str, pa.ChunkedArray]
    times: Times | None
    ratings: NDArray[np.float64] | None
    notes: list[str] = field(default_factory=list)


class BadRow(NamedTuple):
    """A row that cannot be used: its number, what it has, and the way out."""

    row: int
    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.what} in data row {self.row}"


@dataclass(frozen=True)
class Layout:
    """Where a text has what.

    Attributes:
        columns: role -> name in the header, or f0, f1, ... without one.
        delimiter: one letter or several.
        has_header: whether the first line names the columns.
    """

    columns: dict[str, str]
    delimiter: str
    has_header: bool


def read_part(source: Source, options: TableOptions, ids: Sequence[str] = ("user", "item")) -> Part:
    """Read one file.

    Args:
        ids: the columns of ids that must be there; times and ratings are read only along with both.

    Raises:
        UserError: if the file cannot be read, lacks a column, or has bad rows that are not to be dropped.
    """
    return _read_parquet(source, options, ids) if source.is_parquet else _read_text(source, options, ids)


# Columns


def _choose(names: list[str], options: TableOptions, ids: Sequence[str], path: Path) -> dict[str, str]:
    """Name of the column in each role."""
    wanted: dict[str, Any] = {role: getattr(options, role) for role in _roles(options, ids)}
    chosen, missing = {}, []
    for role, name in wanted.items():
        found = _find(names, role, options)
        if found is not None:
            chosen[role] = found
        elif name is not None:
            raise UserError(f"{path} has no column {name}, which data.columns.{role} names: found {_listed(names)}")
        elif role != "time":
            missing.append(role)
    if missing:
        raise UserError(
            f"{path} has no column {' and no column '.join(missing)}: found {_listed(names)};"
            " the header must name user, item and, if there is one, time; say what they are called with"
            f" data.columns.{missing[0]}=NAME, or =1, =2, ... if there is no header line"
        )
    for name in chosen.values():
        if names.count(name) > 1:
            raise UserError(f"{path} has the column {name} more than once: keep one of them")
        roles = [role for role in chosen if chosen[role] == name]
        if len(roles) > 1:
            raise UserError(f"{path}: the column {name} cannot be both {roles[0]} and {roles[1]}: name another one")
    return chosen


def _find(names: list[str], role: str, options: TableOptions) -> str | None:
    """The name of the column in this role: the one that was given, or one of the usual ones."""
    name = getattr(options, role)
    if name is not None:
        return name if name in names else None
    known = [re.sub(r"[\s-]+", "_", re.sub(r":\w+$", "", each.strip().lower())) for each in names]
    found = next((names[known.index(alias)] for alias in KNOWN_NAMES[role] if alias in known), None)
    if found is None and role == "time":
        ending = [name for name, each in zip(names, known, strict=True) if each.endswith(TIME_ENDINGS)]
        found = ending[0] if len(ending) == 1 else None
    return found


def _require_no_hidden_time(
    path: Path, columns: dict[str, str], options: TableOptions, cells: dict[str, list[str]]
) -> None:
    """Refuse a table without a known time column in which another column is times throughout: order would be a guess.

    Args:
        columns: as chosen.
        cells: some texts of each column, in the order of the rows.

    Raises:
        UserError: with the setting that names the column, and the one that says that there is none.
    """
    if options.time is not None or "time" in columns or len(columns) < 2:
        return
    for name, texts in cells.items():
        if name not in columns.values() and texts and _look_like_times(texts):
            raise UserError(
                f"{path} has no column that is known as time, but {name} holds times: add data.columns.time={name}, or"
                " data.columns.time=false to keep the order of the file"
            )


def _look_like_times(texts: list[str]) -> bool:
    """Whether all are ISO dates, or Unix times of this century in seconds, milliseconds or microseconds."""
    column = pd.Series(texts, dtype="object")
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    if np.isfinite(numbers).all():
        return any(((numbers >= 9.4e8 * unit) & (numbers <= 4e9 * unit)).all() for unit in (1.0, 1e3, 1e6))
    if not all(re.match(r"\s*\d{4}-\d{2}-\d{2}", text) for text in texts):
        return False
    return bool(pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True).notna().all())


def _roles(options: TableOptions, ids: Sequence[str]) -> list[str]:
    roles = list(ids)
    if len(ids) == 2:
        roles += ["time"] if options.time is not False else []
        roles += ["rating"] if options.min_rating is not None else []
    return roles


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _named(columns: dict[str, str]) -> list[str]:
    """A note if columns were recognised that are not called as the documentation calls them."""
    others = [f"{name} as {role}" for role, name in columns.items() if name != role]
    return [f"columns     {', '.join(others)} (others with data.columns.user, item, time)"] if others else []


# Text


def _read_text(source: Source, options: TableOptions, ids: Sequence[str]) -> Part:
    layout = _find_layout(source, options, ids)
    content = _one_letter_between(source.content, layout.delimiter, source.path)
    quotes = _count(content, b'"') if len(layout.delimiter) == 1 else 0
    has_quotes = quotes > 0
    table, row_numbers = None, None
    bad: list[BadRow] = []
    try:
        table = _parse(content, layout, options, has_quotes)
        lines = _count(content, b"\n") + int(bytes(content[-1:]) != b"\n")
        if has_quotes and (quotes % 2 or lines != len(table) + layout.has_header):
            table = None  # a line break within a field, perhaps
    except (pa.ArrowInvalid, UnicodeError):
        pass  # the second look says where
    except (pa.ArrowException, LookupError, OSError) as error:
        raise UserError(f"{source.path} cannot be read as CSV: {_one_line(error)}") from error
    if table is None and has_quotes:
        _check_quotes(source.path, content, layout, options)
        table = _parse_with_line_breaks(content, layout, options)
    if table is None or not _is_clean(table):
        table, bad, row_numbers = _parse_as_text(source.path, content, layout, options, has_quotes)
    if len(table) == 0 and not bad:
        raise UserError(f"{source.path} has a header but no rows: it needs one row for each interaction")
    notes = _named(layout.columns) if layout.has_header else []
    return _finish(source.path, table, options, notes, bad, row_numbers)


def _find_layout(source: Source, options: TableOptions, ids: Sequence[str]) -> Layout:
    path = source.path
    lines = _first_lines(source, options.encoding)
    if not lines:
        raise UserError(f"{path} is empty: it must begin with the line user,item,time")
    delimiters = DELIMITERS if options.delimiter is None else (options.delimiter,)
    fields = {delimiter: [_split(line, delimiter) for line in lines] for delimiter in delimiters}
    widest = max(delimiters, key=lambda delimiter: len(fields[delimiter][0]))
    if not options.has_header:
        places = {role: getattr(options, role) for role in _roles(options, ids)}
        return _layout_of_places(path, {role: place for role, place in places.items() if place}, fields, widest)
    recognised = {
        delimiter: sum(bool(_find(fields[delimiter][0], r, options)) for r in ids) for delimiter in delimiters
    }
    even = {  # how many lines have as many fields as the header
        delimiter: sum(len(line) == len(rows[0]) > 1 for line in rows) for delimiter, rows in fields.items()
    }
    best = max(delimiters, key=lambda delimiter: (recognised[delimiter], even[delimiter]))
    delimiter = best if recognised[best] else widest
    names, *lines_after = fields[delimiter]
    rows = [line for line in lines_after if len(line) == len(names)]
    columns = _choose(names, options, ids, path)
    if len(ids) == 2:
        cells = dict(zip(names, map(list, zip(*rows, strict=True)), strict=False))
        _require_no_hidden_time(path, columns, options, cells)
    return Layout(columns, delimiter, has_header=True)


def _layout_of_places(path: Path, places: dict[str, int], fields: dict[str, list[list[str]]], widest: str) -> Layout:
    """The layout of a text without a header line: most of its lines have the last place that is asked for."""
    last = max(places.values())
    fitting = {delimiter: sum(len(line) >= last for line in lines) for delimiter, lines in fields.items()}
    delimiter = max(fitting, key=fitting.__getitem__)
    if not fitting[delimiter]:
        role = max(places, key=places.__getitem__)
        raise UserError(
            f"{path} has {len(fields[widest][0])} columns, but data.columns.{role}={last} asks for another one:"
            " the first is 1; say what is between them with data.delimiter"
        )
    columns = {role: f"f{place - 1}" for role, place in places.items()}
    if len(set(columns.values())) < len(columns):
        raise UserError(f"{path}: data.columns gives two of {', '.join(columns)} the same place")
    return Layout(columns, delimiter, has_header=False)


def _first_lines(source: Source, encoding: str) -> list[str]:
    """Lines that are not empty, 20 at most and none that is cut off."""
    assert source.content is not None
    start = bytes(source.content[:SNIFFED])
    if encoding == "utf-8" and start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{source.path} is UTF-16: say so with data.encoding=utf-16")
    try:
        text = start.decode(encoding, errors="replace").removeprefix("\ufeff")
    except LookupError as error:
        raise UserError(f"data.encoding={encoding} is not known: utf-8, latin-1, cp949, utf-16, ...") from error
    lines = text.splitlines()
    if len(start) < len(source.content) and len(lines) > 1:
        lines.pop()
    return [line for line in lines if line][:20]


def _split(line: str, delimiter: str) -> list[str]:
    if len(delimiter) > 1:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])


def _one_letter_between(content: pa.Buffer, delimiter: str, path: Path) -> pa.Buffer:
    if len(delimiter) == 1:
        return content
    text = content.to_pybytes()
    if SEPARATOR.encode() in text:
        raise UserError(f"{path} has the control character \\x1f in it, which a delimiter of several letters must not")
    return pa.py_buffer(text.replace(delimiter.encode(), SEPARATOR.encode()))


def _count(content: pa.Buffer, letter: bytes) -> int:
    letters = np.frombuffer(content, np.uint8)
    starts = range(0, len(letters), BLOCK)
    return sum(int(np.count_nonzero(letters[start : start + BLOCK] == letter[0])) for start in starts)


def _is_ascii(content: pa.Buffer) -> bool:
    words = np.frombuffer(content, np.uint64, len(content) // 8)
    high_bits = int(np.bitwise_or.reduce(words)) & 0x8080808080808080
    return not high_bits and bytes(content[len(words) * 8 :]).isascii()


def _parse(
    content: pa.Buffer,
    layout: Layout,
    options: TableOptions,
    has_quotes: bool,
    has_line_breaks: bool = False,
    as_text: Any = None,
) -> pa.Table:
    """The wanted columns, named by their roles. With `as_text`, a handler of malformed rows, all as raw text.

    Arrow finds its blocks sooner if it may cut the text at every line break, so that `has_line_breaks`, within fields,
    is said only where it is so.
    """
    types = {
        name: TEXT if as_text else IDS for role, name in layout.columns.items() if as_text or role in ("user", "item")
    }
    table = pyarrow.csv.read_csv(
        pa.BufferReader(content),
        read_options=pyarrow.csv.ReadOptions(
            use_threads=not as_text,  # only one thread counts rows
            block_size=BLOCK,
            encoding="utf8" if options.encoding == "utf-8" else options.encoding,
            autogenerate_column_names=not layout.has_header,
        ),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=layout.delimiter if len(layout.delimiter) == 1 else SEPARATOR,
            quote_char='"' if has_quotes else False,
            newlines_in_values=has_line_breaks,
            invalid_row_handler=as_text,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=types,
            include_columns=list(layout.columns.values()),
            check_utf8=not (options.encoding == "utf-8" and _is_ascii(content)),
        ),
    )
    return table.rename_columns(list(layout.columns))


def _parse_with_line_breaks(content: pa.Buffer, layout: Layout, options: TableOptions) -> pa.Table | None:
    try:
        return _parse(content, layout, options, has_quotes=True, has_line_breaks=True)
    except (pa.ArrowInvalid, UnicodeError):
        return None  # the second look says where


def _check_quotes(path: Path, content: pa.Buffer, layout: Layout, options: TableOptions) -> None:
    """Arrow takes a quote that is never closed for one field to the end of the file, and would lose the rows in it."""
    text = io.TextIOWrapper(io.BufferedReader(pa.BufferReader(content)), options.encoding, errors="replace", newline="")
    reader = csv.reader(text, delimiter=layout.delimiter, strict=True)
    row = -int(layout.has_header)
    previous = csv.field_size_limit(2**31 - 1)
    try:
        for fields in reader:
            row += bool(fields)
    except csv.Error as error:
        raise UserError(
            f"{path} has a quote in data row {row + 1} that is not closed where its field ends"
            f' ({_one_line(error)}): write " within quotes as "", or take the quotes out'
        ) from error
    finally:
        csv.field_size_limit(previous)


def _parse_as_text(
    path: Path, content: pa.Buffer, layout: Layout, options: TableOptions, has_quotes: bool
) -> tuple[pa.Table, list[BadRow], NDArray[np.int64]]:
    """The wanted columns as they stand, the rows without them, and the numbers of the others."""
    malformed: list[BadRow] = []
    if options.encoding == "utf-8" and not _is_ascii(content):
        # Every byte is a letter of Latin-1, so that Arrow takes any row; which ones are no UTF-8 is seen afterwards.
        content, layout = _without_mark(content), replace(layout, columns=_in_latin(layout.columns))
        options = replace(options, encoding="latin-1")
        table, malformed, numbers = _parse_as_text(path, content, layout, options, has_quotes)
        columns = [_from_latin(column) for column in table.columns]
        return pa.table(columns, names=table.column_names), malformed, numbers

    def skip(row: Any) -> str:
        what = f"{row.actual_columns} of {row.expected_columns} fields"
        malformed.append(BadRow(row.number - layout.has_header, what, "mend or delete the row"))
        return "skip"

    try:
        table = _parse(content, layout, options, has_quotes, has_line_breaks=has_quotes, as_text=skip)
    except UnicodeError as error:
        raise UserError(
            f"{path} is not {options.encoding} ({_one_line(error)}): name its encoding, such as data.encoding=cp949"
        ) from error
    except (pa.ArrowException, LookupError, OSError) as error:
        raise UserError(f"{path} cannot be read as CSV: {_one_line(error)}") from error
    numbers = np.arange(1, len(table) + len(malformed) + 1)
    return table, malformed, np.delete(numbers, [bad.row - 1 for bad in malformed])


def _without_mark(content: pa.Buffer) -> pa.Buffer:
    return content.slice(len(codecs.BOM_UTF8)) if bytes(content[:3]) == codecs.BOM_UTF8 else content


def _in_latin(columns: dict[str, str]) -> dict[str, str]:
    """Names as they look when their UTF-8 bytes are read as Latin-1."""
    return {role: name.encode().decode("latin-1") for role, name in columns.items()}


def _from_latin(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes of a text that was read as Latin-1."""
    chunks = []
    for chunk in column.chunks:
        words = [word.decode().encode("latin-1") for word in chunk.dictionary.to_pylist()]
        chunks.append(pa.DictionaryArray.from_arrays(chunk.indices, pa.array(words, pa.binary())))
    return pa.chunked_array(chunks, TEXT)


# Parquet


def _read_parquet(source: Source, options: TableOptions, ids: Sequence[str]) -> Part:
    path = source.path
    if not options.has_header:
        raise UserError(f"{path} is Parquet, which names its columns: give names in data.columns, not places")
    try:
        with pyarrow.parquet.ParquetFile(str(path) if source.content is None else source.content) as file:
            columns = _choose(file.schema_arrow.names, options, ids, path)
            if len(ids) == 2:
                cells = {
                    field.name: ["2000-01-01"]
                    for field in file.schema_arrow
                    if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)
                }
                _require_no_hidden_time(path, columns, options, cells)
            text = [columns[role] for role in ids if _is_text(file.schema_arrow.field(columns[role]).type)]
        with pyarrow.parquet.ParquetFile(
            str(path) if source.content is None else source.content, read_dictionary=text
        ) as file:
            batches = [
                pa.RecordBatch.from_arrays(
                    [
                        _as_ids(batch[name], path, name) if role in ids else batch[name]
                        for role, name in columns.items()
                    ],
                    names=list(columns),
                )
                for batch in file.iter_batches(ROWS_AT_A_TIME, columns=list(columns.values()))
            ]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet, it is damaged or cut short: {_one_line(error)}") from error
    if sum(len(batch) for batch in batches) == 0:
        raise UserError(f"{path} has columns but no rows: it needs one row for each interaction")
    table = pa.Table.from_batches(batches)
    for role in ids:
        column = table[role].unify_dictionaries()
        if column.type != IDS:
            column = pa.chunked_array([_with_text(chunk) for chunk in column.chunks], IDS)
        table = table.set_column(table.column_names.index(role), role, column)
    notes = _named(columns)
    if _is_clean(table):
        return _finish(path, table, options, notes, [], None)
    texts = [_as_text(column) for column in table.columns]
    return _finish(path, pa.table(texts, names=table.column_names), options, notes, [], np.arange(1, len(table) + 1))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _as_ids(column: pa.Array, path: Path, name: str) -> pa.DictionaryArray:
    """Ids as indices into distinct values, which are text or whole numbers."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(pa.dictionary(pa.int32(), pa.string()))
    if pa.types.is_floating(kind):  # what pandas makes of whole numbers when one is missing
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} has fractions in {name}: ids must be text or whole numbers") from error
    elif pa.types.is_decimal(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.string())
    elif not (pa.types.is_integer(kind) or _is_text(kind)):
        raise UserError(f"{path} has {kind} in {name}: ids must be text or whole numbers")
    return column.dictionary_encode() if not pa.types.is_large_string(column.type) else column.cast(IDS)


def _with_text(column: pa.DictionaryArray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.string()))


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


# Rows


def _is_clean(table: pa.Table) -> bool:
    """Whether Arrow understood every value of every row."""
    for role in table.column_names:
        column = table[role]
        if column.null_count or (role in ("user", "item") and _has_empty(column)):
            return False
        if role in ("time", "rating"):
            is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
            is_date = pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)
            if not (is_number or (is_date and role == "time")):
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


def _finish(
    path: Path,
    table: pa.Table,
    options: TableOptions,
    notes: list[str],
    bad: list[BadRow],
    row_numbers: NDArray[np.int64] | None,
) -> Part:
    """Columns in their final types; with `row_numbers` they still are text, and bad rows are found and dealt with."""
    times: Times | None = None
    ratings = None
    if row_numbers is None:
        row_numbers = np.arange(1, len(table) + 1)
        if "time" in table.column_names:
            times = _as_times(table["time"])
        if "rating" in table.column_names:
            ratings = table["rating"].to_numpy().astype(np.float64)
    else:
        table, times, ratings, found = _sift(table, options, row_numbers)
        bad = sorted([*bad, *found])
        if bad and options.on_bad_rows == "error":
            raise UserError(f"{path} has {bad[0]}: {bad[0].way_out}, {DROP_HINT}")
        row_numbers = np.setdiff1d(row_numbers, [row.row for row in bad], assume_unique=True)
        if len(table) == 0:
            raise UserError(f"{path} has no row that can be used: the first has {bad[0]}: {bad[0].way_out}")
        if bad:
            total = len(table) + len(bad)
            shown = ", ".join(str(row) for row in bad[:ROWS_SHOWN]) + (", ..." if len(bad) > ROWS_SHOWN else "")
            notes.append(f"left out    {len(bad):,} bad rows of {total:,} in {path} (data.on_bad_rows=drop): {shown}")
    if times is not None:
        notes += _odd_times(times, path, row_numbers)
    return Part({role: table[role] for role in ("user", "item") if role in table.column_names}, times, ratings, notes)


def _as_times(column: pa.ChunkedArray) -> Times:
    """Numbers as they are, dates as datetime64."""
    if pa.types.is_date32(column.type):
        column = column.cast(pa.timestamp("s"))
    elif pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    elif pa.types.is_integer(column.type):
        column = column.cast(pa.int64()) if column.type != pa.uint64() else column.cast(pa.float64(), safe=False)
    elif pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    elif column.type.tz is not None:
        column = column.cast(pa.timestamp(column.type.unit))
    times: Times = column.to_numpy()
    return times


def _sift(
    table: pa.Table, options: TableOptions, row_numbers: NDArray[np.int64]
) -> tuple[pa.Table, Times | None, NDArray[np.float64] | None, list[BadRow]]:
    """Tell usable rows from bad ones in columns of text.

    Returns:
        The usable rows with their ids as strings, their times and ratings, and the bad rows.
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
            code: (f"bytes that are not {options.encoding}", "name the encoding, such as data.encoding=latin-1")
            for code, text in enumerate(texts)
            if text is None
        }
        if role in ("user", "item"):
            verdicts |= {
                c: (f"no {role}", "fill it in or delete the row") for c, text in enumerate(texts) if text == ""
            }
        else:
            counts = np.bincount(codes[role], minlength=len(texts))
            judge = _judge_times if role == "time" else _judge_ratings
            values[role], judged = judge([text or "" for text in texts], counts)
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
    return pa.table(ids), kept.get("time"), kept.get("rating"), bad


def _decoded(word: bytes | None) -> str | None:
    try:
        return (word or b"").decode()
    except UnicodeDecodeError:
        return None


def _judge_times(texts: list[str], counts: NDArray[np.int64]) -> tuple[Times, dict[int, tuple[str, str]]]:
    """Times of distinct texts, as numbers or as dates, whichever most rows have; and what is wrong with the others."""
    column = pd.Series(texts, dtype="object")
    numbers = pd.to_numeric(column, errors="coerce")
    is_number = np.isfinite(numbers.to_numpy(np.float64))
    dates = pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True)
    is_date = dates.notna().to_numpy() & ~is_number
    times: Times
    if counts[is_date].sum() > counts[is_number].sum():
        is_good = is_date
        times = dates.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    else:
        is_good = is_number
        chosen = pd.to_numeric(column[is_good]).to_numpy()
        chosen = chosen if chosen.dtype == np.int64 else chosen.astype(np.float64)
        times = np.zeros(len(texts), dtype=chosen.dtype)
        times[is_good] = chosen
    wrong: dict[int, tuple[str, str]] = {}
    for code in np.flatnonzero(~is_good).tolist():
        text = texts[code]
        if text == "" or text.lower() in ("na", "n/a", "nan", "null", "none"):
            wrong[code] = ("no time", "fill it in, or leave the column out altogether with data.columns.time=false")
        elif pd.notna(numbers[code]) and not is_number[code]:
            wrong[code] = (f"the time {text}", "every time must be a finite number")
        else:
            way_out = "use Unix times or dates like 2024-01-31 12:00:00 throughout, or data.columns.time=false"
            wrong[code] = (f"the time {text[:60]!r}", way_out)
    return times, wrong


def _judge_ratings(
    texts: list[str], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], dict[int, tuple[str, str]]]:
    """Ratings of distinct texts, and what is wrong with those that are none."""
    ratings = pd.to_numeric(pd.Series(texts, dtype="object"), errors="coerce").to_numpy(np.float64)
    way_out = "every rating must be a number where data.min_rating is given"
    return ratings, {
        code: (f"the rating {texts[code][:60]!r}" if texts[code] else "no rating", way_out)
        for code in np.flatnonzero(~np.isfinite(ratings)).tolist()
    }


def _odd_times(times: Times, path: Path, row_numbers: NDArray[np.int64]) -> list[str]:
    """A note on times before 1970 or far in the future, which still have their place in the order."""
    if times.dtype.kind == "M":
        values: NDArray[Any] = times.astype("datetime64[s]").astype(np.int64)
        per_second = 1.0
    else:
        sample = np.abs(times[:: len(times) // 1000 + 1].astype(np.float64))
        values = times
        per_second = max((unit for least, unit in UNITS if np.median(sample) >= least), default=math.inf)
    latest = (time.time() + YEAR) * per_second
    if len(values) == 0 or (values.min() >= 0 and values.max() <= latest):
        return []
    is_odd = (values < 0) | (values > latest)
    first = int(np.argmax(is_odd))
    return [
        f"warning: {path} has {int(is_odd.sum()):,} times before 1970 or far in the future, first {times[first]} in"
        f" data row {row_numbers[first]}; they keep their place in the order"
    ]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
