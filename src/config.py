"""The typed schema of `configs/bert4rec.yaml`: the YAML owns the values, this module types, ranges and cross-checks.

`parse` turns what Hydra composed into plain dataclasses, or raises `UserError` with one line that names the key, the
value and the way out. It needs neither torch nor data, so that a mistake shows at once.
"""

import difflib
import functools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from .errors import UserError

_HERE = Path(__file__).resolve().parent
# A wheel carries the settings inside the package, a checkout has them beside it.
CONFIGS = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"
# Settings that name files, for --help and for a look before anything slow is imported.
PATH_KEYS = (
    "output_dir",
    "data.data_dir",
    "data.data_file",
    "data.items_file",
    "data.download_url",
    "training.resume",
    "inference.checkpoint_path",
    "inference.output_path",
    "inference.users",
    "inference.history",
    "inference.candidates",
    "inference.exclude",
    "inference.export",
)
SCHEDULERS = ("none", "linear", "cosine")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "32", "16", "bf16", "64")
LOSSES = ("softmax", "sampled_softmax", "gbce")
OPTIMIZERS = ("adam", "adamw")
LINEAR_INITS = ("normal", "xavier")
LOGGERS = ("tensorboard", "csv", "mlflow", "wandb")
PROTOCOLS = ("full", "uniform-100", "popularity-100")
DELIMITER_NAMES = {"tab": "\t", "space": " ", "comma": ",", "semicolon": ";", "bar": "|", "colon": ":"}
DOWNLOADS = ("ml-100k", "ml-1m", "ml-20m", "beauty", "steam")


def _require(ok: bool, key: str, value: object, rule: str) -> None:
    if not ok:
        raise UserError(f"{key}={value} is not possible: {rule}")


def _require_rate(key: str, value: float | None) -> None:
    _require(value is None or 0.0 <= value < 1.0, key, value, "give a number from 0 up to, but not including, 1")


def _require_share(key: str, value: float) -> None:
    _require(0.0 <= value <= 1.0, key, value, "give a number from 0 to 1")


def _require_at_least(least: int, **values: int) -> None:
    for key, value in values.items():
        _require(value >= least, key.replace("__", "."), value, f"give a whole number of at least {least}")


def _is_encoding(name: str) -> bool:
    try:
        return isinstance("".encode(name), bytes)  # hex and the like are codecs, but not of text
    except (LookupError, ValueError):  # ValueError: no name at all, or a codec for nothing
        return False


def _is_time_format(text: str) -> bool:
    try:
        day = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
        return datetime.strptime(day.strftime(text), text).date() == day.date()
    except ValueError:
        return False


@dataclass
class ColumnsConfig:
    user: Any
    item: Any
    time: Any
    rating: Any

    def __post_init__(self) -> None:
        for role in ("user", "item", "time", "rating"):
            column = getattr(self, role)
            is_name = isinstance(column, str) and column != ""
            is_place = type(column) is int and column >= 1
            _require(
                column is None or is_name or is_place or (role == "time" and column is False),
                f"data.columns.{role}",
                column,
                "give a name, or the place of a column, the first being 1" + (", or false" if role == "time" else ""),
            )
        given = [column for column in (self.user, self.item, self.time, self.rating) if column not in (None, False)]
        places = [column for column in given if type(column) is int]
        _require(
            not places or (len(places) == len(given) and type(self.user) is int and type(self.item) is int),
            "data.columns",
            given,
            "without a header line user and item need places, and no column a name",
        )


