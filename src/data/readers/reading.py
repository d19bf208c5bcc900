"""What every reader is given, and how each gets a text through Arrow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ..table import TableOptions

BLOCK = 2**23  # bytes that Arrow reads at a time
LARGEST_BLOCK = 2**31 - 1


@dataclass(frozen=True)
class Reading:
    """One file that is being read."""

    path: Path  # the file, for messages
    content: pa.Buffer  # all its bytes, a text in UTF-8; None for a Parquet file that is read piece by piece
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


def in_blocks(parse: Callable[[int], pa.Table], block: int, size: int) -> pa.Table:
    """What `parse` makes of a text of `size` bytes in blocks of so many, or of more where a line is longer than two."""
    while True:
        try:
            return parse(block)
        except pa.ArrowInvalid as error:
            if "straddl" not in str(error) or block >= min(2 * size, LARGEST_BLOCK):
                raise
            block = min(16 * block, LARGEST_BLOCK)
