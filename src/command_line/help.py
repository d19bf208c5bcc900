"""`--help`: every setting with its meaning, default and range, from its field in the schema.

Imports neither torch nor Hydra, so that it answers at once.
"""

import itertools
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import get_args

from omegaconf import OmegaConf

from ..settings import CONFIGS
from ..settings.fields import Rule
from ..settings.keys import annotations, kind_name, rules, value_text

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
    for _, section in itertools.groupby(shown, lambda setting: setting.key.rpartition(".")[0]):
        lines.append("")
        for setting in section:
            lines.append(f"  {setting.key}={setting.default}")
            meaning = textwrap.wrap(f"{setting.meaning} [{setting.admits}]", width - 6)
            lines += [f"      {line}" for line in meaning]
    if words:
        return "\n".join(lines[1:])
    head = [summary, "", f"usage: {call} [KEY=VALUE ...]", ""]
    head += [f"  {call} {example}" for example in EXAMPLES[script]]
    head += ["", f"  --help WORD    only the settings that have to do with WORD, such as: {call} --help dropout"]
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
    defaults = OmegaConf.load(CONFIGS / "bert4rec.yaml")
    return [
        Setting(key, value_text(OmegaConf.select(defaults, key)), rule.meaning, admitted(key, rule))
        for key, rule in rules().items()
    ]


def admitted(key: str, rule: Rule) -> str:
    """What values a setting takes, in words."""
    annotation = annotations()[key]
    may_be_null = NoneType in get_args(annotation)
    way_out = rule.way_out.removeprefix("give ")
    words = way_out or ("a path" if rule.is_path else kind_name(annotation).removesuffix(", or null"))
    return words + (", or null" if may_be_null and "null" not in words else "")


def _mentions(setting: Setting, word: str) -> bool:
    """Whether the key has the word in it, or the meaning has one that begins with it."""
    return word in setting.key or re.search(rf"\b{re.escape(word)}", setting.meaning, re.IGNORECASE) is not None