@dataclass
class DataConfig:
    data_dir: str
    data_file: str
    items_file: str | None
    columns: ColumnsConfig
    delimiter: str | None
    quotes: bool
    list_delimiter: str | None
    history_lines: bool
    time_format: str | None
    encoding: str
    on_bad_rows: str
    min_rating: float | None
    deduplicate: bool
    download: str | None
    download_url: str | None
    cache: bool
    generate_sample: bool
    batch_size: int
    min_interactions: int
    min_item_interactions: int
    holdout: int
    window_stride: int | None
    num_workers: int

    def __post_init__(self) -> None:
        _require_at_least(
            1,
            data__batch_size=self.batch_size,
            data__min_interactions=self.min_interactions,
            data__min_item_interactions=self.min_item_interactions,
        )
        self._check_table()
        _require_at_least(0, data__num_workers=self.num_workers)
        if self.window_stride is not None:
            _require_at_least(1, data__window_stride=self.window_stride)
        _require(
            self.holdout in (0, 1, 2),
            "data.holdout",
            self.holdout,
            "give 2 (a test and a validation item), 1 (a validation item) or 0 (nothing)",
        )

    def _check_table(self) -> None:
        for key, between in (("delimiter", "two fields"), ("list_delimiter", "two items of a cell")):
            given = getattr(self, key)
            value = None if given is None else DELIMITER_NAMES.get(given.lower(), given.replace("\\t", "\t"))
            setattr(self, key, value)
            _require(
                value is None or (value != "" and not set(value) & set('"\r\n\x1f') and not value.isalnum()),
                f"data.{key}",
                repr(given),
                f"give what stands between {between}, such as {', '.join(DELIMITER_NAMES)}, or null",
            )
        _require(
            not self.history_lines or self.list_delimiter is None,
            "data.history_lines",
            self.history_lines,
            "it goes without data.list_delimiter; data.delimiter says what stands between the items",
        )
        given_columns = [role for role in ("user", "item", "time", "rating") if getattr(self.columns, role)]
        _require(
            not self.history_lines or not (given_columns or self.min_rating is not None),
            "data.history_lines",
            self.history_lines,
            "a line has a user and items alone, so it goes without data.columns and data.min_rating",
        )
        _require(
            self.time_format is None or _is_time_format(self.time_format),
            "data.time_format",
            self.time_format,
            "give year, month and day as Python's strptime has them, such as %d.%m.%Y %H:%M",
        )
        _require(
            _is_encoding(self.encoding),
            "data.encoding",
            self.encoding,
            "give utf-8, latin-1, cp949, utf-16 or the like",
        )
        _require(self.on_bad_rows in ("error", "drop"), "data.on_bad_rows", self.on_bad_rows, "give error or drop")
        _require(
            self.min_rating is None or math.isfinite(self.min_rating),
            "data.min_rating",
            self.min_rating,
            "give a number, or null to leave ratings alone",
        )
        _require(
            self.download is None or self.download in DOWNLOADS,
            "data.download",
            self.download,
            f"choose from {', '.join(DOWNLOADS)}",
        )
        _require(
            self.download_url is None or self.download is not None,
            "data.download_url",
            self.download_url,
            "it is the address of what data.download names",
        )
        _require(
            not (self.download and self.generate_sample),
            "data.download",
            self.download,
            "data.generate_sample=true makes another table; choose one of them",
        )

    @property
    def path(self) -> Path:
        """Where the table is."""
        return Path(self.data_dir).expanduser() / (f"{self.download}.csv" if self.download else self.data_file)

    @property
    def table_options(self) -> dict[str, Any]:
        """Arguments of `src.data.table.TableOptions`."""
        names = ("delimiter", "quotes", "list_delimiter", "history_lines", "time_format", "encoding", "on_bad_rows")
        others = ("min_rating", "deduplicate")
        return {**vars(self.columns), **{name: getattr(self, name) for name in names + others}}


@dataclass
class ModelConfig:
    hidden_units: int
    num_heads: int
    num_layers: int
    max_len: int
    dropout_rate: float
    mask_prob: float
    share_embeddings: bool
    mask_token_share: float
    random_token_share: float
    mask_last_share: float
    attention_dropout_rate: float | None
    ffn_dropout_rate: float | None
    embedding_norm_first: bool
    output_transform: bool
    output_bias: bool
    linear_init: str

    def __post_init__(self) -> None:
        _require_at_least(
            1,
            model__hidden_units=self.hidden_units,
            model__num_heads=self.num_heads,
            model__num_layers=self.num_layers,
        )
        _require_at_least(2, model__max_len=self.max_len)
        _require(
            self.linear_init in LINEAR_INITS,
            "model.linear_init",
            self.linear_init,
            f"choose from {', '.join(LINEAR_INITS)}",
        )
        _require(
            self.hidden_units % self.num_heads == 0,
            "model.hidden_units",
            self.hidden_units,
            f"it must be divisible by model.num_heads={self.num_heads}",
        )
        _require_rate("model.dropout_rate", self.dropout_rate)
        _require_rate("model.attention_dropout_rate", self.attention_dropout_rate)
        _require_rate("model.ffn_dropout_rate", self.ffn_dropout_rate)
        _require(
            0.0 < self.mask_prob <= 1.0, "model.mask_prob", self.mask_prob, "give a number above 0 and not above 1"
        )
        _require_share("model.mask_token_share", self.mask_token_share)
        _require_share("model.random_token_share", self.random_token_share)
        _require_share("model.mask_last_share", self.mask_last_share)
        _require(
            self.mask_token_share + self.random_token_share <= 1.0 + 1e-9,
            "model.random_token_share",
            self.random_token_share,
            f"with model.mask_token_share={self.mask_token_share} it adds up to more than 1",
        )


