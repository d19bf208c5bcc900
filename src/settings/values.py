"""Whether a value is of a kind that a setting takes."""

import math
from datetime import UTC, datetime
from typing import Any


def is_encoding(name: str) -> bool:
    """Whether it is the name of an encoding of text."""
    try:
        return isinstance("".encode(name), bytes)  # hex and the like are codecs, but not of text
    except (LookupError, ValueError):  # ValueError: no name at all, or a codec for nothing
        return False


def is_time_format(text: str) -> bool:
    """Whether it is a format of `strptime` that holds a date."""
    try:
        day = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
        return datetime.strptime(day.strftime(text), text).date() == day.date()
    except ValueError:
        return False


def is_interval(value: float) -> bool:
    """Whether it is a whole number of epochs, or a part of one."""
    return 0.0 < value < 1.0 or (value >= 1.0 and float(value).is_integer())


def is_port(value: int) -> bool:
    """Whether it is the number of a port, or 0 for any."""
    return 0 <= value < 2**16


def are_column_names(names: list[str]) -> bool:
    """Whether it is two or four names that can head a table."""
    are_plain = all(name and not set(name) & set(',"\r\n') for name in names)
    return len(names) in (2, 4) and len(set(names)) == len(names) and are_plain


def listed(value: Any) -> Any:
    """What a text such as [a.ckpt,b.ckpt] lists; any other value as it is."""
    if not isinstance(value, str) or not (value.startswith("[") and value.endswith("]")):
        return value
    return [part.strip().strip("'\"") for part in value[1:-1].split(",")]


def are_paths(value: Any) -> bool:
    """Whether it is a list of at least one path."""
    return isinstance(value, list) and value != [] and all(isinstance(path, str) and path for path in value)


def is_own_part(value: Any) -> bool:
    """Whether it is an entry that `hydra.utils.instantiate` takes."""
    return isinstance(value, dict) and isinstance(value.get("_target_"), str)


def is_number(text: str) -> bool:
    """Whether it is a text that is a number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_cut(value: Any) -> bool:
    """Whether it is a number that can be a share or a time, or an ISO date."""
    if isinstance(value, str):
        try:
            return 1900 <= datetime.fromisoformat(value).year <= 2200
        except ValueError:
            return False
    return type(value) in (int, float) and math.isfinite(value) and value != 0.0


def are_devices(value: Any) -> bool:
    """Whether it is Lightning's devices: auto, a number of them, or a list of their indices."""
    if isinstance(value, list):
        return value != [] and all(type(index) is int for index in value)
    return value == "auto" or (type(value) is int and value >= 1)
