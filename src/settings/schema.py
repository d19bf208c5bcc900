"""The schema of `configs/bert4rec.yaml`: type, range and meaning of each setting, once.

The YAML owns the values. It needs neither torch nor data, so that a mistake shows at once.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import values
from .fields import choice, choices, path, rate, section, setting, share, switch, whole

SCHEDULERS = ("none", "linear", "cosine")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "32", "16", "bf16", "64")
LOSSES = ("softmax", "sampled_softmax", "gbce")
OPTIMIZERS = ("adam", "adamw")
LINEAR_INITS = ("normal", "xavier")
LOGGERS = ("tensorboard", "csv", "mlflow", "wandb")
OWN_PART = "{_target_:MODULE.CLASS}"  # with its arguments as further entries
FORMATS = ("long", "wide")
PROTOCOLS = ("full", "uniform-100", "popularity-100")
DELIMITERS = {"tab": "\t", "space": " ", "comma": ",", "semicolon": ";", "bar": "|", "colon": ":"}
SPLITS = ("leave_one_out", "time", "files")
DOWNLOADS = ("ml-100k", "ml-1m", "ml-20m", "beauty", "steam")
VECTORS = ("embeddings", "similar", "user_vectors")  # what may be written together, in place of predictions


def _column(meaning: str, may_be_false: bool = False) -> Any:
    way_out = "give a name, or the place of a column, the first being 1" + (", or false" if may_be_false else "")
    return setting(
        meaning,
        way_out,
        lambda value: (
            value is None
            or (isinstance(value, str) and value != "")
            or (type(value) is int and value >= 1)
            or (may_be_false and value is False)
        ),
    )


def _delimiter(meaning: str, between: str) -> Any:
    return setting(
        meaning,
        f"give what stands between {between}, such as {', '.join(DELIMITERS)}, or null",
        lambda value: value != "" and not set(value) & set('"\r\n\x1f') and not value.isalnum(),
    )


def _vectors(meaning: str) -> Any:
    return path(
        meaning,
        "give the name of a file that ends in .parquet or .csv",
        lambda value: value.endswith((".parquet", ".csv")),
    )


@dataclass
class ColumnsConfig:
    user: Any = _column("null: user, user_id, userId, ... is recognised")
    item: Any = _column("null: item, item_id, movieId, ... is recognised")
    time: Any = _column(
        "null: time, timestamp, ... is recognised; false: the order of the rows counts", may_be_false=True
    )
    rating: Any = _column("only read for min_rating")


@dataclass
class DataConfig:
    data_dir: str = path("data folder")
    data_file: str = path("a table of user, item and, if there is one, time: docs/data.md lists the formats")
    items_file: str | None = path("CSV with the columns item and title: names the items in the report")
    columns: ColumnsConfig = section()
    delimiter: str | None = _delimiter(
        "between the fields of a text, such as ; or :: or tab (null: detected)", "two fields"
    )
    quotes: bool = setting("fields may be in double quotes (false: a quote is a plain letter)")
    list_delimiter: str | None = _delimiter(
        "between items that share a cell, such as space or , (null: one item a cell)", "two items of a cell"
    )
    history_lines: bool = setting("true: each line is a user and all items, oldest first, without a header")
    time_format: str | None = setting(
        "of times as text, such as %d.%m.%Y %H:%M (null: numbers and ISO dates)",
        "give year, month and day as Python's strptime has them, such as %d.%m.%Y %H:%M",
        values.is_time_format,
    )
    encoding: str = setting("of a text", "give utf-8, latin-1, cp949, utf-16 or the like", values.is_encoding)
    on_bad_rows: str = choice(
        "rows without an id, with an unusable time, ...: error, or drop, which reports them", ("error", "drop")
    )
    min_rating: float | None = setting(
        "rows rated lower are left out", "give a number, or null to leave ratings alone", math.isfinite
    )
    deduplicate: bool = setting("true: an item that follows itself in a history counts once")
    download: str | None = choice(
        "ml-100k, ml-1m, ml-20m, beauty or steam: fetched into data_dir, in place of data_file", DOWNLOADS
    )
    download_url: str | None = path("another address of that file")
    cache: bool = setting("keep the prepared data in output_dir/cache, where the next run finds it")
    generate_sample: bool = setting("write the built-in sample data set to data_dir/data_file first")
    batch_size: int = whole("sequences in a training step, on each device", least=1)
    min_interactions: int = whole("users with fewer are left out of training", least=1)
    min_item_interactions: int = whole(
        "items with fewer are left out, in turn with the users: 5 and 5 give the 5-core", least=1
    )
    holdout: int = setting(
        "2: last item tests, the one before validates; 1: last item validates; 0: all train",
        "give 2 (a test and a validation item), 1 (a validation item) or 0 (nothing)",
        (0, 1, 2).__contains__,
    )
    split: str = choice(
        "targets (leave_one_out: each user's last items | time: what follows one cut | files: own tables)",
        SPLITS,
    )
    split_at: Any = setting(
        "cut of split=time: a date, a Unix time, or the share of interactions before it (null: 0.9)",
        "give a date such as 2024-01-31, a Unix time, or a share such as 0.9",
        lambda value: value is None or values.is_cut(value),
    )
    split_targets: Any = setting(
        "targets of a user by split=time or files (first | all | those within so many days of the cut)",
        "give first, all, or a number of days above 0",
        lambda value: value in ("first", "all") or (type(value) in (int, float) and 0.0 < value < math.inf),
    )
    validation_file: str | None = path("table of split=files with the items that validate, in data_dir")
    test_file: str | None = path("table of split=files with the items that test, in data_dir")
    window_stride: int | None = whole(
        "null: the last max_len items; n: windows of max_len items, n apart, over the whole history", least=1
    )
    num_workers: int = whole("DataLoader worker processes of training on a GPU (with data.on_device=false)", least=0)
    on_device: Any = switch("training data and masks on the device, in few fixed shapes (auto: on CUDA | true | false)")

    def __post_init__(self) -> None:
        for name in ("delimiter", "list_delimiter"):  # as one types it in a shell
            typed = getattr(self, name)
            if isinstance(typed, str):
                setattr(self, name, DELIMITERS.get(typed.lower(), typed.replace("\\t", "\t")))
        if isinstance(self.split_at, str) and values.is_number(self.split_at):
            self.split_at = float(self.split_at)
        if isinstance(self.split_targets, str) and values.is_number(self.split_targets):
            self.split_targets = float(self.split_targets)

    @property
    def path(self) -> Path:
        """Where the table is."""
        return Path(self.data_dir).expanduser() / (f"{self.download}.csv" if self.download else self.data_file)

    @property
    def split_options(self) -> dict[str, Any]:
        """Arguments of `src.data.splits.SplitOptions`."""
        folder = Path(self.data_dir).expanduser()
        files = {"validation": self.validation_file, "test": self.test_file}
        paths = {name: None if file is None else folder / Path(file).expanduser() for name, file in files.items()}
        return {"kind": self.split, "at": self.split_at, "targets": self.split_targets, **paths}

    @property
    def table_options(self) -> dict[str, Any]:
        """Arguments of `src.data.table.TableOptions`."""
        names = ("delimiter", "quotes", "list_delimiter", "history_lines", "time_format", "encoding", "on_bad_rows")
        others = ("min_rating", "deduplicate")
        return {**vars(self.columns), **{name: getattr(self, name) for name in names + others}}


@dataclass
class ModelConfig:
    hidden_units: int = whole("hidden width (a multiple of num_heads)", least=1)
    num_heads: int = whole("attention heads per block", least=1)
    num_layers: int = whole("transformer blocks", least=1)
    max_len: int = whole("maximum input length, including the [MASK] to predict", least=2)
    dropout_rate: float = rate("dropout after embedding, on attention, in feed-forward, on residuals")
    mask_prob: float = setting(
        "probability that an item becomes a training target",
        "give a number above 0 and not above 1",
        lambda value: 0.0 < value <= 1.0,
    )
    share_embeddings: bool = setting("tie the output layer to the item embedding")
    mask_token_share: float = share("share of targets replaced by [MASK]")
    random_token_share: float = share("share of targets replaced by a random item; the rest stay")
    mask_last_share: float = share("share of sequences with only the last item masked")
    attention_dropout_rate: float | None = rate("dropout on the attention (null: dropout_rate)")
    ffn_dropout_rate: float | None = rate("dropout inside the feed-forward network (null: dropout_rate)")
    embedding_norm_first: bool = setting("LayerNorm before the embedding's dropout (true: the paper's code)")
    output_transform: bool = setting("Linear, GELU, LayerNorm before the output layer (true: the paper's code)")
    output_bias: bool = setting("bias per item in the output layer (true: the paper)")
    linear_init: str = choice("initial linear weights (normal: N(0, 0.02) | xavier: trains faster)", LINEAR_INITS)


@dataclass
class TrainingConfig:
    num_epochs: int = whole("passes over the training sequences", least=1)
    max_steps: int | None = whole("stop after this many optimiser steps (null: no limit)", least=1)
    lr: float = setting("learning rate", "give a number above 0", lambda value: 0.0 < value < math.inf)
    loss: str = choice("training loss (softmax: all items | sampled_softmax, gbce: sampled negatives)", LOSSES)
    num_negatives: int = whole("sampled negatives, shared by all targets of a step", least=1)
    negative_power: float = share("sample items by count ** power (0: uniform | 1: by popularity)")
    gbce_calibration: float = share("t of gSASRec (0: binary cross entropy | 1: calibrated probabilities)")
    optimizer: str = choice("optimiser (adam: weight_decay is L2 | adamw: weight_decay is decoupled)", OPTIMIZERS)
    weight_decay: float = setting(
        "weight decay at each step", "give 0 or a number above", lambda value: 0.0 <= value < math.inf
    )
    decay_norm_and_bias: bool = setting("apply weight decay to LayerNorm and biases too")
    scheduler: str = choice("learning-rate decay to zero at the last step (none | linear | cosine)", SCHEDULERS)
    warmup_steps: int = whole("steps of linear learning-rate warm-up", least=0)
    gradient_clip: float | None = setting(
        "maximum gradient norm (null: no clipping)",
        "give a number above 0, or null for none",
        lambda value: 0.0 < value < math.inf,
    )
    monitor_metric: str = setting("metric that chooses best.ckpt (val_ndcg@K | val_hit@K | val_mrr)")
    early_stopping: bool = setting("stop when monitor_metric stops improving")
    early_stopping_patience: int = whole("validations without improvement before training stops", least=1)
    val_check_interval: float = setting(
        "epochs between validations (whole number | below 1: fraction of an epoch)",
        "a whole number n means every n epochs, a fraction below 1 means that part of an epoch",
        values.is_interval,
    )
    accelerator: str = setting("device type (auto | cpu | gpu | tpu | mps)")
    devices: Any = setting(
        "devices per machine (auto | number | list of indices); see docs/scale.md",
        "give auto, a number of devices, or a list of device indices",
        values.are_devices,
    )
    num_nodes: int = whole("machines", least=1)
    strategy: str = setting("distribution strategy, as in Lightning (auto | ddp | ...)")
    precision: str = choice(
        "floating-point precision, as in Lightning (32-true | bf16-mixed | 16-mixed | ...)", PRECISIONS
    )
    compile: Any = switch("torch.compile in training (auto: on CUDA | true | false); needs data.on_device")
    cuda_graph: Any = switch("steps of training as CUDA graphs (auto: on one GPU | true | false); needs data.on_device")
    steps_per_execution: Any = setting(
        "steps of training from one call of Lightning's to the next (auto: 16 with cuda_graph, else 1)",
        "give auto or a whole number of at least 1",
        lambda value: value == "auto" or (type(value) is int and value >= 1),
    )
    tf32: bool = setting("TF32 for float32 products of training on CUDA: faster, 10 bits of mantissa")
    deterministic: bool = setting("bit-identical repeats on a GPU too, slower; a CPU's are anyway")
    checkpoint_every_n_steps: int | None = whole("write last.ckpt every n steps too (null: each epoch only)", least=1)
    resume: Any = path(
        "resume from last.ckpt (true | false | auto: if it exists | a checkpoint's path)",
        "give true, false, auto or a checkpoint path",
        lambda value: isinstance(value, bool | str),
    )
    init_from: str | None = path("checkpoint whose weights a new run starts from, also on a later table (null: none)")
    logger: list[Any] = setting(
        "loggers (tensorboard, csv, mlflow, wandb, or your own by _target_ | []: none)",
        f"choose from {', '.join(LOGGERS)} and {OWN_PART}, or give [] for none",
        lambda value: all(entry in LOGGERS or values.is_own_part(entry) for entry in value),
    )
    callbacks: list[Any] = setting(
        "your own Lightning callbacks by _target_ (docs/tour.md)",
        f"give a list of {OWN_PART}",
        lambda value: all(map(values.is_own_part, value)),
    )


@dataclass
class EvaluationConfig:
    topk: list[int] = setting(
        "K of HIT@K and NDCG@K",
        "give whole numbers of at least 1, such as [5,10]",
        lambda value: min(value, default=0) >= 1,
    )
    filter_seen: bool = setting("exclude items of the user's history from the candidates")
    protocols: list[str] = choices(
        "rankings to compute (full | uniform-100 | popularity-100)",
        PROTOCOLS,
        f"choose full and, if you like, more of {', '.join(PROTOCOLS)}",
        required=("full",),
    )
    batch_size: int = whole("users per batch; does not change the figures", least=1)
    bootstrap: int = whole("resamples of users for 95% intervals (0: no intervals)", least=0)
    report: bool = setting("write report.html")


@dataclass
class InferenceConfig:
    evaluate: bool = setting("evaluate each user's last item instead of predicting")
    checkpoint_path: Any = path(
        "checkpoint to use (null: last.ckpt of output_dir), or several: [a.ckpt,b.ckpt]",
        "give the path of a checkpoint, or a list of them, such as [a.ckpt,b.ckpt]",
        lambda value: value is None or isinstance(value, str) or values.are_paths(value),
    )
    output_path: str | None = path("output file, CSV or .parquet (null: in output_dir)")
    users: str | None = path("file of users to predict for, in order (null: all)")
    history: str | None = path("table of histories to predict from (null: data_dir/data_file)")
    candidates: str | None = path("file of items that may be recommended (null: all)")
    exclude: str | None = path("file of items never to recommend (null: none)")
    export: str | None = path(
        "write the model to this .onnx file instead (null: predict)",
        "give the name of a file that ends in .onnx",
        lambda value: value.endswith(".onnx"),
    )
    embeddings: str | None = _vectors("write item ids and vectors to this .parquet or .csv instead (null: predict)")
    user_vectors: str | None = _vectors("write user ids and vectors to this .parquet or .csv instead (null: predict)")
    similar: str | None = path("file of items: write their topk most similar items instead (null: predict)")
    serve: bool = setting("answer HTTP requests instead: docs/service.md (false: predict)")
    host: str = setting("address of the service (127.0.0.1: this machine only)", "give an address", bool)
    port: int = setting("port of the service (0: a free one)", "give a whole number from 0 to 65535", values.is_port)
    format: str = choice("rows of the table (long: one per item | wide: one per user, items between blanks)", FORMATS)
    columns: list[str] = setting(
        "names of the table's columns, rank and score with with_scores only",
        "give names of user and item, or of user, item, rank and score, without commas and quotes",
        values.are_column_names,
    )
    topk: int = whole("recommended items per user", least=1)
    exclude_seen: bool = setting("exclude seen items")
    with_scores: bool = setting("add the columns rank and score")
    batch_size: int = whole("users per batch (CPU: up to four times); does not change predictions", least=1)

    def __post_init__(self) -> None:
        self.checkpoint_path = values.listed(self.checkpoint_path)  # the command line gives it as one text

    def checkpoints(self, otherwise: Path) -> list[Path]:
        """The checkpoints to use, `otherwise` if none is named; several are an ensemble."""
        named = self.checkpoint_path or otherwise
        return [Path(path).expanduser() for path in (named if isinstance(named, list) else [named])]

    @property
    def writes_vectors(self) -> bool:
        """Whether vectors, or what follows from them, are written in place of predictions."""
        return any(getattr(self, name) is not None for name in VECTORS)

    @property
    def needs_histories(self) -> bool:
        """Whether histories of users are read."""
        return self.export is None and not self.serve and (self.user_vectors is not None or not self.writes_vectors)


@dataclass
class Config:
    seed: int = setting(
        "seeds weights, masks, shuffling and dropout",
        "give a whole number from 0 to 4294967295",
        lambda value: 0 <= value < 2**32,
    )
    auto: Any = setting(
        "choose by the data (true: model and batch size | recipe: windows and loss | false: nothing)",
        "give true, recipe or false",
        lambda value: value == "recipe" or isinstance(value, bool),
    )
    native: Any = switch("compiled CPU kernels (auto: if a C compiler exists | true: required | false: plain PyTorch)")
    output_dir: str = path("folder for checkpoints, logs, metrics.json and predictions.csv")
    data: DataConfig = section()
    model: ModelConfig = section()
    training: TrainingConfig = section()
    evaluation: EvaluationConfig = section()
    inference: InferenceConfig = section()
