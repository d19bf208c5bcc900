"""CSV and its kin, read by Arrow.

Arrow reads a clean file in one go. Only where something is wrong is the file read again, as text, to say which rows
are at fault and why, or to leave them out.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from ...errors import UserError
from ..table import IDS, TEXT, BadRow, Part, TableOptions, one_line
from . import lists, rows
from .layout import Layout, find_layout, first_lines
from .sources import Source

SEPARATOR = "\x1f"  # what stands for a delimiter of several letters, which Arrow does not know
BLOCK = 2**23  # bytes that Arrow reads at a time
LARGEST_BLOCK = 2**31 - 1


def read_delimited(source: Source, options: TableOptions, ids: Sequence[str], notes: list[str]) -> Part:
    """Read a text in UTF-8 with a row a line; see `src.data.readers.read_part`."""
    if options.history_lines:
        return _read_history_lines(source, options, ids, notes)
    layout = find_layout(source, options, ids)
    notes += layout.notes
    content = _one_letter_between(source.content, layout.delimiter, source.path)
    quotes = _count(content, b'"') if options.quotes and len(layout.delimiter.encode()) == 1 else 0
    has_quotes = quotes > 0
    table, row_numbers, is_text = None, None, False
    bad: list[BadRow] = []
    try:
        table = _parse(content, layout, has_quotes)
        lines = _count(content, b"\n") + int(bytes(content[-1:]) != b"\n")
        if has_quotes and (quotes % 2 or lines != len(table) + layout.has_header):
            table = None  # a line break within a field, perhaps
    except (pa.ArrowInvalid, UnicodeError):
        pass  # the second look says where
    except (pa.ArrowException, LookupError, OSError) as error:
        raise UserError(f"{source.path} cannot be read as CSV: {one_line(error)}") from error
    if table is None and has_quotes:
        _check_quotes(source.path, content, layout)
        table = _parse_with_line_breaks(content, layout)
    has_cells = options.list_delimiter is not None and "item" in ids
    if table is None or not rows.is_clean(table, options, has_cells):
        is_text = True
        table, bad, row_numbers = _parse_as_text(source.path, content, layout, has_quotes)
    if len(table) == 0 and not bad:
        raise UserError(f"{source.path} has a header but no rows: it needs one row for each interaction")
    part = rows.finish(source.path, table, options, notes, bad, row_numbers, is_text, has_cells)
    return lists.split_cells(part, options, source.path) if has_cells else part


def _read_history_lines(source: Source, options: TableOptions, ids: Sequence[str], notes: list[str]) -> Part:
    """Lines of a user and all items, as columns of users and of cells with many items."""
    delimiter = options.delimiter or _delimiter_of_lists(first_lines(source))
    content = source.content
    assert content is not None
    if SEPARATOR.encode() in content.to_pybytes():
        raise UserError(f"{source.path} has the control character \\x1f in it, which lines of histories must not")
    try:
        table = _read_csv(content, SEPARATOR, False, False, {"f0": pa.string()}, has_header=False)
    except (pa.ArrowException, UnicodeError) as error:
        raise UserError(
            f"{source.path} is not utf-8 ({one_line(error)}): name its encoding, such as data.encoding=cp949"
        ) from error
    table = lists.user_and_items(table["f0"], delimiter)
    is_clean = rows.is_clean(table, options, has_cells=True)
    if not is_clean:
        table = pa.table([rows.as_text(column) for column in table.columns], names=table.column_names)
    part = rows.finish(source.path, table, options, notes, [], None, not is_clean, has_cells=True)
    shown = {" ": "blanks", "\t": "tabs"}.get(delimiter, repr(delimiter))
    if options.delimiter is None:
        notes.append(f"delimiter   lines of histories are split at {shown} (another with data.delimiter)")
    part = lists.split_cells(part, replace(options, list_delimiter=delimiter), source.path)
    return replace(part, ids={role: part.ids[role] for role in ids})


def _delimiter_of_lists(lines: list[str]) -> str:
    """What most lines have most of, a blank where they are of one field each."""
    counts = {letter: sum(line.count(letter) for line in lines) for letter in ("\t", ",", ";", "|", " ")}
    return max(counts, key=counts.__getitem__) if any(counts.values()) else " "


def _one_letter_between(content: pa.Buffer, delimiter: str, path: Path) -> pa.Buffer:
    if len(delimiter.encode()) == 1:
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
    whole = len(content) // 8 * 8
    words = np.frombuffer(content.slice(0, whole), np.uint64)
    high_bits = int(np.bitwise_or.reduce(words)) & 0x8080808080808080
    return not high_bits and bytes(content[whole:]).isascii()


def _parse(
    content: pa.Buffer,
    layout: Layout,
    has_quotes: bool,
    has_line_breaks: bool = False,
    as_text: Any = None,
    encoding: str = "utf8",
) -> pa.Table:
    """The columns that are needed, named by their roles. With `as_text`, a handler of malformed rows, all as raw text.

    Arrow finds its blocks sooner if it may cut the text at every line break, so that `has_line_breaks`, within fields,
    is said only where it is so.
    """
    types = {
        name: TEXT if as_text else IDS for role, name in layout.columns.items() if as_text or role in ("user", "item")
    }
    table = _read_csv(
        content,
        layout.delimiter if len(layout.delimiter.encode()) == 1 else SEPARATOR,
        has_quotes,
        has_line_breaks,
        types,
        layout.has_header,
        list(layout.columns.values()),
        as_text,
        encoding,
    )
    return table.rename_columns(list(layout.columns))


def _read_csv(
    content: pa.Buffer,
    delimiter: str,
    has_quotes: bool,
    has_line_breaks: bool,
    types: dict[str, pa.DataType],
    has_header: bool,
    names: list[str] | None = None,
    as_text: Any = None,
    encoding: str = "utf8",
    block: int = BLOCK,
) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(content),
            read_options=pyarrow.csv.ReadOptions(
                use_threads=not as_text,  # only one thread counts rows
                block_size=block,
                encoding=encoding,
                autogenerate_column_names=not has_header,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if has_quotes else False,
                newlines_in_values=has_line_breaks,
                invalid_row_handler=as_text,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types,
                include_columns=names,
                check_utf8=encoding == "utf8" and not _is_ascii(content),
            ),
        )
    except pa.ArrowInvalid as error:  # a line that is longer than two blocks
        if "straddl" not in str(error) or block >= min(2 * len(content), LARGEST_BLOCK):
            raise
        if as_text is not None:
            as_text.__self__.clear()
        larger = min(16 * block, LARGEST_BLOCK)
        return _read_csv(
            content, delimiter, has_quotes, has_line_breaks, types, has_header, names, as_text, encoding, larger
        )


def _parse_with_line_breaks(content: pa.Buffer, layout: Layout) -> pa.Table | None:
    try:
        return _parse(content, layout, has_quotes=True, has_line_breaks=True)
    except (pa.ArrowInvalid, UnicodeError):
        return None  # the second look says where


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


class _Malformed:
    """Collects the rows that have too few or too many fields."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rows: list[BadRow] = []

    def clear(self) -> None:
        self.rows.clear()

    def skip(self, row: Any) -> str:
        what = f"{row.actual_columns} of {row.expected_columns} fields"
        self.rows.append(BadRow(row.number - self.layout.has_header, what, "fix or delete the row"))
        return "skip"


