"""One file of a table, whatever its format and names, as columns of ids, times and ratings.

In: a `Source` and `TableOptions`. Out: a `Part`. Each format has a file of its own here.
"""

from collections.abc import Sequence

from ..table import Part, Reading, TableOptions
from .delimited import read_delimited
from .json_lines import is_json, read_json_lines
from .parquet import read_parquet
from .sources import Source, as_utf8

__all__ = ["read_part"]


def read_part(source: Source, options: TableOptions, ids: Sequence[str] = ("user", "item")) -> Part:
    """Read one file.

    Args:
        ids: the columns of ids that must be there; times and ratings are read only along with both.

    Raises:
        UserError: if the file cannot be read, lacks a column, or has bad rows that are not to be dropped.
    """
    if source.is_parquet:
        return read_parquet(Reading(source.path, source.content, options, ids))
    content, notes = as_utf8(source, options.encoding)
    reading = Reading(source.path, content, options, ids, notes)
    return (read_json_lines if is_json(content) else read_delimited)(reading)
