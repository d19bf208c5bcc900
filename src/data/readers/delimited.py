"""CSV and its kin, read by Arrow.

Arrow reads a clean file in one go. Only where something is wrong is the file read again, as text, to say which rows
are at fault and why, or to leave them out.
"""

import csv
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from ...errors import UserError
from ..table import IDS, TEXT, BadRow, Part, Reading, one_line
from . import lists, rows
from .layout import Layout, find_layout, first_lines

BLOCK = 2**23  # bytes that Arrow reads at a time
LARGEST_BLOCK = 2**31 - 1
SEPARATOR = "\x1f"  # what stands for a delimiter of several letters, which Arrow does not know
NOT_AS_IT_IS = (pa.ArrowException, UnicodeError, LookupError, OSError)  # what Arrow raises where a text is not clean


def read_delimited(reading: Reading) -> Part:
    """Read a text in UTF-8 with a row a line; see `src.data.readers.read_part`."""
    if reading.options.history_lines:
        return _read_history_lines(reading)
    layout, content = _one_letter_between(find_layout(reading), reading)
    quotes = _count(content, b'"') if reading.options.quotes and layout.delimiter != SEPARATOR else 0
    parse_it = partial(parse, content, has_quotes=quotes > 0)
    table, row_numbers = None, None
    bad: list[BadRow] = []
    with suppress(*NOT_AS_IT_IS):
        table = parse_it(layout)
    lines = _count(content, b"\n") + int(bytes(content[-1:]) != b"\n") - layout.has_header
    if quotes and (table is None or quotes % 2 or lines != len(table)):  # a line break within a field, perhaps
        _check_quotes(reading.path, content, layout)
        table = None
        with suppress(*NOT_AS_IT_IS):
            table = parse_it(layout, has_line_breaks=True)
    if table is None or not rows.is_clean(table, reading):
        table, bad, row_numbers = _parse_as_text(reading.path, parse_it, layout, is_ascii=_is_ascii(content))
    if len(table) == 0 and not bad:
        raise UserError(f"{reading.path} has a header but no rows: it needs one row for each interaction")
    return rows.finish(reading, table, bad, row_numbers)


def _read_history_lines(reading: Reading) -> Part:
    """Lines of a user and all items, as columns of users and of cells with many items."""
    path, options = reading.path, reading.options
    delimiter = options.delimiter or _delimiter_of_lists(first_lines(reading.content))
    if options.delimiter is None:
        shown = {" ": "blanks", "\t": "tabs"}.get(delimiter, repr(delimiter))
        reading.notes.append(f"delimiter   lines of histories are split at {shown} (another with data.delimiter)")
    if SEPARATOR.encode() in reading.content.to_pybytes():
        raise UserError(f"{path} has the control character \\x1f in it, which lines of histories must not")
    try:
        table = parse(reading.content, Layout({"line": "f0"}, SEPARATOR, has_header=False), has_quotes=False)
    except (pa.ArrowException, UnicodeError) as error:
        raise UserError(
            f"{path} is not utf-8 ({one_line(error)}): name its encoding, such as data.encoding=cp949"
        ) from error
    table = lists.user_and_items(table["line"].cast(pa.string()), delimiter)
    both = replace(reading, options=replace(options, list_delimiter=delimiter), ids=("user", "item"))
    part = rows.finish(both, table)
    return replace(part, ids={role: part.ids[role] for role in reading.ids})


def _delimiter_of_lists(lines: list[str]) -> str:
    """What most lines have most of, a blank where they are of one field each."""
    counts = {letter: sum(line.count(letter) for line in lines) for letter in ("\t", ",", ";", "|", " ")}
    return max(counts, key=counts.__getitem__) if any(counts.values()) else " "


def _one_letter_between(layout: Layout, reading: Reading) -> tuple[Layout, pa.Buffer]:
    """The layout and the text with a delimiter that is one byte."""
    delimiter = layout.delimiter.encode()
    if len(delimiter) == 1:
        return layout, reading.content
    text, separator = reading.content.to_pybytes(), SEPARATOR.encode()
    if separator in text:
        raise UserError(
            f"{reading.path} has the control character \\x1f in it, which a delimiter of several letters must not"
        )
    return replace(layout, delimiter=SEPARATOR), pa.py_buffer(text.replace(delimiter, separator))


def _count(content: pa.Buffer, letter: bytes) -> int:
    letters = np.frombuffer(content, np.uint8)
    starts = range(0, len(letters), BLOCK)
    return sum(int(np.count_nonzero(letters[start : start + BLOCK] == letter[0])) for start in starts)