def _parse_as_text(
    path: Path, content: pa.Buffer, layout: Layout, has_quotes: bool
) -> tuple[pa.Table, list[BadRow], NDArray[np.int64]]:
    """The columns that are needed as they stand, the rows without them, and the numbers of the others."""
    malformed = _Malformed(layout)
    is_ascii = _is_ascii(content)
    if not is_ascii:
        # Every byte is a letter of Latin-1, so that Arrow takes any row; which ones are no UTF-8 is seen afterwards.
        latin = {role: name.encode().decode("latin-1") for role, name in layout.columns.items()}
        layout = replace(layout, columns=latin)
    try:
        table = _parse(
            content,
            layout,
            has_quotes,
            has_line_breaks=has_quotes,
            as_text=malformed.skip,
            encoding="utf8" if is_ascii else "latin-1",
        )
    except (pa.ArrowException, UnicodeError, LookupError, OSError) as error:
        raise UserError(f"{path} cannot be read as CSV: {one_line(error)}") from error
    if not is_ascii:
        table = pa.table([_from_latin(column) for column in table.columns], names=table.column_names)
    numbers = np.arange(1, len(table) + len(malformed.rows) + 1)
    return table, malformed.rows, np.delete(numbers, [bad.row - 1 for bad in malformed.rows])


def _from_latin(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes of a text that was read as Latin-1."""
    chunks = []
    for chunk in column.chunks:
        words = [word.decode().encode("latin-1") for word in chunk.dictionary.to_pylist()]
        chunks.append(pa.DictionaryArray.from_arrays(chunk.indices, pa.array(words, pa.binary())))
    return pa.chunked_array(chunks, TEXT)
