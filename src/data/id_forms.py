"""Ids that differ only by how a table was written: 37 and 37.0, 007 and 7, capitals, blanks at the ends.

Whole numbers with and without `.0` are one number, and are matched where nothing speaks against it. Everything else
stays apart, and is named where an id is not found.
"""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

FLOAT = r"^(0|-?[1-9][0-9]*)\.0+$"
WHOLE = r"^(0|-?[1-9][0-9]*)$"
SHOWN = 3


def as_whole(ids: pa.StringArray) -> pa.StringArray | None:
    """Ids without `.0`, if all are whole numbers and some are written with it; else None."""
    if len(ids) == 0 or not pc.match_substring_regex(ids.slice(0, 1), r"^-?[0-9]+(\.0+)?$")[0].as_py():
        return None
    is_float = pc.match_substring_regex(ids, FLOAT)
    if not pc.any(is_float).as_py() or not pc.all(pc.or_(is_float, pc.match_substring_regex(ids, WHOLE))).as_py():
        return None
    return pc.replace_substring_regex(ids, r"\.0+$", "")


def other_form(ids: pa.StringArray) -> pa.StringArray:
    """37 for 37.0 and 37.0 for 37; null for any other id."""
    is_float, is_whole = pc.match_substring_regex(ids, FLOAT), pc.match_substring_regex(ids, WHOLE)
    longer = pc.binary_join_element_wise(ids, pa.scalar(".0"), "")
    other = pc.if_else(is_float, pc.replace_substring_regex(ids, r"\.0+$", ""), longer)
    return pc.if_else(pc.or_(is_float, is_whole), other, pa.scalar(None, pa.string()))


def other(word: str) -> str:
    """As `other_form` for one id, which itself comes back if it has no other form."""
    if re.match(WHOLE, word):
        return f"{word}.0"
    return re.sub(r"\.0+$", "", word) if re.match(FLOAT, word) else word


def index_in(ids: pa.StringArray, known: pa.StringArray) -> NDArray[np.int64]:
    """Where each id stands in `known`, as it is or else in its other form; -1 where it does not. [R] int64."""
    found = _places(ids, known)
    is_missing = found < 0
    if is_missing.any() and len(known):
        found[is_missing] = _places(other_form(ids.filter(pa.array(is_missing))), known)
    return found


def matched(ids: pa.StringArray, known: pa.StringArray) -> str:
    """What to say of ids that are known in their other form alone; empty if there are none."""
    places = index_in(ids, known)
    places[_places(ids, known) >= 0] = -1
    count, pairs = _pairs(ids, known, places)
    return f"{count:,} items are matched as numbers: {pairs}" if count else ""


def near(unknown: pa.StringArray, known: pa.StringArray) -> str:
    """`; 12 of them are known in another form: 7 is known as 007, ...`, to go behind a warning; empty if none is.

    Forms differ by capitals, blanks at the ends, zeros at the beginning, and `.0`.
    """
    if not len(unknown) or not len(known):
        return ""
    count, pairs = _pairs(unknown, known, _places(_normal(unknown), _normal(known)))
    some = "it is" if len(unknown) == 1 else f"{count:,} of them {'is' if count == 1 else 'are'}"
    return f"; {some} known in another form: {pairs}" if count else ""


def lines(ids: pa.StringArray, known: pa.StringArray) -> list[str]:
    """What to say of the items of a table that a model knows in another form, or might."""
    found = matched(ids, known)
    close = near(ids.filter(pa.array(index_in(ids, known) < 0)), known)
    return [
        *([f"ids         {found}"] if found else []),
        *([f"warning: the table has items that the model does not know{close}"] if close else []),
    ]


def clashes(ids: pa.StringArray) -> tuple[int, str]:
    """How many ids of one table differ from another of its ids by `.0` or blanks at the ends alone, and an example."""
    bare = pc.replace_substring_regex(pc.utf8_trim_whitespace(ids), FLOAT, r"\1")
    is_changed = pc.not_equal(bare, ids)
    changed = ids.filter(is_changed)
    places = _places(bare.filter(is_changed), ids)
    rows = np.flatnonzero(places >= 0)
    if not len(rows):
        return 0, ""
    return len(rows), f"{changed[rows[0]].as_py()!r} and {ids[places[rows[0]]].as_py()!r}"


def _normal(ids: pa.StringArray) -> pa.StringArray:
    bare = pc.utf8_lower(pc.utf8_trim_whitespace(pc.utf8_normalize(ids, form="NFKC")))
    return pc.replace_substring_regex(pc.replace_substring_regex(bare, r"\.0+$", ""), r"^0+(.)", r"\1")


def _places(ids: pa.StringArray, known: pa.StringArray) -> NDArray[np.int64]:
    """Where each id stands in `known`; -1 where it does not. [R] int64."""
    return np.array(pc.fill_null(pc.index_in(ids, value_set=known, skip_nulls=True), -1), dtype=np.int64)


def _pairs(ids: pa.StringArray, known: pa.StringArray, places: NDArray[np.int64]) -> tuple[int, str]:
    """How many ids stand somewhere in `known`, and the first of them."""
    rows = np.flatnonzero(places >= 0)
    pairs = [f"{ids[row].as_py()} is known as {known[places[row]].as_py()}" for row in rows[:SHOWN].tolist()]
    return len(rows), ", ".join(pairs) + (", ..." if len(rows) > SHOWN else "")
