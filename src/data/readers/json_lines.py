"""JSON lines: one object a line, an interaction, or a history with a list of items or of events.

Arrow reads the fields that are needed, with the types that the first lines show. Where it cannot, each line is read by
itself, to say which are at fault, or because ids are now text and now numbers.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from ...errors import UserError
from ..table import TEXT, BadRow, Part, TableOptions
from . import columns, lists, parquet, rows
from .sources import Source

BLOCK = 2**23  # bytes that Arrow reads at a time
LARGEST_BLOCK = 2**31 - 1
SNIFFED = 2**20  # bytes that show the fields
LINES = 100  # of them, at most


def is_json(source: Source) -> bool:
    """Whether a text begins as JSON does."""
    assert source.content is not None
    start = bytes(source.content[:1024]).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith(b"{") or (start.startswith(b"[") and start[1:].lstrip()[:1] in (b"{", b""))


def read_json_lines(source: Source, options: TableOptions, ids: Sequence[str], notes: list[str]) -> Part:
    """Read JSON lines in UTF-8; see `src.data.readers.read_part`."""
    path, content = source.path, source.content
    assert content is not None
    if not options.has_header:
        raise UserError(f"{path} is JSON, which names its fields: give names in data.columns, not places")
    if options.history_lines:
        raise UserError(f"{path} is JSON: take data.history_lines away; fields may hold lists of items")
    objects = _first_objects(path, content)
    types = _types(objects)
    schema = pa.schema([(name, kind) for name, kind in types.items() if kind is not None])
    found = lists.places(schema)
    listed = {name for name, place in found.items() if place.is_list}
    cells = {name: _cells(objects, place) for name, place in found.items()}
    chosen = columns.choose(cells, options, ids, path, listed)
    wanted = {found[name] for name in chosen.values()}
    if len({place.column for place in wanted if place.field is not None}) > 1:
        raise UserError(f"{path} has item and time in different lists of objects: they must be in one")
    table = _parse(content, _schema_of(wanted)) if types else None
    if table is not None:
        part = parquet.from_batches(table.to_batches(), chosen, found, options, ids, path, list(found))
        part.notes[:0] = notes
        return part
    return _read_line_by_line(
        path,
        content,
        {role: found[name] for role, name in chosen.items()},
        options,
        [*notes, *columns.notes(chosen, list(found), options)],
    )


def _first_objects(path: Path, content: pa.Buffer) -> list[dict[str, Any]]:
    """What the first lines say, of those that can be read.

    Raises:
        UserError: if none is an object.
    """
    start = bytes(content[:SNIFFED])
    lines = start.split(b"\n")
    if len(start) < len(content) and len(lines) > 1:
        lines.pop()
    elif len(start) < len(content):  # a first line of megabytes
        lines = bytes(content).split(b"\n", 1)[:1]
    objects = []
    for line in filter(bytes.strip, lines[:LINES]):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            objects.append(value)
    if not objects or start.lstrip().startswith(b"["):
        name = path.name
        way = f"jq -c '.[]' {name}" if start.lstrip().startswith(b"[") else f"jq -c . {name}"
        raise UserError(f"{path} is JSON, but not one object a line: rewrite it with {way} > {path.stem}.jsonl")
    return objects


def _types(objects: list[dict[str, Any]]) -> dict[str, pa.DataType | None]:
    """Field -> its type in all objects; None where they differ."""
    values: dict[str, list[Any]] = {}
    for each in objects:
        for name, value in each.items():
            values.setdefault(name, []).append(value)
    return {name: _type_of(column) for name, column in values.items()}


def _type_of(values: list[Any]) -> pa.DataType | None:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {list}:
        inner = _type_of([element for value in values if value for element in value])
        return None if inner is None else pa.list_(inner)
    if kinds == {dict}:
        fields = {name: kind for name, kind in _types([v for v in values if v]).items() if kind is not None}
        return pa.struct(list(fields.items()))
    if kinds == {int}:
        return pa.int64() if all(-(2**63) <= value < 2**63 for value in values if value is not None) else pa.string()
    if kinds and kinds <= {int, float}:
        return pa.float64()
    if kinds == {bool}:
        return pa.bool_()
    if kinds <= {str, int, float}:
        return pa.string() if kinds else None
    known = [value for value in values if value is not None]
    return _type_of(known[:1]) if len(known) > 1 else None  # the second look names the lines that have another type


def _schema_of(wanted: set[lists.Place]) -> pa.Schema:
    """The fields that are needed, alone."""
    fields: dict[str, pa.DataType] = {}
    nested: dict[str, list[tuple[str, pa.DataType]]] = {}
    for place in sorted(wanted, key=str):
        if place.field is not None:
            nested.setdefault(place.column, []).append((place.field, place.type))
        else:
            fields[place.column] = pa.list_(place.type) if place.is_list else place.type
    return pa.schema([*fields.items(), *((name, pa.list_(pa.struct(inner))) for name, inner in nested.items())])


def _cells(objects: list[dict[str, Any]], place: lists.Place) -> list[str]:
    """The first values of a field that holds numbers or texts; of any other none."""
    if pa.types.is_nested(place.type) or pa.types.is_boolean(place.type):
        return []
    found = []
    for each in objects:
        value = each.get(place.column)
        elements = (value or []) if place.is_list else [value]
        for element in elements:
            found.append(element.get(place.field) if place.field is not None and element else element)
    return ["" if value is None else str(value) for value in found[:LINES]]


def _parse(content: pa.Buffer, schema: pa.Schema) -> pa.Table | None:
    """The fields of the schema, or None if some line does not fit."""
    block = BLOCK
    while True:
        try:
            return pyarrow.json.read_json(
                pa.BufferReader(content),
                read_options=pyarrow.json.ReadOptions(block_size=block),
                parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except pa.ArrowInvalid as error:
            if "straddl" not in str(error) or block >= min(2 * len(content), LARGEST_BLOCK):
                return None  # the second look says where
            block = min(16 * block, LARGEST_BLOCK)  # a line that is longer than two blocks
        except (pa.ArrowException, UnicodeError):
            return None


def _read_line_by_line(
    path: Path, content: pa.Buffer, chosen: Mapping[str, lists.Place], options: TableOptions, notes: list[str]
) -> Part:
    """The slow way, which takes any line apart from the others."""
    texts: dict[str, list[str]] = {role: [] for role in chosen}
    numbers: list[int] = []
    bad: list[BadRow] = []
    empty = 0
    for number, line in _numbered(content):
        try:
            values = _values(json.loads(line), chosen)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            what = str(error) if isinstance(error, _OddLineError) else "a line that is no JSON object"
            bad.append(BadRow(number, what, "fix or delete the row"))
            continue
        empty += not values
        for row in values:
            numbers.append(number)
            for role, text in zip(chosen, row, strict=True):
                texts[role].append(text)
    notes += lists.notes_on_empty(empty, path)
    columns_ = [pa.array([t.encode(errors="replace") for t in texts[role]], pa.binary()) for role in chosen]
    table = pa.table([column.dictionary_encode().cast(TEXT) for column in columns_], names=list(chosen))
    has_cells = options.list_delimiter is not None and "item" in chosen
    part = rows.finish(path, table, options, notes, bad, np.array(numbers, np.int64), True, has_cells)
    return lists.split_cells(part, options, path) if has_cells else part


class _OddLineError(ValueError):
    """A line that is an object, but lacks what is needed."""


def _numbered(content: pa.Buffer) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, numbered from 1."""
    number = 0
    for line in io.BufferedReader(pa.BufferReader(content)):
        if line.strip():
            number += 1
            yield number, line


def _values(each: Any, chosen: Mapping[str, lists.Place]) -> list[list[str]]:
    """Texts of the roles, for each interaction of a line."""
    if not isinstance(each, dict):
        raise _OddLineError("a line that is no JSON object")
    columns_: dict[str, list[Any]] = {}
    for role, place in chosen.items():
        value = each.get(place.column)
        if place.is_list:
            value = [] if value is None else value
            if not isinstance(value, list):
                raise _OddLineError(f"no list in {place.column}")
            columns_[role] = [None if e is None else e[place.field] for e in value] if place.field else value
        else:
            columns_[role] = [value]
    lengths = {len(columns_[role]) for role, place in chosen.items() if place.is_list} or {1}
    if len(lengths) > 1:
        raise _OddLineError("lists of different lengths")
    count = lengths.pop()
    full = [columns_[role] if place.is_list else columns_[role] * count for role, place in chosen.items()]
    return [[_text(value) for value in row] for row in zip(*full, strict=True)]


def _text(value: Any) -> str:
    if isinstance(value, list | dict | bool):
        raise _OddLineError(f"{json.dumps(value)[:60]} where text or a number belongs")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)
