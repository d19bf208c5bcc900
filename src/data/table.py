"""How a table is to be read, and what one file of it holds. `src.data.readers` reads it.

pyarrow rather than polars or duckdb, because ids come out of its readers as indices into their distinct values, which
is what sequences are made of, and because it is here already: the vocabulary and pandas' strings are made of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

IDS = pa.dictionary(pa.int32(), pa.string())
TEXT = pa.dictionary(pa.int32(), pa.binary())

Times = NDArray[np.int64] | NDArray[np.float64] | NDArray[np.datetime64]


@dataclass(frozen=True)
class TableOptions:
    """How a table is to be read.

    The first four are names of columns, or their places (from 1) in a table without a header line; None takes a name of
    `src.data.readers.columns.KNOWN_NAMES`.
    """

    user: str | int | None = None
    item: str | int | None = None
    time: str | int | bool | None = None  # False ignores times
    rating: str | int | None = None
    delimiter: str | None = None  # what stands between the fields of a text; None to find out
    encoding: str = "utf-8"  # of a text
    on_bad_rows: str = "error"  # or "drop"
    min_rating: float | None = None  # rows rated lower are left out; None does not look at ratings
    deduplicate: bool = False  # whether an item that follows itself in a history counts once
    time_format: str | None = None  # of times that are text, as `strptime` has it; None takes numbers and ISO dates
    list_delimiter: str | None = None  # what stands between the items of one cell; None where a cell holds one item
    history_lines: bool = False  # whether each line is a user and all items of the history, without a header line
    quotes: bool = True  # whether a field may be in quotes; False takes a quote as a letter like any other

    @property
    def has_header(self) -> bool:
        """Whether no column is given by its place."""
        return not any(type(place) is int for place in (self.user, self.item, self.time, self.rating))

    @property
    def names_nothing(self) -> bool:
        """Whether columns are left to be recognised."""
        return self.user is None and self.item is None


@dataclass(frozen=True)
class Frame:
    """A table in memory, in the place of the path of one."""

    content: pa.Table

    @property
    def path(self) -> Path:
        """What messages call it, where they would name a file."""
        return Path("the frame")

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Reading:
    """One file that is being read."""

    path: Path  # the file, for messages
    content: pa.Buffer  # all its bytes, a text in UTF-8; None for a frame, and for Parquet that is read piece by piece
    options: TableOptions
    ids: Sequence[str]  # the columns of ids that must be there; times and ratings come only along with both
    notes: list[str] = field(default_factory=list)  # what was found and done so far

    @property
    def roles(self) -> list[str]:
        """The columns to read."""
        roles = list(self.ids)
        if len(roles) == 2:
            roles += ["time"] if self.options.time is not False else []
            roles += ["rating"] if self.options.min_rating is not None else []
        return roles

    @property
    def has_cells(self) -> bool:
        """Whether an item is a cell of several, which may be empty."""
        return self.options.list_delimiter is not None and "item" in self.ids


@dataclass(frozen=True)
class Part:
    """What one file holds, R rows."""

    ids: dict[str, pa.ChunkedArray]  # `user`, `item` or both -> R strings as indices into their distinct values
    times: Times | None  # [R], or None if there are none
    ratings: NDArray[np.float64] | None  # [R] float64, or None if nobody asked
    notes: list[str] = field(default_factory=list)  # what was found and done, for the person to read

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Part":
        """These rows alone, by their indices or by a mask."""
        columns = {role: column.combine_chunks() for role, column in self.ids.items()}
        chosen = pa.array(rows)
        pick = "filter" if rows.dtype == bool else "take"
        return Part(
            {role: pa.chunked_array([getattr(column, pick)(chosen)]) for role, column in columns.items()},
            None if self.times is None else self.times[rows],
            None if self.ratings is None else self.ratings[rows],
            self.notes,
        )


class BadRow(NamedTuple):
    """A row that cannot be used: its number, what it has, and the way out."""

    row: int
    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.what} in data row {self.row}"


def one_line(error: BaseException) -> str:
    """The text of an error of a library, in one line and not too long."""
    return " ".join(str(error).split())[:300]
