"""What stands at a setting, once: its meaning and the values it takes.

Each function makes a field of a dataclass of `schema`; the field's annotation is the type of the setting. Checking the
settings and writing `--help` are loops over these fields.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

RULE = "rule"  # the key of a field's metadata


@dataclass(frozen=True)
class Rule:
    """What stands at a setting.

    Attributes:
        meaning: the comment beside it in `configs/bert4rec.yaml`, shown by `--help`.
        way_out: ends the message that refuses a value, such as "give a whole number of at least 1"; empty where every
            value of the type is possible.
        admits: value -> whether it is possible. Never asked about null where the type admits it.
        is_path: whether it names a file or a folder.
    """

    meaning: str
    way_out: str = ""
    admits: Callable[[Any], bool] = lambda value: True
    is_path: bool = False


def setting(meaning: str, way_out: str = "", admits: Callable[[Any], bool] = lambda value: True) -> Any:
    """A setting whose type says which values it takes, or that has a rule of its own."""
    return field(metadata={RULE: Rule(meaning, way_out, admits)})


def section() -> Any:
    """Settings of their own."""
    return field()


def path(meaning: str, way_out: str = "", admits: Callable[[Any], bool] = lambda value: True) -> Any:
    """The name of a file or a folder."""
    return field(metadata={RULE: Rule(meaning, way_out, admits, is_path=True)})


def whole(meaning: str, least: int) -> Any:
    """A whole number of at least `least`."""
    return setting(meaning, f"give a whole number of at least {least}", lambda value: value >= least)


def share(meaning: str) -> Any:
    """A number from 0 to 1."""
    return setting(meaning, "give a number from 0 to 1", lambda value: 0.0 <= value <= 1.0)


def rate(meaning: str) -> Any:
    """A number from 0 up to, but not including, 1."""
    return setting(meaning, "give a number from 0 up to, but not including, 1", lambda value: 0.0 <= value < 1.0)


def choice(meaning: str, options: Sequence[str]) -> Any:
    """One of a few words."""
    return setting(meaning, f"choose from {', '.join(options)}", lambda value: value in options)


def switch(meaning: str) -> Any:
    """auto, true or false."""
    return setting(meaning, "give auto, true or false", lambda value: value == "auto" or isinstance(value, bool))


def choices(meaning: str, options: Sequence[str], way_out: str, required: Sequence[str] = ()) -> Any:
    """A list of some of a few words, among them the required ones."""
    return setting(meaning, way_out, lambda value: set(required) <= set(value) <= set(options))
