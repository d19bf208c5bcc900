"""JSON lines: one object a line, an interaction, or a history with a list of items or of events.

Arrow reads the fields that are needed, with the types that the first lines show. Where it cannot, each line is read by
itself, to say which are at fault, or because ids are now text and now numbers.
"""

import io
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from ...errors import UserError
from ..table import BadRow, Part, Reading
from . import lists
from .delimited import BLOCK, in_blocks
from .parquet import choose_places, from_batches

SNIFFED = 2**20  # bytes that show the fields
LINES = 100  # of them, at most


def is_json(content: pa.Buffer) -> bool:
    """Whether a text begins as JSON does."""
    start = bytes(content[:1024]).lstrip()
    return start.startswith(b"{") or (start.startswith(b"[") and start[1:].lstrip()[:1] in (b"{", b""))


def read_json_lines(reading: Reading) -> Part:
    """Read JSON lines in UTF-8; see `src.data.readers.read_part`."""
    path, content, options = reading.path, reading.content, reading.options
    if not options.has_header:
        raise UserError(f"{path} is JSON, which names its fields: give names in data.columns, not places")
    if options.history_lines:
        raise UserError(f"{path} is JSON: take data.history_lines away; fields may hold lists of items")
    objects = _first_objects(path, content)
    found = lists.places(pa.schema(list(_types(objects).items())))
    roles = choose_places(found, objects, list(found), reading)
    wanted = sorted(set(roles.values()), key=str)
    if len({place.column for place in wanted if place.field is not None}) > 1:
        raise UserError(f"{path} has item and time in different lists of objects: they must be in one")
    try:
        table = in_blocks(partial(_parse, content, _schema_of(wanted)), BLOCK, len(content))
    except (pa.ArrowException, UnicodeError):
        return _read_line_by_line(wanted, roles, reading)
    return from_batches(table.to_batches(), roles, reading)


def _first_objects(path: Path, content: pa.Buffer) -> list[dict[str, Any]]:
    """What the first lines say, of those that can be read; refused if none is an object."""
    start = bytes(content[:SNIFFED])
    lines = start.split(b"\n")
    if len(start) < len(content):  # the last line is cut off, unless it is the first, of megabytes
        lines = lines[:-1] or bytes(content).split(b"\n", 1)[:1]
    objects = []
    for line in filter(bytes.strip, lines[:LINES]):
        with suppress(ValueError):
            objects.append(json.loads(line))
    objects = [each for each in objects if isinstance(each, dict)]
    is_array = start.lstrip().startswith(b"[")
    if not objects or is_array:
        way = ("jq -c '.[]'" if is_array else "jq -c .") + f" {path.name} > {path.stem}.jsonl"
        raise UserError(f"{path} is JSON, but not one object a line: rewrite it with {way}")
    return objects


def _types(objects: list[dict[str, Any]]) -> dict[str, pa.DataType]:
    """Field -> its type in all objects; without those that have no value."""
    names = dict.fromkeys(name for each in objects for name in each)
    types = {name: _type_of([each[name] for each in objects if name in each]) for name in names}
    return {name: kind for name, kind in types.items() if kind is not None}


def _type_of(values: list[Any]) -> pa.DataType | None:
    """The type of a field. Numbers and texts together are text; else the first has it, and others are bad rows."""
    known = [value for value in values if value is not None]
    kinds = {type(value) for value in known}
    if kinds == {list}:
        inner = _type_of([element for value in known for element in value])
        return None if inner is None else pa.list_(inner)
    if kinds == {dict}:
        return pa.struct(list(_types(known).items()))
    try:
        return pa.array(known).type if known else None
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError):
        return pa.string() if kinds <= {str, int, float} else _type_of(known[:1])


def _schema_of(wanted: list[lists.Place]) -> pa.Schema:
    """The fields that are needed, alone."""
    fields: dict[str, pa.DataType] = {}
    nested: dict[str, list[tuple[str, pa.DataType]]] = {}
    for place in wanted:
        if place.field is not None:
            nested.setdefault(place.column, []).append((place.field, place.type))
        else:
            fields[place.column] = pa.list_(place.type) if place.is_list else place.type
    return pa.schema([*fields.items(), *((name, pa.list_(pa.struct(inner))) for name, inner in nested.items())])


def _parse(content: pa.Buffer, schema: pa.Schema, block: int) -> pa.Table:
    """The fields of the schema."""
    return pyarrow.json.read_json(
        pa.BufferReader(content),
        read_options=pyarrow.json.ReadOptions(block_size=block),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )


def _read_line_by_line(wanted: list[lists.Place], roles: dict[str, lists.Place], reading: Reading) -> Part:
    """The slow way, which takes any line apart from the others."""
    as_text = [place._replace(type=pa.string()) for place in wanted]
    objects: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    for number, line in enumerate(filter(bytes.strip, io.BufferedReader(pa.BufferReader(reading.content))), 1):
        try:
            objects.append(_texts(json.loads(line), wanted))
            numbers.append(number)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            what = str(error) if isinstance(error, _OddLineError) else "a line that is no JSON object"
            bad.append(BadRow(number, what, "fix or delete the row"))
    batch = pa.RecordBatch.from_pylist(objects, schema=_schema_of(as_text))
    return from_batches([batch], roles, reading, bad, np.array(numbers, np.int64))


class _OddLineError(ValueError):
    """A line that is an object, but lacks what is needed."""


def _texts(each: Any, wanted: list[lists.Place]) -> dict[str, Any]:
    """The fields of one line that are needed, with texts for values."""
    if not isinstance(each, dict):
        raise _OddLineError("a line that is no JSON object")
    texts: dict[str, Any] = {}
    for place in wanted:
        value = each.get(place.column)
        if not place.is_list:
            texts[place.column] = _text(value)
            continue
        if not isinstance(value, list | None):
            raise _OddLineError(f"no list in {place.column}")
        if place.field is None:
            texts[place.column] = [_text(element) for element in value or []]
            continue
        for text, element in zip(texts.setdefault(place.column, [{} for _ in value or []]), value or [], strict=True):
            text[place.field] = _text((element or {}).get(place.field))
    return texts


def _text(value: Any) -> str:
    if isinstance(value, list | dict | bool):
        raise _OddLineError(f"{json.dumps(value)[:60]} where text or a number belongs")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).encode(errors="replace").decode()
