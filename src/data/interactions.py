"""From a table of user, item and time to interactions grouped by user and ordered by time.

Ids are strings throughout, exactly as they stand in the file, so that `007` and `7` stay two ids. Only ids that all are
whole numbers, some written as 37.0, are read as 37.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import UserError
from . import id_forms
from .readers import read_part, sources
from .readers.frames import read_frame
from .readers.times import UNIT_NAMES, unit_of
from .table import IDS, Frame, Part, TableOptions, Times


@dataclass(frozen=True)
class Interactions:
    """All rows of a table, sorted by user in order of first appearance, then by time, then by place in the file."""

    items: NDArray[np.int32]  # [R], index into `item_ids`
    offsets: NDArray[np.int64]  # [U + 1]; the rows of user u are items[offsets[u] : offsets[u + 1]]
    user_ids: pa.StringArray  # [U] strings
    item_ids: pa.StringArray  # [I] strings, in order of first appearance
    has_time: bool  # whether the table had a time column
    notes: tuple[str, ...] = ()  # what was recognised, left out or odd, for the person to read
    times: Times | None = None  # [R], of the rows, as numbers or dates; None unless they were asked for

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Interactions of each user. [U] int64."""
        return np.diff(self.offsets)


def read_interactions(
    path: Path | Frame, options: TableOptions | None = None, keeps_times: bool = False
) -> Interactions:
    """Read a table: a file, a folder of files or a pattern such as `part-*.csv`, in any of the formats of docs/data.md.

    Args:
        path: of the table, or the table itself.
        keeps_times: whether the rows come with their times, not only in their order.

    Raises:
        UserError: if a file is missing, unreadable, lacks a column, or has bad rows that are not to be dropped.
    """
    options = options or TableOptions()
    parts = [read_frame(path, options)] if isinstance(path, Frame) else _read_parts(path, options, ("user", "item"))
    parts = [_rated(part, options) for part in parts]
    times = _joined_times(parts, path)
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    users, user_ids = _whole(*_codes(part.ids["user"] for part in parts), "user", notes)
    items, item_ids = _whole(*_codes(part.ids["item"] for part in parts), "item", notes)
    del parts
    if times is None and options.time is not False:
        notes.append(
            "time        no column is known as time: the order of the rows counts (data.columns.time=NAME, or =false)"
        )
    if len(users) == 0:
        raise UserError(f"{path} has no row with a rating of at least data.min_rating={options.min_rating}")
    offsets = np.concatenate([[0], np.bincount(users, minlength=len(user_ids)).cumsum()])
    order = _order(users, None if times is None else times.view(np.int64) if times.dtype.kind == "M" else times)
    items = items[order]
    is_repeat = np.append(False, items[1:] == items[:-1])  # of the row before
    is_repeat[offsets[:-1]] = False
    kept_times = times[order] if keeps_times and times is not None else None
    if options.deduplicate:
        kept_times = None if kept_times is None else kept_times[~is_repeat]
        items, offsets = items[~is_repeat], np.concatenate([[0], (~is_repeat).cumsum()])[offsets]
    elif times is not None:
        rows = np.flatnonzero(is_repeat)
        if twice := int((times[order[rows]] == times[order[rows - 1]]).sum()):
            notes.append(
                f"repeats     {twice:,} rows have user, item and time of the row before and count again"
                " (data.deduplicate=true leaves them out)"
            )
    return Interactions(items, offsets, user_ids, item_ids, times is not None, tuple(notes), kept_times)


def _whole(
    codes: NDArray[np.int32], ids: pa.StringArray, role: str, notes: list[str]
) -> tuple[NDArray[np.int32], pa.StringArray]:
    """Ids without `.0` if all are whole numbers, else as they are; with notes on that, and on ids that are alike."""
    if (whole := id_forms.as_whole(ids)) is not None:
        encoded = whole.dictionary_encode()
        codes, ids = encoded.indices.to_numpy()[codes], encoded.dictionary
        number = ids[0].as_py()
        notes.append(
            f"ids         {role}: all are whole numbers, some written like {number}.0, and are read like {number}"
        )
    count, example = id_forms.clashes(ids)
    if count:
        notes.append(f"warning: {count:,} {role} ids differ from others only by .0 or blanks, such as {example}")
    return codes, ids


def read_ids(path: Path, role: str, options: TableOptions | None = None) -> pa.StringArray:
    """The distinct ids in the column `role`, `user` or `item`, of a table that needs no other column.

    Raises:
        UserError: as `read_interactions`.
    """
    parts = _read_parts(path, options or TableOptions(), (role,))
    return _codes(part.ids[role] for part in parts)[1]


def _read_parts(path: Path, options: TableOptions, ids: tuple[str, ...]) -> list[Part]:
    parts = []
    for file in sources.find(path):
        before = file.stat()
        parts.append(read_part(sources.load(file), options, ids))
        after = file.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise UserError(f"{file} was changed while it was read: run again once it is whole")
    return parts


