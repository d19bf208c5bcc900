"""Where a text has what: the delimiter, whether there is a header line, and the columns."""

import csv
import re
from dataclasses import dataclass

import pyarrow as pa

from ...errors import UserError
from ..table import Reading
from . import columns

DELIMITERS = ("\t", "::", ",", ";", "|", " ")
SNIFFED = 2**16  # bytes that show the delimiter and the header
LINES = 100  # of them, at most


@dataclass(frozen=True)
class Layout:
    """Where a text has what."""

    columns: dict[str, str]  # role -> name in the header, or f0, f1, ... without one
    delimiter: str  # one letter or several
    has_header: bool  # whether the first line names the columns


def find_layout(reading: Reading) -> Layout:
    """Look at the first lines.

    Raises:
        UserError: if a column is missing, or the lines do not fit the settings.
    """
    path, options = reading.path, reading.options
    lines = first_lines(reading.content)
    if not lines:
        raise UserError(f"{path} is empty: it must begin with the line user,item,time")
    delimiters = DELIMITERS if options.delimiter is None else (options.delimiter,)
    fields = {delimiter: [split(line, delimiter, options.quotes) for line in lines] for delimiter in delimiters}
    if not options.has_header:
        return _of_places(fields, reading)

    def fitness(delimiter: str) -> tuple[int, float, int]:
        header = fields[delimiter][0]
        recognised = sum(bool(columns.find(header, role, options)) for role in reading.ids)
        return recognised, _consistency(fields[delimiter]), len(header)

    delimiter = max(delimiters, key=fitness)
    header, rows = fields[delimiter][0], fields[delimiter][1:]
    first = repr(lines[0][:60])
    if not fitness(delimiter)[0] and any(_are_history_lines(rows) for rows in fields.values()):
        raise UserError(
            f"{path} has no header line and lines of different lengths, such as {first}: if each is a user and the"
            " items of the history, set data.history_lines=true"
        )
    if not fitness(delimiter)[0] and options.names_nothing and (pasted := columns.places(fields[delimiter])):
        raise UserError(
            f"{path} has no header line, its first line is {first}: give the places of the columns, such as {pasted}"
        )
    if options.delimiter is not None and len(header) == 1:
        raise UserError(f"{path} has no {options.delimiter!r} in its first line, {first}: change data.delimiter")
    whole = [row for row in rows if len(row) == len(header)]
    # Of columns with one name, the first.
    cells = {name: [row[header.index(name)] for row in whole] for name in header}
    chosen = columns.choose(cells, header, reading)
    columns.tell_of_lists(cells.get(chosen.get("item", ""), []), reading)
    return Layout(chosen, delimiter, has_header=True)


def first_lines(content: pa.Buffer) -> list[str]:
    """Lines that are not empty, `LINES` at most and none that is cut off."""
    start = bytes(content[:SNIFFED])
    lines = start.decode("utf-8", errors="replace").splitlines()
    if len(start) < len(content) and len(lines) > 1:
        lines.pop()
    return [line for line in lines if line][:LINES]


def split(line: str, delimiter: str, has_quotes: bool = True) -> list[str]:
    """The fields of one line."""
    if len(delimiter) > 1 or not has_quotes:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])


def _consistency(rows: list[list[str]]) -> float:
    """Share of the lines that have as many fields as the first; 0 if that is one."""
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows) if len(rows[0]) > 1 else 0.0


def _are_history_lines(rows: list[list[str]]) -> bool:
    """Whether lines are ids, of different numbers and more than one in each."""
    rows = [[cell for cell in row if cell] for row in rows]
    lengths = {len(row) for row in rows}
    are_ids = all(re.fullmatch(r"\w*\d+\w*", cell) for row in rows[:20] for cell in row)
    return len(lengths) > 1 and min(lengths) > 1 and are_ids


def _of_places(fields: dict[str, list[list[str]]], reading: Reading) -> Layout:
    """The layout of a text without a header line: most of its lines have the last place that is asked for."""
    path = reading.path
    places = {role: place for role in reading.roles if (place := getattr(reading.options, role))}
    last = max(places.values())
    fitting = {delimiter: sum(len(line) >= last for line in lines) for delimiter, lines in fields.items()}
    delimiter = max(fitting, key=lambda each: (fitting[each], _consistency(fields[each])))
    if not fitting[delimiter]:
        widest = max(len(lines[0]) for lines in fields.values())
        role = max(places, key=places.__getitem__)
        raise UserError(
            f"{path} has {widest} columns, but data.columns.{role}={last} asks for another one: the first is 1; say"
            " what is between them with data.delimiter"
        )
    if len(set(places.values())) < len(places):
        raise UserError(f"{path}: data.columns gives two of {', '.join(places)} the same place")
    rows = [row for row in fields[delimiter] if len(row) >= last]
    cells = {str(place): column for place, column in enumerate(zip(*rows, strict=False), 1)}
    chosen = {role: cells[str(place)] for role, place in places.items()}
    first = {role: column[0] for role, column in chosen.items()}
    known = {name for names in columns.KNOWN_NAMES.values() for name in names}
    if all(columns.simplified(name) in known for name in first.values()):  # it would be read as an interaction
        named = " ".join(f"data.columns.{role}={name.strip()}" for role, name in first.items())
        raise UserError(f"{path} begins with a header line, so that columns have names, not places: set {named}")
    if "time" not in places and "time" in reading.roles:
        others = {place: column for place, column in cells.items() if int(place) not in places.values()}
        columns.require_no_times(path, others, "place")
    others_have_digits = [_has_digit(cell) for column in chosen.values() for cell in column[1:]]
    if others_have_digits and all(others_have_digits) and not any(map(_has_digit, first.values())):
        reading.notes.append(
            f"warning: the first line ({', '.join(first.values())}) is read as a row, since data.columns gives places;"
            " if it is a header line, give names"
        )
    columns.tell_of_lists(chosen.get("item", ()), reading)
    return Layout({role: f"f{place - 1}" for role, place in places.items()}, delimiter, has_header=False)


def _has_digit(cell: str) -> bool:
    return any(letter.isdigit() for letter in cell)
