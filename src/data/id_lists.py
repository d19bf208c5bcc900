"""Lists of ids that narrow a prediction: which users, which items may come, which may not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import UserError
from . import interactions
from .sequences import Indices


def read_ids(path: Path, column: str) -> pa.StringArray:
    """The distinct ids of a list, in order of first appearance, exactly as they stand there.

    Args:
        path: a table in any of the formats of docs/data.md, `column` under any of its usual names, whatever other
            columns it has; or, if it ends in .txt, one id a line.
        column: "user" or "item".

    Raises:
        UserError: if the file is missing or unreadable, or has no such column, an empty id, or no id at all.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: give a table with the column {column}, or a .txt with one id a line")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: it must hold at least one {column}")
    if path.suffix != ".txt":
        try:
            return interactions.read_ids(path, column)
        except UserError as error:
            raise UserError(
                f"a list cannot be read, so that there is no {column} to go by: {error}; a .txt with one id a line"
                " will do too"
            ) from error
    ids = pa.array([line for line in path.read_text(encoding="utf-8-sig").splitlines() if line], pa.string())
    if len(ids) == 0:
        raise UserError(f"{path} has no {column} in it: it must hold at least one")
    return pc.unique(ids)


def barred_tokens(num_items: int, allowed: Indices | None, blocked: Indices | None) -> NDArray[np.bool_] | None:
    """Which tokens may not be recommended to anybody.

    Args:
        allowed: [A] int64, the only items that may come, 0 for one that the model does not know; None: all may.
        blocked: [X] int64, items that may not come, 0 likewise; None: none.

    Returns:
        [num_items + 2] bool, or None if nothing is barred.
    """
    if allowed is None and blocked is None:
        return None
    is_barred = np.full(num_items + 2, allowed is not None)
    if allowed is not None:
        is_barred[allowed] = False
    if blocked is not None:
        is_barred[blocked] = True
    return is_barred