@dataclass
class TrainingConfig:
    num_epochs: int
    max_steps: int | None
    lr: float
    loss: str
    num_negatives: int
    negative_power: float
    gbce_calibration: float
    optimizer: str
    weight_decay: float
    decay_norm_and_bias: bool
    scheduler: str
    warmup_steps: int
    gradient_clip: float | None
    monitor_metric: str
    early_stopping: bool
    early_stopping_patience: int
    val_check_interval: float
    accelerator: str
    devices: Any
    num_nodes: int
    strategy: str
    precision: str
    checkpoint_every_n_steps: int | None
    resume: Any
    logger: list[str]

    def __post_init__(self) -> None:
        _require_at_least(
            1, training__num_epochs=self.num_epochs, training__early_stopping_patience=self.early_stopping_patience
        )
        _require_at_least(1, training__num_nodes=self.num_nodes)
        _require_at_least(0, training__warmup_steps=self.warmup_steps)
        if self.max_steps is not None:
            _require_at_least(1, training__max_steps=self.max_steps)
        if self.checkpoint_every_n_steps is not None:
            _require_at_least(1, training__checkpoint_every_n_steps=self.checkpoint_every_n_steps)
        _require(self.lr > 0.0 and math.isfinite(self.lr), "training.lr", self.lr, "give a number above 0")
        _require(
            0.0 <= self.weight_decay < math.inf, "training.weight_decay", self.weight_decay, "give 0 or a number above"
        )
        _require(self.loss in LOSSES, "training.loss", self.loss, f"choose from {', '.join(LOSSES)}")
        _require_at_least(1, training__num_negatives=self.num_negatives)
        _require_share("training.negative_power", self.negative_power)
        _require_share("training.gbce_calibration", self.gbce_calibration)
        _require(
            self.loss == "softmax" or (self.weight_decay == 0.0 and self.optimizer == "adam"),
            "training.loss",
            self.loss,
            "it updates only the rows of items that a step touches, which needs training.optimizer=adam and"
            " training.weight_decay=0.0",
        )
        _require(
            self.optimizer in OPTIMIZERS, "training.optimizer", self.optimizer, f"choose from {', '.join(OPTIMIZERS)}"
        )
        _require(
            self.scheduler in SCHEDULERS, "training.scheduler", self.scheduler, f"choose from {', '.join(SCHEDULERS)}"
        )
        _require(
            self.gradient_clip is None or 0.0 < self.gradient_clip < math.inf,
            "training.gradient_clip",
            self.gradient_clip,
            "give a number above 0, or null for none",
        )
        interval = self.val_check_interval
        _require(
            0.0 < interval < 1.0 or (interval >= 1.0 and float(interval).is_integer()),
            "training.val_check_interval",
            interval,
            "a whole number n means every n epochs, a fraction below 1 means that part of an epoch",
        )
        _require(
            self.precision in PRECISIONS,
            "training.precision",
            self.precision,
            f"choose from {', '.join(PRECISIONS)}",
        )
        _require(
            isinstance(self.resume, bool | str),
            "training.resume",
            self.resume,
            "give true, false, auto or a checkpoint path",
        )
        _require(
            set(self.logger) <= set(LOGGERS),
            "training.logger",
            list(self.logger),
            f"choose from {', '.join(LOGGERS)}, or give [] for none",
        )
        _require(
            self.devices == "auto"
            or (type(self.devices) is int and self.devices >= 1)
            or (isinstance(self.devices, list) and self.devices != [] and all(type(d) is int for d in self.devices)),
            "training.devices",
            self.devices,
            "give auto, a number of devices, or a list of device indices",
        )


@dataclass
class EvaluationConfig:
    topk: list[int]
    filter_seen: bool
    protocols: list[str]
    batch_size: int
    bootstrap: int
    report: bool

    def __post_init__(self) -> None:
        _require_at_least(1, evaluation__batch_size=self.batch_size)
        _require_at_least(0, evaluation__bootstrap=self.bootstrap)
        _require(
            len(self.topk) > 0 and all(k >= 1 for k in self.topk),
            "evaluation.topk",
            list(self.topk),
            "give whole numbers of at least 1, such as [5,10]",
        )
        _require(
            "full" in self.protocols and set(self.protocols) <= set(PROTOCOLS),
            "evaluation.protocols",
            list(self.protocols),
            f"choose full and, if you like, more of {', '.join(PROTOCOLS)}",
        )


