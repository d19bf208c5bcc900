"""Titles of items, for people to read."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from ..errors import UserError


class Titles:
    """Titles by item id; an item without one is called by its id.

    Args:
        titles: id -> title.
    """

    def __init__(self, titles: dict[str, str] | None = None) -> None:
        self.titles = titles or {}

    def of(self, ids: Iterable[str]) -> list[str]:
        return [self.titles.get(item) or item for item in ids]


def read_titles(path: str | None) -> Titles:
    """Read a CSV with the columns `item` and `title`; of an item that is there twice, the last counts. None: no titles.

    Raises:
        UserError: if the file is missing, unreadable or lacks a column.
    """
    if path is None:
        return Titles()
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"there is no file {file}: name a CSV with the columns item and title with data.items_file=FILE"
        )
    as_text = pyarrow.csv.ConvertOptions(column_types={"item": pa.string(), "title": pa.string()})
    try:
        table = pyarrow.csv.read_csv(
            file, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True), convert_options=as_text
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise UserError(f"{file} cannot be read as CSV: {' '.join(str(error).split())}") from error
    missing = [name for name in ("item", "title") if table.column_names.count(name) != 1]
    if missing:
        raise UserError(
            f"{file} needs the column {' and the column '.join(missing)} once: found {', '.join(table.column_names)}"
        )
    return Titles(dict(zip(table["item"].to_pylist(), table["title"].to_pylist(), strict=True)))
