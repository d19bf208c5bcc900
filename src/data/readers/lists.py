"""Several interactions in one row: lists of items in a column, in a cell of text, or all along a line."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...errors import UserError
from ..table import IDS, BadRow, Part, TableOptions


class Place(NamedTuple):
    """Where a column's values are.

    Attributes:
        column: of the table.
        field: of the structs in the lists of that column; None if the values are its own.
        type: of a value, of an element in a list.
        is_list: whether a row has several.
    """

    column: str
    field: str | None
    type: pa.DataType
    is_list: bool


def places(schema: pa.Schema) -> dict[str, Place]:
    """Where each name is: of columns, and of fields of structs in lists, which go first."""
    found: dict[str, Place] = {}
    nested: dict[str, Place] = {}
    for column in schema:
        is_list = _is_list(column.type)
        element = column.type.value_type if is_list else column.type
        if is_list and pa.types.is_struct(element):
            nested |= {f.name: Place(column.name, f.name, f.type, True) for f in element}
        else:
            found[column.name] = Place(column.name, None, element, is_list)
    return {**nested, **{name: place for name, place in found.items() if name not in nested}}


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


class Rows(NamedTuple):
    """One interaction a row.

    Attributes:
        columns: role -> [R] values.
        numbers: [R] int64, the row of the file that each comes from, the first being 1.
        bad: rows whose lists do not fit together.
        empty: how many rows had an empty list.
    """

    columns: dict[str, pa.Array]
    numbers: NDArray[np.int64]
    bad: list[BadRow]
    empty: int


def explode(batch: pa.RecordBatch, chosen: Mapping[str, Place], start: int, path: Path) -> Rows:
    """One row for each element of the lists; what a row has once is repeated.

    Args:
        chosen: role -> its place.
        start: rows of the file before this batch.

    Raises:
        UserError: if items are single values where users or times are lists.
    """
    numbers = np.arange(start + 1, start + len(batch) + 1)
    listed = [role for role, place in chosen.items() if place.is_list]
    if not listed:
        return Rows({role: batch[place.column] for role, place in chosen.items()}, numbers, [], 0)
    if "user" in listed or ("item" in chosen and "item" not in listed):
        raise UserError(f"{path} has lists in {listed[0]}: only item, and time and rating beside it, can be lists")
    lengths = {role: _lengths(batch[chosen[role].column]) for role in listed}
    expected = lengths["item"] if "item" in lengths else lengths[listed[0]]
    is_bad = np.zeros(len(batch), dtype=bool)
    bad: dict[int, BadRow] = {}
    for role in listed:
        for row in np.flatnonzero(lengths[role] != expected).tolist():
            what = f"{expected[row]} items and {lengths[role][row]} values of {role}"
            bad.setdefault(row, BadRow(int(numbers[row]), what, "give a list as many as the other has"))
            is_bad[row] = True
    if bad:
        keep = pa.array(~is_bad)
        batch, numbers, expected = batch.filter(keep), numbers[~is_bad], expected[~is_bad]
    parents = np.repeat(np.arange(len(batch)), expected)
    columns = {}
    for role, place in chosen.items():
        values = batch[place.column]
        if place.is_list:
            values = pc.list_flatten(values)
            values = pc.struct_field(values, place.field) if place.field is not None else values
        else:
            values = values.take(pa.array(parents))
        columns[role] = values
    return Rows(columns, numbers[parents], list(bad.values()), int((expected == 0).sum()))


def _lengths(column: pa.Array) -> NDArray[np.int64]:
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def notes_on_empty(empty: int, path: Path) -> list[str]:
    return [f"left out    {empty:,} rows with an empty list of items in {path}"] if empty else []


def split_cells(part: Part, options: TableOptions, path: Path) -> Part:
    """One row for each item in a cell.

    Brackets around a list are left out, and so are blanks and quotes around its items.
    """
    delimiter = options.list_delimiter
    assert delimiter is not None
    notes = [*part.notes]
    cells = part.ids["item"].cast(IDS).unify_dictionaries().combine_chunks()
    words, offsets = _split(cells.dictionary, delimiter)
    codes = cells.indices.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)[codes]
    if "user" in part.ids and len(codes):
        users = part.ids["user"].unify_dictionaries().combine_chunks().indices.to_numpy().astype(np.int64)
        pairs = users * len(cells.dictionary) + codes
        is_first = np.zeros(len(pairs), dtype=bool)
        is_first[np.unique(pairs, return_index=True)[1]] = True
        is_repeat = ~is_first & (lengths > 0)
        if is_repeat.any():
            which = f"{is_repeat.sum():,} rows that repeat a user's list of items in {path}"
            if options.deduplicate:
                notes.append(f"left out    {which} (data.deduplicate=true)")
                part = Part(part.ids, part.times, part.ratings, notes).take(~is_repeat)
                codes, lengths = codes[~is_repeat], lengths[~is_repeat]
            else:
                notes.append(f"warning: {which} count again (data.deduplicate=true leaves them out)")
    notes += notes_on_empty(int((lengths == 0).sum()), path)
    if not lengths.any():
        raise UserError(f"{path} has no item in any list: change data.list_delimiter={delimiter!r}, or the column")
    rows = np.repeat(np.arange(len(codes)), lengths)
    places = np.arange(len(rows)) + np.repeat(offsets[codes] - (lengths.cumsum() - lengths), lengths)
    taken = Part({r: column for r, column in part.ids.items() if r != "item"}, part.times, part.ratings, notes)
    taken = taken.take(rows)
    items = pa.DictionaryArray.from_arrays(words.indices.take(pa.array(places)), words.dictionary)
    return Part({**taken.ids, "item": pa.chunked_array([items])}, taken.times, taken.ratings, notes)


def _split(cells: pa.StringArray, delimiter: str) -> tuple[pa.DictionaryArray, NDArray[np.int64]]:
    """Items of distinct cells, one after the other, and where those of each cell stand. [S] strings, [C + 1] int64."""
    bare = pc.replace_substring_regex(pc.utf8_trim_whitespace(cells), r"^[\[(](.*)[\])]$", r"\1")
    if delimiter.isspace() and delimiter != "\t":
        split = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(bare))
    else:
        split = pc.split_pattern(bare, delimiter)
    words = pc.replace_substring_regex(pc.utf8_trim_whitespace(split.flatten()), r"""^(['"])(.*)['"]$""", r"\2")
    parents = pc.list_parent_indices(split).to_numpy()
    is_item = pc.not_equal(words, "").to_numpy(zero_copy_only=False)
    counts = np.bincount(parents[is_item], minlength=len(cells))
    words = words.filter(pa.array(is_item)).dictionary_encode()
    return words, np.concatenate([[0], counts.cumsum()])


def user_and_items(lines: pa.ChunkedArray, delimiter: str) -> pa.Table:
    """Lines as columns of users and of cells with all items."""
    bare = pc.utf8_trim_whitespace(lines)
    if delimiter.isspace() and delimiter != "\t":
        pair = pc.utf8_split_whitespace(bare, max_splits=1)
    else:
        pair = pc.split_pattern(bare, delimiter, max_splits=1)
    users = pc.utf8_trim_whitespace(pc.list_element(pair, 0))
    has_items = pc.greater(pc.list_value_length(pair), 1)
    padded = pc.list_flatten(pc.list_slice(pair, 1, 2, return_fixed_size_list=True))
    items = pc.if_else(has_items, pc.fill_null(padded, ""), "")
    return pa.table({"user": users.dictionary_encode(), "item": items.dictionary_encode()})
