"""Several interactions in one row: lists of items in a column, in a cell of text, or all along a line."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...errors import UserError
from ..sequences import stretches
from ..table import BadRow, Part, Reading


class Place(NamedTuple):
    """Where a column's values are."""

    column: str  # of the table
    field: str | None  # of the structs in the lists of that column; None if the values are its own
    type: pa.DataType  # of a value, of an element in a list
    is_list: bool  # whether a row has several

    @property
    def name(self) -> str:
        return self.column if self.field is None else self.field


def places(schema: pa.Schema) -> dict[str, Place]:
    """Where each name is: of columns, and of fields of structs in lists, which go first."""
    found: list[Place] = []
    for column in schema:
        kind = column.type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        element = kind.value_type if is_list else kind
        if is_list and pa.types.is_struct(element):
            found += [Place(column.name, field.name, field.type, True) for field in element]
        else:
            found.append(Place(column.name, None, element, is_list))
    known: dict[str, Place] = {}
    for place in sorted(found, key=lambda place: place.field is None):
        known.setdefault(place.name, place)
    return known


class Rows(NamedTuple):
    """One interaction a row."""

    columns: dict[str, pa.Array]  # role -> [R] values
    numbers: NDArray[np.int64]  # [R], the row of the file that each comes from, the first being 1
    bad: list[BadRow]  # rows whose lists do not fit together
    empty: int  # how many rows had an empty list


def explode(batch: pa.RecordBatch, chosen: Mapping[str, Place], numbers: NDArray[np.int64], path: Path) -> Rows:
    """One row for each element of the lists; what a row has once is repeated.

    Raises:
        UserError: if items are single values where users or times are lists.
    """
    listed = [role for role, place in chosen.items() if place.is_list]
    if not listed:
        return Rows({role: batch[place.column] for role, place in chosen.items()}, numbers, [], 0)
    if "user" in listed or ("item" in chosen and "item" not in listed):
        raise UserError(f"{path} has lists in {listed[0]}: only item, and time and rating beside it, can be lists")
    lengths = {role: pc.fill_null(pc.list_value_length(batch[chosen[role].column]), 0).to_numpy() for role in listed}
    expected = lengths["item" if "item" in lengths else listed[0]]
    bad: dict[int, BadRow] = {}
    for role in listed:
        for row in np.flatnonzero(lengths[role] != expected).tolist():
            what = f"{expected[row]} items and {lengths[role][row]} values of {role}"
            bad.setdefault(row, BadRow(int(numbers[row]), what, "give a list as many as the other has"))
    if bad:
        is_good = np.ones(len(batch), dtype=bool)
        is_good[list(bad)] = False
        batch, numbers, expected = batch.filter(pa.array(is_good)), numbers[is_good], expected[is_good]
    parents = np.repeat(np.arange(len(batch)), expected)
    columns = {}
    for role, place in chosen.items():
        values = batch[place.column]
        values = pc.list_flatten(values) if place.is_list else values.take(pa.array(parents))
        columns[role] = pc.struct_field(values, place.field) if place.field is not None else values
    return Rows(columns, numbers[parents], list(bad.values()), int((expected == 0).sum()))


def notes_on_empty(empty: int, path: Path) -> list[str]:
    return [f"left out    {empty:,} rows with an empty list of items in {path}"] if empty else []


def split_cells(part: Part, reading: Reading) -> Part:
    """One row for each item in a cell.

    Brackets around a list are left out, and so are blanks and quotes around its items.
    """
    delimiter = reading.options.list_delimiter
    assert delimiter is not None
    cells = part.ids["item"].unify_dictionaries().combine_chunks()
    words, offsets = _split(cells.dictionary, delimiter)
    codes = cells.indices.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)[codes]
    if "user" in part.ids and len(codes):
        users = part.ids["user"].unify_dictionaries().combine_chunks().indices.to_numpy().astype(np.int64)
        is_repeat = lengths > 0
        is_repeat[np.unique(users * len(cells.dictionary) + codes, return_index=True)[1]] = False
        if is_repeat.any():
            which = f"{is_repeat.sum():,} rows that repeat a user's list of items in {reading.path}"
            if reading.options.deduplicate:
                part.notes.append(f"left out    {which} (data.deduplicate=true)")
                part, codes, lengths = part.take(~is_repeat), codes[~is_repeat], lengths[~is_repeat]
            else:
                part.notes.append(f"warning: {which} count again (data.deduplicate=true leaves them out)")
    part.notes.extend(notes_on_empty(int((lengths == 0).sum()), reading.path))
    if not lengths.any():
        raise UserError(
            f"{reading.path} has no item in any list: change data.list_delimiter={delimiter!r}, or the column"
        )
    rows, places = stretches(offsets[codes], lengths)
    items = pa.DictionaryArray.from_arrays(words.indices.take(pa.array(places)), words.dictionary)
    others = {role: column for role, column in part.ids.items() if role != "item"}
    taken = replace(part, ids=others).take(rows)
    return replace(taken, ids={**taken.ids, "item": pa.chunked_array([items])})


def _split(cells: pa.StringArray, delimiter: str) -> tuple[pa.DictionaryArray, NDArray[np.int64]]:
    """Items of distinct cells, one after the other, and where those of each cell stand. [S] strings, [C + 1] int64."""
    bare = pc.replace_substring_regex(pc.utf8_trim_whitespace(cells), r"^[\[(](.*)[\])]$", r"\1")
    split = _split_at(pc.utf8_trim_whitespace(bare), delimiter)
    words = pc.replace_substring_regex(pc.utf8_trim_whitespace(split.flatten()), r"""^(['"])(.*)['"]$""", r"\2")
    parents = pc.list_parent_indices(split).to_numpy()
    is_item = pc.not_equal(words, "").to_numpy(zero_copy_only=False)
    counts = np.bincount(parents[is_item], minlength=len(cells))
    words = words.filter(pa.array(is_item)).dictionary_encode()
    return words, np.concatenate([[0], counts.cumsum()])


def _split_at(texts: pa.StringArray, delimiter: str, most: int | None = None) -> pa.ListArray:
    """Texts cut at the delimiter, at most so many times; a blank stands for any white space."""
    if delimiter.isspace() and delimiter != "\t":
        return pc.utf8_split_whitespace(texts, max_splits=most)
    return pc.split_pattern(texts, delimiter, max_splits=most)


def user_and_items(lines: pa.ChunkedArray, delimiter: str) -> pa.Table:
    """Lines as columns of users and of cells with all items."""
    pair = _split_at(pc.utf8_trim_whitespace(lines), delimiter, most=1)
    users = pc.utf8_trim_whitespace(pc.list_element(pair, 0))
    padded = pc.list_flatten(pc.list_slice(pair, 1, 2, return_fixed_size_list=True))
    return pa.table({"user": users.dictionary_encode(), "item": pc.fill_null(padded, "").dictionary_encode()})