def _rated(part: Part, options: TableOptions) -> Part:
    """Without the rows that are rated too low."""
    if part.ratings is None or options.min_rating is None:
        return part
    is_kept = part.ratings >= options.min_rating
    notes = [*part.notes]
    if low := int((~is_kept).sum()):
        notes.append(f"left out    {low:,} rows rated lower than data.min_rating={options.min_rating:g}")
    return replace(part.take(is_kept), ratings=None, notes=notes)


def _joined_times(parts: list[Part], path: Path | Frame) -> NDArray[Any] | None:
    """Times of all files in one unit. [R], or None if there are none."""
    times: list[NDArray[Any]] = [part.times for part in parts if part.times is not None]
    if not times:
        return None
    are_dates = {array.dtype.kind == "M" for array in times}
    units = sorted({unit_of(array) for array in times if len(array) and array.dtype.kind != "M"} - {np.inf})
    wrong = None
    if len(times) < len(parts):
        wrong = "only some have times;"
    elif len(are_dates) > 1:
        wrong = "some have dates and some have numbers as times;"
    elif len(units) > 1:
        found = " in some and ".join(UNIT_NAMES[unit] for unit in units)
        wrong = f"times are {found} in others; write them in one unit, or"
    if wrong:
        raise UserError(
            f"the files of {path} do not fit together: {wrong} leave times out with data.columns.time=false"
        )
    if len({array.dtype for array in times}) > 1 and are_dates == {True}:
        times = [array.astype("datetime64[us]") for array in times]
    return times[0] if len(times) == 1 else np.concatenate(times)


def _codes(columns: Iterable[pa.ChunkedArray]) -> tuple[NDArray[np.int32], pa.StringArray]:
    """Ids as indices into their distinct values in order of first appearance: codes [R], ids [N] strings."""
    chunks = [chunk for column in columns for chunk in column.chunks]
    column = pa.chunked_array(chunks, IDS).unify_dictionaries().combine_chunks()
    codes, ids = column.indices.to_numpy(), column.dictionary
    if len(codes) == 0:
        return codes, ids.slice(0, 0)
    highest = np.maximum.accumulate(codes)
    if codes[0] == 0 and highest[-1] == len(ids) - 1 and (np.diff(highest) <= 1).all():
        return codes, ids
    first = np.full(len(ids), len(codes), dtype=np.int64)  # where each value appears first
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    by_appearance = np.argsort(first, kind="stable")[: int((first < len(codes)).sum())]  # some values are not in use
    new_codes = np.zeros(len(ids), dtype=np.int32)
    new_codes[by_appearance] = np.arange(len(by_appearance))
    return new_codes[codes], ids.take(pa.array(by_appearance))


def _order(users: NDArray[np.int32], times: NDArray[Any] | None) -> NDArray[np.int64]:
    """Rows by user, then by time, then by place in the file. [R] int64."""
    by_user = stable_argsort(users)
    if times is None or (times[1:] >= times[:-1]).all():
        return by_user
    grouped, users_grouped = times[by_user], users[by_user]
    is_same_user = users_grouped[1:] == users_grouped[:-1]
    if not (is_same_user & (grouped[1:] < grouped[:-1])).any():  # as most logs are
        return by_user
    starts = np.flatnonzero(np.concatenate([[True], ~is_same_user]))
    lengths = np.diff(starts, append=len(users))
    by_time = _order_in_groups(lengths, grouped) if np.issubdtype(times.dtype, np.integer) else None
    if by_time is not None:
        return by_user[by_time]
    by_time = stable_argsort(times)
    return by_time[stable_argsort(users[by_time])]


def _order_in_groups(lengths: NDArray[np.int64], keys: NDArray[Any]) -> NDArray[np.int64] | None:
    """Places by key within each stretch of so many keys; None if group, key and place do not fit in 63 bits together.

    One number for all three sorts fast, and ties keep their order.
    """
    low, high = int(keys.min()), int(keys.max())
    place_bits, key_bits = int(lengths.max()).bit_length(), (high - low).bit_length()
    if len(lengths).bit_length() + key_bits + place_bits > 63:
        return None
    starts = np.repeat(lengths.cumsum() - lengths, lengths)
    packed = np.repeat(np.arange(len(lengths)) << key_bits, lengths)
    packed |= keys.astype(np.int64) - low
    packed <<= place_bits
    packed |= np.arange(len(keys)) - starts
    packed.sort()
    packed &= (1 << place_bits) - 1
    packed += starts
    return packed


def stable_argsort(keys: NDArray[Any]) -> NDArray[np.int64]:
    """As `np.argsort(keys, kind="stable")`, several times faster for whole numbers.

    NumPy sorts numbers of 16 bits by their digits, so that wider ones are sorted 16 bits at a time, lowest first.
    """
    if (keys[1:] >= keys[:-1]).all():
        return np.arange(len(keys))
    if not np.issubdtype(keys.dtype, np.integer):
        return np.argsort(keys, kind="stable")
    low, high = int(keys.min()), int(keys.max())
    # Differences beyond the type's range wrap around, and so come out right as unsigned numbers.
    above = (keys.astype(np.int64) - np.int64(low)).view(np.uint64)
    order = np.argsort(above.astype(np.uint16), kind="stable")
    for shift in range(16, (high - low).bit_length(), 16):
        digits = (above >> np.uint64(shift)).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order
