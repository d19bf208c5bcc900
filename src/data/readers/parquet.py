"""Parquet files, read piece by piece."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from ...errors import UserError
from ..table import IDS, Part, TableOptions, one_line
from . import columns, lists, rows
from .sources import Source

ROWS_AT_A_TIME = 2**20
ROWS_LOOKED_AT = 100


def read_parquet(source: Source, options: TableOptions, ids: Sequence[str]) -> Part:
    """Read a Parquet file; see `src.data.readers.read_part`."""
    path = source.path
    if not options.has_header:
        raise UserError(f"{path} is Parquet, which names its columns: give names in data.columns, not places")
    if options.history_lines:
        raise UserError(f"{path} is Parquet, which has no lines: take data.history_lines away; columns may hold lists")
    file_or_path = str(path) if source.content is None else source.content
    try:
        with pyarrow.parquet.ParquetFile(file_or_path) as file:
            found = lists.places(file.schema_arrow)
            listed = {name for name, place in found.items() if place.is_list}
            names = _require_one_each(path, file.schema_arrow.names, options, ids)
            head = next(file.iter_batches(ROWS_LOOKED_AT), None)
            cells = {name: _cells(head, place) for name, place in found.items()}
            chosen = columns.choose(cells, options, ids, path, listed)
            text = [found[chosen[role]].column for role in ids if _is_plain_text(found[chosen[role]])]
        wanted = list(dict.fromkeys(found[name].column for name in chosen.values()))
        with pyarrow.parquet.ParquetFile(file_or_path, read_dictionary=text) as file:
            return from_batches(
                file.iter_batches(ROWS_AT_A_TIME, columns=wanted), chosen, found, options, ids, path, names
            )
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet, it is damaged or cut short: {one_line(error)}") from error


def from_batches(
    batches: Any,
    chosen: dict[str, str],
    found: dict[str, lists.Place],
    options: TableOptions,
    ids: Sequence[str],
    path: Path,
    names: list[str],
) -> Part:
    """What batches of typed columns hold.

    Args:
        batches: of the columns that `chosen` needs.
        chosen: role -> name of the column.
        found: name -> its place.
        names: all columns there are, for messages.
    """
    roles = {role: found[name] for role, name in chosen.items()}
    is_listed = any(place.is_list for place in roles.values())
    parts, numbers, bad, empty, start = [], [], [], 0, 0
    for batch in batches:
        exploded = lists.explode(batch, roles, start, path)
        start += len(batch)
        values = [
            _as_ids(column, path, chosen[role]) if role in ids else column for role, column in exploded.columns.items()
        ]
        parts.append(pa.RecordBatch.from_arrays(values, names=list(roles)))
        numbers.append(exploded.numbers)
        bad += exploded.bad
        empty += exploded.empty
    if sum(len(part) for part in parts) == 0 and not bad:
        raise UserError(f"{path} has columns but no rows: it needs one row for each interaction")
    table = pa.Table.from_batches(parts)
    for role in ids:
        column = table[role].unify_dictionaries()
        if column.type != IDS:
            column = pa.chunked_array([_with_text(chunk) for chunk in column.chunks], IDS)
        table = table.set_column(table.column_names.index(role), role, column)
    notes = [*columns.notes(chosen, names, options), *lists.notes_on_empty(empty, path)]
    row_numbers: NDArray[np.int64] | None = np.concatenate(numbers) if is_listed else None
    has_cells = options.list_delimiter is not None and "item" in ids
    is_clean = rows.is_clean(table, options, has_cells)
    if not is_clean:
        table = pa.table([rows.as_text(column) for column in table.columns], names=table.column_names)
    part = rows.finish(path, table, options, notes, bad, row_numbers, not is_clean, has_cells)
    return lists.split_cells(part, options, path) if has_cells else part


def _require_one_each(path: Path, names: list[str], options: TableOptions, ids: Sequence[str]) -> list[str]:
    for role in columns.roles_of(options, ids):
        for name in columns.find(names, role, options)[:1]:
            if names.count(name) > 1:
                raise UserError(f"{path} has the column {name} more than once: keep one of them")
    return names


def _cells(batch: pa.RecordBatch | None, place: lists.Place) -> list[str]:
    """The first cells of a column that holds single numbers, texts or times; of any other none."""
    kind = place.type
    is_plain = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_temporal(kind)
        or is_text(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_dictionary(kind)
    )
    if batch is None or not is_plain:
        return []
    column = batch[place.column]
    if place.is_list:
        column = column.flatten()
        column = column.field(place.field) if place.field is not None else column
    return ["" if cell is None else str(cell) for cell in column[:ROWS_LOOKED_AT].to_pylist()]


def _is_plain_text(place: lists.Place) -> bool:
    return is_text(place.type) and not place.is_list


def is_text(kind: pa.DataType) -> bool:
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
    elif not (pa.types.is_integer(kind) or is_text(kind)):
        raise UserError(f"{path} has {kind} in {name}: ids must be text or whole numbers")
    return column.dictionary_encode() if not pa.types.is_large_string(column.type) else column.cast(IDS)


def _with_text(column: pa.DictionaryArray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.string()))
