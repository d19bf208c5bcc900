"""Times: what looks like one, what a text says, and which ones are odd."""

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from ..table import TableOptions, Times

# A column of numbers is Unix time in one of these units, by the size of its median; smaller ones are mere order.
UNITS = ((1e8, 1.0), (1e11, 1e3), (1e14, 1e6), (1e17, 1e9))
UNIT_NAMES = {1.0: "seconds", 1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds", math.inf: "mere numbers"}
YEAR = 365.25 * 86400
EARLIEST = 20 * YEAR  # 1990: what a person's log begins after, and few ids that are numbers lie behind
ISO_DATE = re.compile(r"(19|20)\d\d-(0\d|1[0-2])-([0-2]\d|3[01])([T ]\d\d:\d\d.*)?")
# Dates as people and programs write them beside ISO; where several fit, the message names them all.
FORMATS = [
    *("%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M"),
    *("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%Y/%m/%d %H:%M:%S"),
    *("%Y/%m/%d %H:%M", "%Y/%m/%d", "%m %d, %Y", "%b %d, %Y", "%d %b %Y", "%a %b %d %H:%M:%S %z %Y"),
    "%d/%b/%Y:%H:%M:%S %z",
]
NOTHING = ("", "na", "n/a", "nan", "null", "none")


def look_like_times(cells: Sequence[str]) -> bool:
    """Whether every cell is a date, or a Unix time since 1990 in one unit."""
    cells = [cell.strip() for cell in cells]
    if not cells or not all(cells):
        return False
    if all(ISO_DATE.fullmatch(cell) for cell in cells):
        return True
    if all(re.fullmatch(r"[1-9]\d*(\.\d+)?", cell) for cell in cells):
        numbers = [float(cell) for cell in cells]
        latest = time.time() + YEAR
        if any(all(EARLIEST * unit <= number <= latest * unit for number in numbers) for _, unit in UNITS):
            return True
        return all(len(cell) == 8 for cell in cells) and bool(_fits("%Y%m%d", cells))
    may_be = all(6 <= len(cell) <= 40 and re.search(r"\d", cell) for cell in cells)
    return may_be and any(_fits(pattern, cells) for pattern in FORMATS)


def _fits(pattern: str, cells: Sequence[str]) -> bool:
    try:
        parsed = pd.to_datetime(pd.Series(list(cells), dtype="object"), format=pattern, errors="coerce", utc=True)
    except (ValueError, OverflowError):
        return False
    return bool((parsed.notna() & (parsed.dt.year >= 1970) & (parsed.dt.year <= 2100)).all())


def as_times(column: pa.ChunkedArray) -> Times:
    """Numbers as they are, dates as datetime64."""
    if pa.types.is_date32(column.type):
        column = column.cast(pa.timestamp("s"))
    elif pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    elif pa.types.is_integer(column.type):
        column = column.cast(pa.int64()) if column.type != pa.uint64() else column.cast(pa.float64(), safe=False)
    elif pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    elif column.type.tz is not None:
        column = column.cast(pa.timestamp(column.type.unit))
    times: Times = column.to_numpy()
    return times


def judge(
    texts: list[str], counts: NDArray[np.int64], options: TableOptions
) -> tuple[Times, dict[int, tuple[str, str]]]:
    """Times of distinct texts, as numbers or as dates, whichever most rows have; and what is wrong with the others.

    Args:
        texts: [V] distinct texts.
        counts: [V] rows that have each.

    Returns:
        [V] times, and for each text that is none: its index -> what it is, and the way out.
    """
    column = pd.Series(texts, dtype="object")
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    is_number = np.isfinite(numbers) & (options.time_format is None)
    dates = pd.to_datetime(column, errors="coerce", format=options.time_format or "ISO8601", utc=True)
    is_date = dates.notna().to_numpy() & ~is_number
    times: Times
    if counts[is_date].sum() > counts[is_number].sum():
        is_good = is_date
        times = dates.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    else:
        is_good = is_number
        exact = pd.to_numeric(column[is_good]).to_numpy()
        exact = exact if exact.dtype == np.int64 else exact.astype(np.float64)
        times = np.zeros(len(texts), dtype=exact.dtype)
        times[is_good] = exact
    wrong: dict[int, tuple[str, str]] = {}
    others = np.flatnonzero(~is_good).tolist()
    way_out = _way_out([texts[code] for code in others[:1000]], options)
    for code in others:
        text = texts[code]
        if text.lower() in NOTHING:
            wrong[code] = ("no time", "fill it in, or leave the column out altogether with data.columns.time=false")
        elif np.isinf(numbers[code]) and options.time_format is None:
            wrong[code] = (f"the time {text}", "every time must be a finite number")
        else:
            wrong[code] = (f"the time {text[:60]!r}", way_out)
    return times, wrong


def _way_out(texts: list[str], options: TableOptions) -> str:
    """What to do about times that are neither numbers nor ISO dates."""
    if options.time_format is not None:
        return f"it is not of the form data.time_format={options.time_format!r}"
    known = [text for text in texts if text.lower() not in NOTHING]
    fitting = [f"'data.time_format={pattern}'" for pattern in FORMATS if known and _fits(pattern, known)]
    if fitting:
        which = ", whichever is meant" if len(fitting) > 1 else ""
        return f"set {' or '.join(fitting)}{which}, or data.columns.time=false"
    if all(re.fullmatch(r"\d+,\d+", text) for text in texts):
        return "write numbers with a point, not a comma"
    return (
        "use Unix times or dates like 2024-01-31 12:00:00 throughout, set data.time_format, or data.columns.time=false"
    )


def unit_of(times: Times) -> float:
    """How many make a second; infinity for mere numbers."""
    sample = np.abs(times[:: len(times) // 1000 + 1].astype(np.float64))
    return max((unit for least, unit in UNITS if np.median(sample) >= least), default=math.inf)


def notes(times: Times, path: Path, row_numbers: NDArray[np.int64] | None) -> list[str]:
    """On times that are all the same, before 1970 or far in the future; they still have their place in the order."""
    if len(times) == 0:
        return []
    if len(times) > 1 and times.min() == times.max():
        return [f"warning: {path} has the same time in all {len(times):,} rows: the order of the rows decides"]
    values: NDArray[Any] = times
    per_second = 1.0
    if times.dtype.kind == "M":
        values = times.astype("datetime64[s]").astype(np.int64)
    else:
        per_second = unit_of(times)
    now = time.time() + YEAR
    is_odd = (values < 0) | (values > now * per_second)
    if is_odd.any():
        first = int(np.argmax(is_odd))
        row = first + 1 if row_numbers is None else row_numbers[first]
        return [
            f"warning: {path} has {int(is_odd.sum()):,} times before 1970 or far in the future, first {times[first]} in"
            f" data row {row}; they keep their place in the order"
        ]
    if per_second == 1.0 or float(values.max()) <= 100 * max(float(values.min()), 1.0):
        return []
    in_units = {unit: ((values >= EARLIEST * unit) & (values <= now * unit)).any() for _, unit in UNITS}
    units = [UNIT_NAMES[unit] for unit, has_some in in_units.items() if has_some]
    if len(units) < 2:
        return []
    return [f"warning: {path} has times in {' and in '.join(units)}, whose order is wrong: write them in one unit"]
