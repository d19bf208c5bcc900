"""From what Hydra composed to a checked `Config`, or one line that names the key, the value and the way out."""

import re
from operator import attrgetter
from types import NoneType
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    InterpolationValidationError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from ..errors import UserError
from .contradictions import contradictions
from .keys import annotations, kind_name, misfit, rules, sections, unknown_key_message, value_text
from .schema import Config


def parse(composed: DictConfig) -> Config:
    """Check what Hydra composed and return it as plain dataclasses.

    Raises:
        UserError: for an unknown key, a wrong type, a value out of range, or settings that contradict each other.
    """
    try:
        merged = OmegaConf.structured(Config)
        merged.merge_with(composed)  # OmegaConf.merge copies everything once more
        config = OmegaConf.to_object(merged)
    except UserError:
        raise
    except ConfigKeyError as error:
        raise UserError(unknown_key_message(error.full_key or str(error.key))) from error
    except OmegaConfBaseException as error:
        raise UserError(_explained(error, composed)) from error
    assert isinstance(config, Config)
    check(config)
    return config


def check(config: Config) -> None:
    """See that every value is possible, by itself and beside the others.

    Raises:
        UserError: that names the first one that is not.
    """
    for key, rule in rules().items():
        value, annotation = attrgetter(key)(config), annotations()[key]
        if value is None and NoneType in get_args(annotation):
            continue
        if not _has_type(value, annotation):  # of another setting, which ${SETTING} put here
            raise UserError(misfit(key, value))
        if not rule.admits(value):
            raise UserError(f"{key}={value_text(value)} is not possible: {rule.way_out}")
    for key, value, why in contradictions(config):
        raise UserError(f"{key}={value_text(value)} is not possible: {why}")


def _has_type(value: object, annotation: Any) -> bool:
    if annotation is Any:
        return True
    if get_origin(annotation) is list:
        return isinstance(value, list) and all(_has_type(entry, get_args(annotation)[0]) for entry in value)
    kinds = get_args(annotation) or (annotation,)
    return type(value) in kinds or (float in kinds and type(value) is int)


def _explained(error: OmegaConfBaseException, composed: DictConfig) -> str:
    """One line for what OmegaConf refused, in our own words."""
    key = str(error.full_key or "")
    setting = re.sub(r"\[\d+\]$", "", key)  # of an entry of a list
    written = OmegaConf.to_container(composed, resolve=False)
    for name in setting.split("."):
        written = written.get(name) if isinstance(written, dict) else None
    shown = f"{setting}={value_text(written)}"
    if isinstance(error, InterpolationKeyError | InterpolationToMissingValueError):
        return f"{shown} takes the value of a setting that does not exist: --help lists every key"
    if isinstance(error, InterpolationValidationError) and setting in annotations():
        return f"{shown} gives another kind of value: give {kind_name(annotations()[setting])}"
    if isinstance(error, InterpolationResolutionError | GrammarParseError | UnsupportedInterpolationType):
        return rf"{shown} cannot be read as ${{SETTING}}: write \${{ for a plain ${{"
    if setting in sections():
        return f"{setting} is a section of settings, not one: --help {setting} shows those that it has"
    if setting not in annotations():
        reason = " ".join(str(error).split("\n")[0].split())
        return f"the settings cannot be read: {reason}"
    if isinstance(error, MissingMandatoryValue):
        return f"{setting} has no value: give {kind_name(annotations()[setting])}"
    return misfit(setting, written)
