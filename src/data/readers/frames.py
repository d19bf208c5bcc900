"""A table in memory, as pandas, polars, pyarrow, DuckDB and others have it."""

from typing import Any

import pyarrow as pa

from ...errors import UserError
from ..table import Frame, Part, Reading, TableOptions, one_line
from . import lists
from .parquet import ROWS_AT_A_TIME, ROWS_LOOKED_AT, choose_places, from_batches


def as_frame(frame: Any) -> Frame:
    """Take over what hands out Arrow data by the PyCapsule interface, `__arrow_c_stream__`; most of it is not copied.

    Raises:
        UserError: if it does not, or one of its columns has no type in Arrow.
    """
    if not hasattr(frame, "__arrow_c_stream__"):
        kind = f"{type(frame).__module__}.{type(frame).__name__}".removeprefix("builtins.")
        raise UserError(f"{kind} is no frame: give one of pandas or polars, or a pyarrow table")
    try:
        return Frame(pa.table(frame))
    except (pa.ArrowException, ValueError, TypeError) as error:  # ValueError: a name that two columns have
        raise UserError(
            f"the frame cannot be read as Arrow: {one_line(error)}; give the columns of users, items and times alone,"
            " ids as text or whole numbers throughout"
        ) from error


def read_frame(frame: Frame, options: TableOptions) -> Part:
    """Read a frame as `read_parquet` reads a file with the same columns."""
    if not options.has_header:
        raise UserError(f"{frame} names its columns: give names in data.columns, not places")
    if options.history_lines:
        raise UserError(f"{frame} has no lines: take data.history_lines away; columns may hold lists")
    table = frame.content
    reading = Reading(frame.path, None, options, ("user", "item"))
    try:
        first_rows = table.slice(0, ROWS_LOOKED_AT).to_pylist()
        roles = choose_places(lists.places(table.schema), first_rows, table.schema.names, reading)
        table = table.select(list(dict.fromkeys(place.column for place in roles.values())))
        for place, column in enumerate(table.columns):
            table = table.set_column(place, table.schema.names[place], _plain(column))
        known = lists.places(table.schema)
        roles = {role: known[place.name] for role, place in roles.items()}
        return from_batches(table.to_batches(ROWS_AT_A_TIME), roles, reading)
    except pa.ArrowException as error:
        raise UserError(f"{frame} cannot be read: {one_line(error)}; give ids as text or whole numbers") from error


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Categories as values, and text in a type that Arrow can compute with: polars has neither."""
    if not pa.types.is_dictionary(column.type):
        kind = _plain_type(column.type)
        return column if kind == column.type else column.cast(kind)
    kind = _plain_type(column.type.value_type)
    chunks = [chunk.dictionary.cast(kind).take(chunk.indices) for chunk in column.chunks]
    return pa.chunked_array(chunks, kind)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without views of text, also within lists."""
    is_ = pa.types
    if is_.is_string_view(kind):
        return pa.large_string()
    if is_.is_list(kind) or is_.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    if is_.is_struct(kind):
        return pa.struct([(field.name, _plain_type(field.type)) for field in kind])
    return kind
