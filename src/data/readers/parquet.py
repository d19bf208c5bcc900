"""Parquet files, read piece by piece."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from ...errors import UserError
from ..table import IDS, BadRow, Part, Reading, one_line
from . import columns, lists, rows

ROWS_AT_A_TIME = 2**20
ROWS_LOOKED_AT = 100


def read_parquet(reading: Reading) -> Part:
    """Read a Parquet file; see `src.data.readers.read_part`."""
    path, options = reading.path, reading.options
    if not options.has_header:
        raise UserError(f"{path} is Parquet, which names its columns: give names in data.columns, not places")
    if options.history_lines:
        raise UserError(f"{path} is Parquet, which has no lines: take data.history_lines away; columns may hold lists")
    file_or_path = str(path) if reading.content is None else reading.content
    try:
        with pyarrow.parquet.ParquetFile(file_or_path) as file:
            found = lists.places(file.schema_arrow)
            names = file.schema_arrow.names
            head = next(file.iter_batches(ROWS_LOOKED_AT), None)
        roles = choose_places(found, head.to_pylist() if head else [], names, reading)
        wanted = list(dict.fromkeys(place.column for place in roles.values()))
        text = [roles[role].column for role in reading.ids if _is_text(roles[role].type) and not roles[role].is_list]
        with pyarrow.parquet.ParquetFile(file_or_path, read_dictionary=text) as file:
            return from_batches(file.iter_batches(ROWS_AT_A_TIME, columns=wanted), roles, reading)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet, it is damaged or cut short: {one_line(error)}") from error


def choose_places(
    found: dict[str, lists.Place], first_rows: list[dict[str, Any]], names: list[str], reading: Reading
) -> dict[str, lists.Place]:
    """Of the places found, by name, those of each role; with notes on it. `names` are of all columns there are."""
    cells = {name: _cells(first_rows, place) for name, place in found.items()}
    chosen = columns.choose(cells, names, reading, [name for name, place in found.items() if place.is_list])
    return {role: found[name] for role, name in chosen.items()}


def from_batches(
    batches: Iterable[pa.RecordBatch],
    roles: dict[str, lists.Place],
    reading: Reading,
    bad: Sequence[BadRow] = (),
    numbers: NDArray[np.int64] | None = None,
) -> Part:
    """What batches of typed columns hold.

    Args:
        batches: of the columns that the roles need.
        bad: rows that are left out already.
        numbers: of the rows in the file; None if they are 1, 2, 3, ...
    """
    is_numbered = numbers is not None or any(place.is_list for place in roles.values())
    parts, row_numbers, bad, empty, start = [], [], [*bad], 0, 0
    for batch in batches:
        stop = start + len(batch)
        here = np.arange(start + 1, stop + 1) if numbers is None else numbers[start:stop]
        exploded = lists.explode(batch, roles, here, reading.path)
        start = stop
        parts.append(
            pa.table(
                {
                    role: _as_ids(column, reading.path, roles[role].name) if role in reading.ids else column
                    for role, column in exploded.columns.items()
                }
            )
        )
        bad += exploded.bad
        empty += exploded.empty
        if is_numbered:
            row_numbers.append(exploded.numbers)
    if not any(map(len, parts)) and not bad:
        raise UserError(f"{reading.path} has columns but no rows: it needs one row for each interaction")
    table = pa.concat_tables(parts)
    for place, role in enumerate(table.column_names):
        if role in reading.ids:
            chunks = [_with_text(chunk) for chunk in table[role].unify_dictionaries().chunks]
            table = table.set_column(place, role, pa.chunked_array(chunks, IDS))
    reading.notes.extend(lists.notes_on_empty(empty, reading.path))
    return rows.finish(reading, table, bad, np.concatenate(row_numbers) if is_numbered else None)


def _cells(rows: list[dict[str, Any]], place: lists.Place) -> list[str]:
    """The first cells of a column that holds single numbers, texts or times; of any other none."""
    kind, is_ = place.type, pa.types
    is_plain = is_.is_integer(kind) or is_.is_floating(kind) or is_.is_temporal(kind) or is_.is_dictionary(kind)
    if not (is_plain or _is_text(kind) or is_.is_string_view(kind)):
        return []
    values = [row.get(place.column) for row in rows]
    if place.is_list:
        values = [element for value in values for element in value or []]
    if place.field is not None:
        values = [(element or {}).get(place.field) for element in values]
    return ["" if value is None else str(value) for value in values[:ROWS_LOOKED_AT]]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _as_ids(column: pa.Array, path: Path, name: str) -> pa.DictionaryArray:
    """Ids as indices into distinct values, which are text or whole numbers."""
    kind = column.type
    if pa.types.is_dictionary(kind) or pa.types.is_large_string(kind):
        return column.cast(IDS)
    if pa.types.is_floating(kind):  # what pandas makes of whole numbers when one is missing
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} has fractions in {name}: ids must be text or whole numbers") from error
    elif pa.types.is_decimal(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.string())
    elif not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
        raise UserError(f"{path} has {kind} in {name}: ids must be text or whole numbers")
    return column.dictionary_encode()


def _with_text(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """Only the distinct values are cast, which is faster than to cast the column."""
    return pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.string()))
