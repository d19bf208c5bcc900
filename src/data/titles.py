"""Titles of items, for people to read."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from ..errors import UserError
from . import id_forms
from .readers import columns, layout, sources
from .readers.delimited import parse
from .table import TableOptions, one_line

# As `columns.simplified` has them; the first that is there is taken.
TITLE_NAMES = ["title", "name", "itemname", "movietitle", "moviename", "itemtitle", "producttitle", "productname"]
TITLE_NAMES += ["prodname", "booktitle"]


class Titles:
    """Titles by item id; an item without one is called by its id."""

    def __init__(self, titles: dict[str, str] | None = None) -> None:
        self.titles = titles or {}

    def of(self, ids: Iterable[str]) -> list[str]:
        """The title of each id; 37 finds 37.0 and the other way round."""
        titles = self.titles
        return [titles.get(item) or titles.get(id_forms.other(item)) or item for item in ids]

    def note(self, ids: pa.StringArray) -> str:
        """What to say if none of the ids has a title; empty if one has, or there are no titles at all."""
        known = pa.array(self.titles, pa.string())
        if not len(known) or (id_forms.index_in(ids, known) >= 0).any():
            return ""
        close = id_forms.near(ids, known)
        return f"warning: data.items_file has no title for any of the {len(ids):,} items{close}"


def read_titles(path: str | None) -> Titles:
    """Read a text with the columns item and title, under usual names; of an item that is there twice, the last counts.

    Raises:
        UserError: if the file is missing, unreadable or lacks a column.
    """
    if path is None:
        return Titles()
    file = Path(path).expanduser()
    name_one = "name a CSV with the columns item and title with data.items_file=FILE"
    if not file.is_file():
        raise UserError(f"there is no file {file}: {name_one}")
    if not file.stat().st_size:
        raise UserError(f"{file} is empty: {name_one}")
    source = sources.load(file)
    if source.is_parquet:
        raise UserError(f"{file} is Parquet: data.items_file takes a CSV with the columns item and title")
    content, _ = sources.as_utf8(source, "utf-8")
    found = _layout(file, content)
    try:
        table = parse(content, found, has_quotes=True, has_line_breaks=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as CSV: {one_line(error)}") from error
    return Titles(dict(zip(table["item"].to_pylist(), table["title"].to_pylist(), strict=True)))


def _layout(file: Path, content: pa.Buffer) -> layout.Layout:
    """The delimiter, and the names of the columns item and title."""
    line = next(iter(layout.first_lines(content)), "")
    best = layout.Layout({}, ",", has_header=True)
    for delimiter in (letters for letters in layout.DELIMITERS if len(letters) == 1):
        header = layout.split(line, delimiter)
        known = [columns.simplified(name) for name in header]
        titles = [header[known.index(alias)] for alias in TITLE_NAMES if alias in known]
        found = {"item": columns.find(header, "item", TableOptions()), "title": titles}
        named = {role: names[0] for role, names in found.items() if names and header.count(names[0]) == 1}
        if len(named) > len(best.columns):
            best = layout.Layout(named, delimiter, has_header=True)
    missing = [name for name in ("item", "title") if name not in best.columns]
    if missing:
        shown = ", ".join(layout.split(line, best.delimiter))
        raise UserError(f"{file} needs the column {' and the column '.join(missing)} once: found {shown}")
    return best