def _is_ascii(content: pa.Buffer) -> bool:
    return bool(np.frombuffer(content, np.uint8).max(initial=0) < 128)


def parse(
    content: pa.Buffer,
    layout: Layout,
    *,
    has_quotes: bool,
    has_line_breaks: bool = False,
    bad: list[BadRow] | None = None,
    encoding: str = "utf8",
) -> pa.Table:
    """The columns that are needed, named by their roles.

    Args:
        has_line_breaks: whether quoted fields may have some; without, Arrow finds its blocks sooner, at any line break.
        bad: takes the rows with too few or too many fields; the columns then all are `TEXT`.
    """
    is_text, odd = bad is not None, bad if bad is not None else []
    names = {role: name for role, name in layout.columns.items() if is_text or role not in ("time", "rating")}

    def take_out(row: Any) -> str:
        what = f"{row.actual_columns} of {row.expected_columns} fields"
        odd.append(BadRow(row.number - layout.has_header, what, "fix or delete the row"))
        return "skip"

    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names.values(), TEXT if is_text else IDS),
        include_columns=list(layout.columns.values()),
        check_utf8=encoding == "utf8" and not _is_ascii(content),
    )
    parse = pyarrow.csv.ParseOptions(
        delimiter=layout.delimiter,
        quote_char='"' if has_quotes else False,
        newlines_in_values=has_quotes and has_line_breaks,
        invalid_row_handler=take_out if is_text else None,
    )

    def read(block: int) -> pa.Table:
        odd.clear()
        options = pyarrow.csv.ReadOptions(
            use_threads=not is_text,  # only one thread counts rows
            block_size=block,
            encoding=encoding,
            autogenerate_column_names=not layout.has_header,
        )
        return pyarrow.csv.read_csv(pa.BufferReader(content), options, parse, convert)

    return in_blocks(read, BLOCK, len(content)).rename_columns(list(layout.columns))


def in_blocks(parse: Callable[[int], pa.Table], block: int, size: int) -> pa.Table:
    """What `parse` makes of a text of `size` bytes in blocks of so many, or of more where a line is longer than two."""
    while True:
        try:
            return parse(block)
        except pa.ArrowInvalid as error:
            if "straddl" not in str(error) or block >= min(2 * size, LARGEST_BLOCK):
                raise
            block = min(16 * block, LARGEST_BLOCK)


def _check_quotes(path: Path, content: pa.Buffer, layout: Layout) -> None:
    """Arrow takes a quote that is never closed for one field to the end of the file, and would lose the rows in it."""
    text = io.TextIOWrapper(io.BufferedReader(pa.BufferReader(content)), "utf-8", errors="replace", newline="")
    reader = csv.reader(text, delimiter=layout.delimiter, strict=True)
    row = -int(layout.has_header)
    previous = csv.field_size_limit(2**31 - 1)
    try:
        for fields in reader:
            row += bool(fields)
    except csv.Error as error:
        raise UserError(
            f"{path} has a quote in data row {row + 1} that is not closed where its field ends"
            f' ({one_line(error)}): write " within quotes as "", or take quotes as plain letters with data.quotes=false'
        ) from error
    finally:
        csv.field_size_limit(previous)


def _parse_as_text(
    path: Path, parse_it: Callable[..., pa.Table], layout: Layout, is_ascii: bool
) -> tuple[pa.Table, list[BadRow], NDArray[np.int64]]:
    """The columns that are needed as they stand, the rows without them, and the numbers of the others."""
    if not is_ascii:
        # Every byte is a letter of Latin-1, so that Arrow takes any row; which ones are no UTF-8 is seen afterwards.
        latin = {role: name.encode().decode("latin-1") for role, name in layout.columns.items()}
        layout = replace(layout, columns=latin)
    bad: list[BadRow] = []
    try:
        table = parse_it(layout, has_line_breaks=True, bad=bad, encoding="utf8" if is_ascii else "latin-1")
    except NOT_AS_IT_IS as error:
        raise UserError(f"{path} cannot be read as CSV: {one_line(error)}") from error
    if not is_ascii:
        table = pa.table([_from_latin(column) for column in table.columns], names=table.column_names)
    numbers = np.arange(1, len(table) + len(bad) + 1)
    return table, bad, np.delete(numbers, [row.row - 1 for row in bad])


def _from_latin(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes of a text that was read as Latin-1."""
    chunks = []
    for chunk in column.chunks:
        words = [word.decode().encode("latin-1") for word in chunk.dictionary.to_pylist()]
        chunks.append(pa.DictionaryArray.from_arrays(chunk.indices, pa.array(words, pa.binary())))
    return pa.chunked_array(chunks, TEXT)
