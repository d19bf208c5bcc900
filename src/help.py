"""`--help`: every setting with its meaning, default and range, from the YAML's comments and the schema's own checks.

Imports neither torch nor Hydra, so that it answers at once.
"""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, get_args

from omegaconf import OmegaConf

from .config import CONFIGS, PATH_KEYS, Config, kind_name, known_keys
from .errors import UserError

# What no range admits; the schema's refusal says what it does admit.
PROBES: tuple[Any, ...] = (-(10**9), 10**9, -1e9, 1e9, "?", [], None)
EXAMPLES = {
    "train_bert4rec.py": (
        "experiment=sample",
        "data.data_dir=FOLDER data.data_file=FILE",
        "data.data_dir=FOLDER data.data_file=FILE experiment=small training.lr=0.001",
        "-m sweep=grid data.data_dir=FOLDER data.data_file=FILE",
    ),
    "predict_bert4rec.py": (
        "experiment=sample",
        "data.data_dir=FOLDER data.data_file=FILE inference.topk=20",
        "inference.history=FILE",
        "inference.evaluate=true",
        "inference.export=model.onnx",
    ),
}


@dataclass(frozen=True)
class Setting:
    """One key of `configs/bert4rec.yaml`."""

    key: str
    default: str
    meaning: str
    admits: str


def text(script: str, summary: str, words: Sequence[str] = (), call: str = "") -> str:
    """The help of a script.

    Args:
        summary: one sentence on what the script does.
        words: show only the settings in which one of them occurs.
        call: how the script is called; empty: by Python.
    """
    call = call or f"python {script}"
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    shown = [setting for setting in settings() if not words or any(_mentions(setting, word) for word in words)]
    if words and not shown:
        return f"no setting has {' or '.join(words)} in its name or meaning: {call} --help lists all"
    lines = []
    for number, setting in enumerate(shown):
        if number == 0 or _section(setting) != _section(shown[number - 1]):
            lines.append("")
        lines.append(f"  {setting.key}={setting.default}")
        indent = " " * 6
        lines += textwrap.wrap(
            f"{setting.meaning} [{setting.admits}]", width, initial_indent=indent, subsequent_indent=indent
        )
    if words:
        return "\n".join(lines[1:])
    head = [summary, "", f"usage: {call} [KEY=VALUE ...]", ""]
    head += [f"  {call} {example}" for example in EXAMPLES[script]]
    head += [
        "",
        f"  --help WORD    only the settings that have to do with WORD, such as: {call} --help dropout",
    ]
    head += ["  --cfg job      the settings that a command line gives, without running"]
    for group, title in (("experiment", "Presets"), ("sweep", "Sweeps")):
        head += ["", f"{title}, {group}=NAME; what comes beside it on the command line wins"]
        described = presets(group)
        longest = max(map(len, described), default=0)
        head += [f"  {name:<{longest}}  {purpose}".rstrip() for name, purpose in described.items()]
    return "\n".join([*head, "", "Settings with their defaults, and what they mean [and admit]", *lines[1:]])


def presets(group: str) -> dict[str, str]:
    """Name -> what it is for, from the first comment of each file in `configs/GROUP`."""
    folder = CONFIGS / group
    described = {}
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:  # a user's own may hold anything
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            lines = [f"# cannot be read ({error.strerror})"]
        comments = (line[1:].strip() for line in lines if line.startswith("#"))
        purpose = next((line for line in comments if line and not line.startswith("@package")), "")
        described[name] = purpose.partition(":")[0]
    return described


def settings() -> list[Setting]:
    """Every setting, in the order of the YAML."""
    written = dict(_written())
    admitted = _admitted()
    return [Setting(key, *written[key], admitted[key]) for key in known_keys()]


def _written() -> Iterator[tuple[str, tuple[str, str]]]:
    """Key, and its default and comment as they stand in the YAML."""
    sections: list[str] = []
    for line in (CONFIGS / "bert4rec.yaml").read_text().splitlines():
        entry = re.match(r"( *)(\w+):(?: +(?!#)(.*?))?(?: +# (.*))?$", line)
        if entry is None:
            continue
        indent, name, default, comment = entry.groups()
        sections = [*sections[: len(indent) // 2], name]
        yield ".".join(sections), ((default or "").strip('"'), comment or "")


def _admitted() -> dict[str, str]:
    """Key -> what values it takes: the words with which the schema refuses others, or else the type."""
    values: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "bert4rec.yaml"))
    config = _built(Config, values)
    return dict(_admitted_by(config, (config,), ""))


def _built(schema: Any, values: dict[str, Any]) -> Any:
    """An instance of a schema with the schemas in it."""
    known = {field.name: field.type for field in fields(schema)}
    return schema(
        **{
            name: _built(kind, values[name]) if is_dataclass(kind) else values[name]
            for name, kind in known.items()
            if name in values
        }
    )


def _admitted_by(part: Any, parents: tuple[Any, ...], prefix: str) -> Iterator[tuple[str, str]]:
    for field in fields(part):
        key, value = prefix + field.name, getattr(part, field.name)
        if is_dataclass(value):
            yield from _admitted_by(value, (*parents, value), f"{key}.")
            continue
        rule = _rule(parents, key) or _type_name(key, field.type)
        yield key, rule + (", or null" if prefix and NoneType in get_args(field.type) else "")


def _rule(parents: tuple[Any, ...], key: str) -> str:
    """What the schema says when this key has a value that cannot be; empty if it takes anything.

    Args:
        parents: the whole configuration, the section of the key in it, and so on.
    """
    names = key.split(".")
    annotation = next(field.type for field in fields(parents[-1]) if field.name == names[-1])
    for probe in PROBES:
        if not _is_probe_for(probe, annotation):
            continue
        try:
            changed = probe
            for parent, name in zip(reversed(parents), reversed(names), strict=True):
                changed = replace(parent, **{name: changed})
        except UserError as error:
            refused, _, rule = str(error).partition(" is not possible: ")
            if refused.startswith(f"{key}="):
                return rule.removeprefix("give ")
        except (TypeError, ValueError, ArithmeticError, AttributeError):
            continue
    return ""


def _is_probe_for(probe: Any, annotation: Any) -> bool:
    """Whether a value has the type of a field, so that a range, not the type, refuses it."""
    if annotation is Any:
        return isinstance(probe, int | str | NoneType)
    types = [getattr(kind, "__origin__", kind) for kind in get_args(annotation) or (annotation,)]
    if getattr(annotation, "__origin__", None) is list:
        return isinstance(probe, list)
    return type(probe) in types and probe is not None


def _type_name(key: str, annotation: Any) -> str:
    return "a path" if key in PATH_KEYS else kind_name(annotation).removesuffix(", or null")


def _mentions(setting: Setting, word: str) -> bool:
    """Whether the key has the word in it, or the meaning has one that begins with it."""
    return word in setting.key or re.search(rf"\b{re.escape(word)}", setting.meaning, re.IGNORECASE) is not None


def _section(setting: Setting) -> str:
    return setting.key.rpartition(".")[0]
