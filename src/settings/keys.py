"""Names of settings: all there are, the nearest to one that is not, and what a value of each may be, in words."""

import difflib
import functools
import re
from dataclasses import fields, is_dataclass
from operator import attrgetter
from types import NoneType
from typing import Any, get_args

from .fields import RULE, Rule
from .schema import Config

# What other programs call a setting of ours.
ALIASES = {
    "learning_rate": "training.lr",
    "epochs": "training.num_epochs",
    "max_epochs": "training.num_epochs",
    "patience": "training.early_stopping_patience",
    "gpus": "training.devices",
    "device": "training.accelerator",
    "decay": "training.weight_decay",
    "clip": "training.gradient_clip",
    "negatives": "training.num_negatives",
    "dropout": "model.dropout_rate",
    "hidden_size": "model.hidden_units",
    "hidden_dim": "model.hidden_units",
    "embedding_dim": "model.hidden_units",
    "d_model": "model.hidden_units",
    "heads": "model.num_heads",
    "n_heads": "model.num_heads",
    "layers": "model.num_layers",
    "n_layers": "model.num_layers",
    "max_seq_len": "model.max_len",
    "seq_len": "model.max_len",
    "sequence_length": "model.max_len",
    "workers": "data.num_workers",
    "dir": "data.data_dir",
    "file": "data.data_file",
    "csv": "data.data_file",
    "titles": "data.items_file",
    "items": "data.items_file",
    "loggers": "training.logger",
    "evaluate_only": "inference.evaluate",
    "k": "inference.topk",
    "top_k": "inference.topk",
    "output": "inference.output_path",
    "checkpoint": "inference.checkpoint_path",
    "ckpt": "inference.checkpoint_path",
    "ckpt_path": "inference.checkpoint_path",
    "onnx": "inference.export",
    "preset": "experiment",
}


# Settings of earlier versions: since when they are gone, and what to do.
REMOVED = {
    "training.cpu_processes": "since November 2026: leave it out; a training step runs in one process, on all threads",
}


@functools.cache
def _entries(schema: type = Config, prefix: str = "") -> dict[str, tuple[Any, Rule | None]]:
    """Dotted name -> its type and its rule, of every section and every setting, in the order of the schema."""
    entries: dict[str, tuple[Any, Rule | None]] = {}
    for field in fields(schema):
        entries[prefix + field.name] = field.type, field.metadata.get(RULE)
        if isinstance(field.type, type) and is_dataclass(field.type):
            entries |= _entries(field.type, f"{prefix}{field.name}.")
    return entries


def rules() -> dict[str, Rule]:
    """Every dotted key of the schema, such as `model.max_len`, with what stands at it."""
    return {key: rule for key, (_, rule) in _entries().items() if rule is not None}


def annotations() -> dict[str, Any]:
    """Every dotted key of the schema with its type."""
    return {key: kind for key, (kind, rule) in _entries().items() if rule is not None}


def sections() -> list[str]:
    """Every name that other keys are under, such as `model` and `data.columns`."""
    return [key for key, (_, rule) in _entries().items() if rule is None]


def known_keys() -> list[str]:
    """Every dotted key of the schema."""
    return list(rules())


def kind_name(annotation: Any) -> str:
    """What values a type takes, in words."""
    kinds = get_args(annotation) or (annotation,)
    if getattr(annotation, "__origin__", None) is list:
        return "a list of whole numbers, such as [5,10]" if kinds == (int,) else "a list, such as [a,b]"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    name = next((names[kind] for kind in kinds if kind in names), "anything")
    return name + (", or null" if NoneType in kinds else "")


def misfit(key: str, value: object) -> str:
    """One line for a value of the wrong type."""
    annotation = annotations()[key]
    text = value if isinstance(value, str) else value_text(value)
    rule = f"give {kind_name(annotation)}"
    is_list = getattr(annotation, "__origin__", None) is list
    if is_list and type(value) in (int, str) and re.fullmatch(r"[\w,-]+", str(value)):
        rule = f"give a list, {key}=[{value}]"
    return f"{key}={text} is not possible: {rule}"


def flat_settings(config: Config) -> dict[str, str]:
    """Every dotted key with its value as it would be written on the command line."""
    return {key: value_text(attrgetter(key)(config)) for key in known_keys()}


def value_text(value: object) -> str:
    """A value as it would be written on the command line, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(value_text(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{value_text(entry)}" for name, entry in value.items()) + "}"
    text = str(value)
    return text if text.isprintable() else repr(text)


def is_whole_number(key: str) -> bool:
    """Whether a setting takes whole numbers alone."""
    return annotations().get(key) is int


def nearest_key(key: str) -> str | None:
    """The setting that was probably meant: the same name in another section, another program's name, or a typo."""
    keys = known_keys()
    name = key.rpartition(".")[2]
    elsewhere = [known for known in keys if known.rpartition(".")[2] == name]
    if elsewhere:
        return elsewhere[0]
    if name in ALIASES:
        return ALIASES[name]
    names = {known.rpartition(".")[2]: known for known in reversed(keys)}
    whole = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    part = [names[near] for near in difflib.get_close_matches(name, names, n=1, cutoff=0.6)]
    return next(iter([*whole, *part, *difflib.get_close_matches(key, keys, n=1, cutoff=0.5)]), None)


def unknown_key_message(key: str) -> str:
    """One line for a key that does not exist: what has become of it, or the nearest one that does."""
    if key in REMOVED:
        return f"there is no setting {key} {REMOVED[key]}"
    near = nearest_key(key)
    if key.split(".")[0] in ("experiment", "sweep"):  # what a preset has without the line, it has under its own name
        return f"there is no setting {key}: a file in configs/{key.split('.')[0]} begins with # @package _global_"
    return f"there is no setting {key}: {f'did you mean {near}?' if near else '--help lists every key'}"
