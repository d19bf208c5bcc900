"""The words of a command line: how Hydra has to get them, and what is wrong with one, in one line.

Imports neither torch nor data, so that a mistake shows at once.
"""

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse as parse_interpolation

from ..errors import UserError
from ..settings import CONFIGS, known_keys
from ..settings.keys import ALIASES, annotations, misfit, nearest_key, sections, unknown_key_message

GROUPS = ("experiment", "sweep")
TABLES = (".csv", ".tsv", ".txt", ".inter", ".jsonl", ".parquet", ".gz", ".zst")
# A value in quotes of Hydra's, backslashes and all.
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
# What a setting that takes text and other things, such as training.devices, does not take for text.
_NO_TEXT = re.compile(r"(?i:true|false|null)|[+-]?(?:0|[1-9]\d*)|\[[\s\d,+-]*\]")
_CHOICES = re.compile(r"(?:choice|range|interval|glob|sort|shuffle|tag|extend_list)\(.*\)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class CommandLine:
    """What was typed after the script's name: Hydra's options with their values, and all other words as typed."""

    words: list[str]
    options: dict[str, Any]

    @property
    def is_sweep(self) -> bool:
        return bool(self.options["multirun"])

    def for_hydra(self) -> list[str]:
        """Options first: between words Hydra knows none."""
        given = {name.replace("_", "-"): value for name, value in self.options.items() if value not in (None, False)}
        options = [f"--{name}" + ("" if value is True else f"={value}") for name, value in given.items()]
        words = [quote_text(word, self.is_sweep) for word in self.words if not _is_no_preset(word)]
        return [*options, "--", *words] if any(word.startswith("-") for word in words) else [*options, *words]


def read(arguments: Sequence[str]) -> CommandLine:
    """Tell options from words.

    Raises:
        UserError: for an option that does not exist, or that has no such value.
    """
    names = _names()
    for word in arguments:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("-") and name in names:
            meant = name if name in known_keys() else nearest_key(name)
            raise UserError(
                f"there is no option {word.partition('=')[0]}: settings are given as KEY=VALUE, here {meant}=VALUE"
            )
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    parser.allow_abbrev = False
    parsed = vars(parser.parse_intermixed_args(list(arguments)))
    if parsed["resolve"] and not parsed["cfg"]:
        raise UserError("--resolve goes with --cfg job, which shows the settings without running")
    if parsed["experimental_rerun"]:  # of a pickle, which can run anything
        raise UserError("--experimental-rerun is not possible here: give the settings of the run as KEY=VALUE")
    return CommandLine(parsed.pop("overrides"), parsed)


def _refuse(message: str) -> NoReturn:
    reason = re.sub(r"unrecognized arguments: ", "there is no option ", message)
    raise UserError(f"{' '.join(reason.split())}: settings are given as KEY=VALUE, and --help shows them")


def _names() -> set[str]:
    """Everything that somebody may call a setting: its key, the last part of it, another program's name for it."""
    return {*ALIASES, *known_keys(), *(key.rpartition(".")[2] for key in known_keys())}


def check(line: CommandLine) -> None:
    """See that every word is a setting that exists with a value that can be read.

    Raises:
        UserError: that names the first word that is not, with the way it is written here.
    """
    parser = OverridesParser.create()
    for word, following in itertools.pairwise([*line.words, ""]):
        _check_form(word, following)
        key, _, value = word.partition("=")
        name = key.lstrip("+")
        if line.is_sweep and name == "output_dir" and "${hydra:" in word:
            raise UserError(f"{word}: give a plain folder; each run of a sweep has one of its own in it, sweep/NUMBER")
        if _is_no_preset(word):
            continue
        if name in sections() and not value.lstrip().startswith("{"):
            raise UserError(f"{word}: {name} is a section of settings, not one: {_of_section(name)}")
        if not line.options["config_dir"] and not _may_exist(name):
            raise UserError(unknown_key_message(name))
        _check_value(parser, word, line.is_sweep)


def _check_form(word: str, following: str) -> None:
    """See that it is KEY=VALUE at all."""
    key, equals, value = word.partition("=")
    if key.startswith("~") and not key.startswith("~hydra"):
        raise UserError(f"{word}: a setting cannot be removed; leave it out for its default, or give another value")
    if equals and key.strip(" \t") != key and _NAME.fullmatch(key.strip().lstrip("+")):
        raise UserError(f"'{word}' has a blank before the =: write {shlex.quote(f'{key.strip()}={value.strip()}')}")
    if equals and not key:
        raise UserError(f"{word} has no name before the =: write KEY=VALUE without blanks")
    if equals or word.startswith("~"):
        return
    if word in known_keys() and following.startswith("="):
        joined = shlex.quote(word + (following if following != "=" else "=VALUE"))
        raise UserError(f"{word} has a blank before the =: write {joined}")
    if word in _names():
        meant = word if word in known_keys() else nearest_key(word)
        raise UserError(f"{word} has no value: write {meant}=VALUE")
    if word.endswith(TABLES) or (word and Path(word).expanduser().exists()):
        folder, file = os.path.split(word)
        named = shlex.join([f"data.data_dir={folder or '.'}", f"data.data_file={file}"])
        raise UserError(f"{word} is no setting: name a table with {named}")
    for group in GROUPS:
        if word and (CONFIGS / group / f"{word}.yaml").is_file():
            raise UserError(f"{word} is no setting: did you mean {group}={word}?")
    raise UserError(f"{word or repr(word)} is no setting: settings are given as KEY=VALUE, and --help shows them")


def _of_section(name: str) -> str:
    if name == "data":
        return "name a table with data.data_dir=FOLDER data.data_file=FILE"
    keys = [key for key in known_keys() if key.startswith(f"{name}.")]
    return f"it has {', '.join(keys[:3])}, ...: --help {name} shows all"


def _may_exist(name: str) -> bool:
    """Whether a word may begin so; Hydra's own settings, and entries of a list, are left to Hydra."""
    if name in {*known_keys(), *sections(), *GROUPS} or re.match(r"hydra[./@]", name.lstrip("~")):
        return True
    return re.sub(r"\.\d+$", "", name) in {key for key, kind in annotations().items() if _is_list(kind)}


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list


def _is_no_preset(word: str) -> bool:
    """`experiment=null`, which is the default and which Hydra stumbles over."""
    return word.lstrip("+") in [f"{group}=null" for group in GROUPS]


def _check_value(parser: OverridesParser, word: str, is_sweep: bool) -> None:
    """See that Hydra can read the value."""
    key, _, value = word.partition("=")
    name = key.lstrip("+")
    try:
        override = parser.parse_override(quote_text(word, is_sweep))
    except HydraException as error:
        if name in annotations():
            raise UserError(misfit(name, value)) from error
        way_out = f"put text with special characters in quotes, {name}='\"TEXT\"'"
        raise UserError(f"{word} cannot be read: {way_out}") from error
    if override.is_sweep_override() and not is_sweep:
        or_list = f", or give one list, {name}=[{value}]" if _is_list(annotations().get(name)) else ""
        raise UserError(f"{name}={value} gives several values, which is a sweep: add -m to try them all{or_list}")
    if name == "sweep" and not is_sweep:
        raise UserError(f"{word} needs -m, which runs a sweep: -m {word}")
    if name in GROUPS and override.value_type is not None and not _is_name(override.value()):
        raise UserError(f"{word}: give the name of one of the files in configs/{name}")


def _is_name(value: Any) -> bool:
    """Whether Hydra read a name, a list of names, or a choice among names."""
    if isinstance(value, list):
        return all(map(_is_name, value))
    return value is not None and not isinstance(value, bool | int | float | dict)


def quote_text(word: str, is_sweep: bool = False) -> str:
    """The word as Hydra has to get it so that a text setting has the value that was typed, whatever is in it.

    A value that is in quotes already stays as it is, and so do `null` where there may be none, and interpolations,
    `${...}`. In a sweep, commas and `choice(...)` and the like stand between several values, each of which is a text.
    """
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    annotation = annotations().get(name)
    if annotation is None:
        return f"{name}={value}" if equals and name in GROUPS else word
    word = f"{name}={value}"  # with +, Hydra would refuse what is there already
    kinds = get_args(annotation) or (annotation,)
    if not value or not (annotation is Any or (str in kinds and not _is_list(annotation))):
        return word
    if is_sweep and _CHOICES.fullmatch(value):
        return word
    values = _split(value) if is_sweep else [value]
    return f"{name}=" + ",".join(_quote(one, annotation is Any, NoneType in kinds) for one in values)


def _quote(value: str, may_be_other: bool, may_be_null: bool) -> str:
    if _QUOTED.fullmatch(value) or (may_be_null and value == "null") or (may_be_other and _NO_TEXT.fullmatch(value)):
        return value
    if "${" in value and not _is_interpolation(value):
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    # Hydra halves the backslashes before a quote and takes all others as they are.
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


def _is_interpolation(value: str) -> bool:
    try:
        parse_interpolation(value)
    except GrammarParseError:
        return False
    return True


def _split(value: str) -> list[str]:
    """The values between commas, unless there is nothing between two of them: `,` is one value, a comma."""
    values = re.findall(
        r"(?:\[[^\]]*\]|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,])+|(?<=,)(?=,)|^(?=,)|(?<=,)$", value
    )
    stripped = [one.strip() for one in values]
    return stripped if len(stripped) > 1 and all(stripped) else [value]


def unquoted(word: str) -> str:
    """`KEY=VALUE` as a person would type it, of what `quote_text` made."""
    key, _, value = word.partition("=")
    if key in annotations() and value[:1] == "'" and _QUOTED.fullmatch(value):
        plain = re.sub(r"(\\*)('|\Z)", lambda found: found[1][: len(found[1]) // 2] + found[2], value[1:-1])
        return f"{key}={plain}" if quote_text(f"{key}={plain}") == word else word
    return word