@dataclass
class InferenceConfig:
    evaluate: bool
    checkpoint_path: str | None
    output_path: str | None
    users: str | None
    history: str | None
    candidates: str | None
    exclude: str | None
    export: str | None
    topk: int
    exclude_seen: bool
    with_scores: bool
    batch_size: int

    def __post_init__(self) -> None:
        _require_at_least(1, inference__topk=self.topk, inference__batch_size=self.batch_size)
        _require(
            self.export is None or self.export.endswith(".onnx"),
            "inference.export",
            self.export,
            "give the name of a file that ends in .onnx",
        )
        narrower = ("users", "history", "candidates", "exclude")
        for job, others in (("evaluate", ("export", *narrower)), ("export", narrower)):
            beside = [f"inference.{name}" for name in others if getattr(self, name) is not None]
            _require(
                not (getattr(self, job) and beside),
                f"inference.{job}",
                getattr(self, job),
                f"it goes without {' and '.join(beside)}",
            )


@dataclass
class Config:
    seed: int
    auto: bool
    native: Any
    output_dir: str
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    inference: InferenceConfig

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**32, "seed", self.seed, "give a whole number from 0 to 4294967295")
        _require(
            self.native == "auto" or isinstance(self.native, bool), "native", self.native, "give auto, true or false"
        )
        metrics = validation_metrics(self.evaluation.topk)
        _require(
            self.training.monitor_metric in metrics,
            "training.monitor_metric",
            self.training.monitor_metric,
            f"evaluation.topk={list(self.evaluation.topk)} gives {', '.join(metrics)}; add"
            f" training.monitor_metric={metrics[1]}",
        )
        _require(
            not (self.training.early_stopping and self.data.holdout == 0),
            "training.early_stopping",
            self.training.early_stopping,
            "data.holdout=0 leaves nothing to validate on; use data.holdout=1 or 2",
        )
        interval = self.training.val_check_interval
        _require(
            self.data.holdout == 0 or interval <= self.training.num_epochs,
            "training.val_check_interval",
            f"{interval:g}",
            f"training.num_epochs={self.training.num_epochs} would end before the first validation",
        )
        stride = self.data.window_stride
        _require(
            stride is None or stride <= self.model.max_len,
            "data.window_stride",
            stride,
            f"above model.max_len={self.model.max_len} it would leave items out between the windows",
        )


def validation_metrics(topk: Iterable[int]) -> list[str]:
    """Names that validation logs for these K, as `training.monitor_metric` takes them."""
    return [f"val_{name}@{k}" for k in topk for name in ("hit", "ndcg")] + ["val_mrr"]


@functools.cache
def _entries(schema: type = Config, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> its type, of every section and every setting, in the order of the schema."""
    entries: dict[str, Any] = {}
    for field in fields(schema):
        entries[prefix + field.name] = field.type
        if isinstance(field.type, type) and is_dataclass(field.type):
            entries |= _entries(field.type, f"{prefix}{field.name}.")
    return entries


def annotations() -> dict[str, Any]:
    """Every dotted key of the schema, such as `model.max_len`, with its type."""
    return {key: kind for key, kind in _entries().items() if not is_dataclass(kind)}


def sections() -> list[str]:
    """Every name that other keys are under, such as `model` and `data.columns`."""
    return [key for key, kind in _entries().items() if is_dataclass(kind)]


def known_keys() -> list[str]:
    """Every dotted key of the schema, such as `model.max_len`."""
    return list(annotations())


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
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(value_text(entry) for entry in value) + "]"
    return str(value)


def is_whole_number(key: str) -> bool:
    """Whether a setting takes whole numbers alone."""
    return annotations().get(key) is int


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


# Settings of earlier versions: since when they are gone, and what to do.
REMOVED = {
    "training.cpu_processes": "since November 2026: leave it out; a training step runs in one process, on all threads",
}


def unknown_key_message(key: str) -> str:
    """One line for a key that does not exist: what has become of it, or the nearest one that does."""
    if key in REMOVED:
        return f"there is no setting {key} {REMOVED[key]}"
    near = nearest_key(key)
    if key.split(".")[0] in ("experiment", "sweep"):  # what a preset has without the line, it has under its own name
        return f"there is no setting {key}: a file in configs/{key.split('.')[0]} begins with # @package _global_"
    return f"there is no setting {key}: {f'did you mean {near}?' if near else '--help lists every key'}"


def parse(composed: DictConfig) -> Config:
    """Check what Hydra composed and return it as plain dataclasses.

    Raises:
        UserError: for an unknown key, a wrong type, a value out of range, or settings that contradict each other.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), composed)
        config = OmegaConf.to_object(merged)
    except UserError:
        raise
    except ConfigKeyError as error:
        raise UserError(unknown_key_message(error.full_key or str(error.key))) from error
    except OmegaConfBaseException as error:
        raise UserError(_explained(error, composed)) from error
    assert isinstance(config, Config)
    return config


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
