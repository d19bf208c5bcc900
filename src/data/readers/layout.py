"""Where a text has what: the delimiter, whether there is a header line, and the columns."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import UserError
from ..table import TableOptions
from . import columns
from .sources import Source

DELIMITERS = ("\t", "::", ",", ";", "|", " ")
SNIFFED = 2**16  # bytes that show the delimiter and the header
LINES = 100  # of them, at most


@dataclass(frozen=True)
class Layout:
    """Where a text has what.

    Attributes:
        columns: role -> name in the header, or f0, f1, ... without one.
        delimiter: one letter or several.
        has_header: whether the first line names the columns.
        notes: what the person should know about it.
    """

    columns: dict[str, str]
    delimiter: str
    has_header: bool
    notes: list[str] = field(default_factory=list)


def find_layout(source: Source, options: TableOptions, ids: Sequence[str]) -> Layout:
    """Look at the first lines.

    Raises:
        UserError: if a column is missing, or the lines do not fit the settings.
    """
    path = source.path
    lines = first_lines(source)
    if not lines:
        raise UserError(f"{path} is empty: it must begin with the line user,item,time")
    delimiters = DELIMITERS if options.delimiter is None else (options.delimiter,)
    fields = {delimiter: [split(line, delimiter, options) for line in lines] for delimiter in delimiters}
    if not options.has_header:
        places = {role: getattr(options, role) for role in columns.roles_of(options, ids)}
        return _of_places(path, {role: place for role, place in places.items() if place}, fields, options, ids)

    def fitness(delimiter: str) -> tuple[int, float, int]:
        header = fields[delimiter][0]
        recognised = sum(bool(columns.find(header, role, options)) for role in ids)
        return recognised, _consistency(fields[delimiter]), len(header)

    delimiter = max(delimiters, key=fitness)
    header, rows = fields[delimiter][0], fields[delimiter][1:]
    if not fitness(delimiter)[0] and _are_history_lines(fields):
        raise UserError(
            f"{path} has no header line and lines of different lengths, such as {lines[0][:60]!r}: if each is a user"
            " and the items of the history, set data.history_lines=true"
        )
    if not fitness(delimiter)[0] and options.names_nothing and (pasted := columns.places(fields[delimiter])):
        raise UserError(
            f"{path} has no header line, its first line is {lines[0][:60]!r}: give the places of the columns, such as"
            f" {pasted}"
        )
    if options.delimiter is not None and len(header) == 1:
        raise UserError(
            f"{path} has no {options.delimiter!r} in its first line, {lines[0][:60]!r}: change data.delimiter"
        )
    cells = _by_column(header, rows)
    _require_one_each(path, header, options, ids)
    chosen = columns.choose(cells, options, ids, path)
    notes = columns.notes(chosen, header, options)
    notes += columns.note_on_lists(path, cells.get(chosen.get("item", ""), []), options)
    return Layout(chosen, delimiter, has_header=True, notes=notes)


def first_lines(source: Source) -> list[str]:
    """Lines that are not empty, `LINES` at most and none that is cut off."""
    assert source.content is not None
    start = bytes(source.content[:SNIFFED])
    lines = start.decode("utf-8", errors="replace").removeprefix("\ufeff").splitlines()
    if len(start) < len(source.content) and len(lines) > 1:
        lines.pop()
    return [line for line in lines if line][:LINES]


def split(line: str, delimiter: str, options: TableOptions) -> list[str]:
    """The fields of one line."""
    if len(delimiter) > 1 or not options.quotes:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])


def _consistency(rows: list[list[str]]) -> float:
    """Share of the lines that have as many fields as the first; 0 if that is one."""
    return sum(len(row) == len(rows[0]) for row in rows) / len(rows) if len(rows[0]) > 1 else 0.0


def _are_history_lines(fields: Mapping[str, list[list[str]]]) -> bool:
    """Whether most lines are ids of different numbers with the same delimiter between them."""
    for rows in fields.values():
        rows = [[cell for cell in row if cell] for row in rows]
        lengths = {len(row) for row in rows}
        are_ids = all(re.fullmatch(r"\w*\d+\w*", cell) for row in rows[:20] for cell in row)
        if len(lengths) > 1 and min(lengths) > 1 and are_ids:
            return True
    return False


def _by_column(header: Sequence[str], rows: list[list[str]]) -> dict[str, list[str]]:
    """Cells of each column, of the rows that have all; of columns with one name, those of the first."""
    whole = [row for row in rows if len(row) == len(header)]
    cells: dict[str, list[str]] = {}
    for place, name in enumerate(header):
        cells.setdefault(name, [row[place] for row in whole])
    return cells


def _require_one_each(path: Path, header: list[str], options: TableOptions, ids: Sequence[str]) -> None:
    for role in columns.roles_of(options, ids):
        for name in columns.find(header, role, options)[:1]:
            if header.count(name) > 1:
                raise UserError(f"{path} has the column {name} more than once: keep one of them")


def _of_places(
    path: Path,
    places: dict[str, int],
    fields: dict[str, list[list[str]]],
    options: TableOptions,
    ids: Sequence[str],
) -> Layout:
    """The layout of a text without a header line: most of its lines have the last place that is asked for."""
    last = max(places.values())
    fitting = {delimiter: sum(len(line) >= last for line in lines) for delimiter, lines in fields.items()}
    delimiter = max(fitting, key=lambda each: (fitting[each], _consistency(fields[each])))
    if not fitting[delimiter]:
        widest = max(fields, key=lambda each: len(fields[each][0]))
        role = max(places, key=places.__getitem__)
        raise UserError(
            f"{path} has {len(fields[widest][0])} columns, but data.columns.{role}={last} asks for another one:"
            " the first is 1; say what is between them with data.delimiter"
        )
    names = {role: f"f{place - 1}" for role, place in places.items()}
    if len(set(names.values())) < len(names):
        raise UserError(f"{path}: data.columns gives two of {', '.join(names)} the same place")
    rows = [row for row in fields[delimiter] if len(row) >= last]
    first = {role: rows[0][place - 1] for role, place in places.items()}
    _require_no_header(path, first)
    if "time" not in places and "time" in columns.roles_of(options, ids):
        width = min(len(row) for row in rows)
        others = {str(n): [row[n - 1] for row in rows] for n in range(1, width + 1) if n not in places.values()}
        columns.require_no_times(path, others, places=True)
    notes = _odd_first_row(rows, places, first)
    if "item" in places:
        notes += columns.note_on_lists(path, [row[places["item"] - 1] for row in rows], options)
    return Layout(names, delimiter, has_header=False, notes=notes)


def _require_no_header(path: Path, first: dict[str, str]) -> None:
    """Refuse places where the first line is a header: it would be read as an interaction."""
    known = {name for names in columns.KNOWN_NAMES.values() for name in names}
    if all(columns.simplified(name) in known for name in first.values()):
        named = " ".join(f"data.columns.{role}={name.strip()}" for role, name in first.items())
        raise UserError(f"{path} begins with a header line, so that columns have names, not places: set {named}")


def _odd_first_row(rows: list[list[str]], places: dict[str, int], first: dict[str, str]) -> list[str]:
    """A warning if the first row alone has text where all others have numbers."""
    others = [row[place - 1] for row in rows[1:] for place in places.values()]
    has_digits = [any(letter.isdigit() for letter in cell) for cell in others]
    if others and all(has_digits) and not any(letter.isdigit() for cell in first.values() for letter in cell):
        return [
            f"warning: the first line ({', '.join(first.values())}) is read as a row, since data.columns gives places;"
            " if it is a header line, give names"
        ]
    return []
