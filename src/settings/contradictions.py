"""Settings that do not go together, each possible by itself."""

from collections.abc import Iterable, Iterator

from .schema import VECTORS, Config, DataConfig, InferenceConfig

ROLES = ("user", "item", "time", "rating")


def contradictions(config: Config) -> Iterator[tuple[str, object, str]]:
    """A key, its value, and why it cannot be beside the others."""
    yield from _contradictions_in_data(config.data)
    yield from _contradictions_in_split(config.data)
    if config.data.split_targets != "first" and set(config.evaluation.protocols) != {"full"}:
        why = "several targets of a user are ranked among all items alone; use evaluation.protocols=[full]"
        yield "data.split_targets", config.data.split_targets, why
    model, training = config.model, config.training
    if model.hidden_units % model.num_heads:
        yield "model.hidden_units", model.hidden_units, f"it must be divisible by model.num_heads={model.num_heads}"
    if model.mask_token_share + model.random_token_share > 1.0 + 1e-9:
        why = f"with model.mask_token_share={model.mask_token_share} it adds up to more than 1"
        yield "model.random_token_share", model.random_token_share, why
    if training.loss != "softmax" and (training.weight_decay > 0.0 or training.optimizer != "adam"):
        why = (
            "it updates only the rows of items that a step touches, which needs training.optimizer=adam and"
            " training.weight_decay=0.0"
        )
        yield "training.loss", training.loss, why
    yield from _contradictions_in_inference(config.inference)
    metrics = validation_metrics(config.evaluation.topk)
    if training.monitor_metric not in metrics:
        why = (
            f"evaluation.topk={list(config.evaluation.topk)} gives {', '.join(metrics)}; add"
            f" training.monitor_metric={metrics[1]}"
        )
        yield "training.monitor_metric", training.monitor_metric, why
    if training.early_stopping and config.data.holdout == 0:
        why = "data.holdout=0 leaves nothing to validate on; use data.holdout=1 or 2"
        yield "training.early_stopping", True, why
    if config.data.holdout and training.val_check_interval > training.num_epochs:
        why = f"training.num_epochs={training.num_epochs} would end before the first validation"
        yield "training.val_check_interval", f"{training.val_check_interval:g}", why
    if training.compile is True and config.data.on_device is False:
        yield "training.compile", True, "data.on_device=false makes batches of ever new shapes; use data.on_device=true"
    if training.cuda_graph is True and config.data.on_device is False:
        why = "data.on_device=false makes batches of ever new shapes; use data.on_device=true"
        yield "training.cuda_graph", True, why
    takes_steps = training.cuda_graph is True or training.steps_per_execution not in ("auto", 1)
    if takes_steps and training.precision == "16-mixed":
        name = "cuda_graph" if training.cuda_graph is True else "steps_per_execution"
        why = "gradients of training.precision=16-mixed are scaled between steps; use bf16-mixed"
        yield f"training.{name}", getattr(training, name), why
    if config.data.window_stride is not None and config.data.window_stride > model.max_len:
        why = f"above model.max_len={model.max_len} it would leave items out between the windows"
        yield "data.window_stride", config.data.window_stride, why


def _contradictions_in_data(data: DataConfig) -> Iterator[tuple[str, object, str]]:
    given = [column for role in ROLES if (column := getattr(data.columns, role)) not in (None, False)]
    places = [column for column in given if type(column) is int]
    are_ids_places = type(data.columns.user) is int and type(data.columns.item) is int
    if places and (len(places) < len(given) or not are_ids_places):
        why = "without a header line user and item need places, and no column a name"
        yield "data.columns", given, why
    if data.history_lines and data.list_delimiter is not None:
        why = "it goes without data.list_delimiter; data.delimiter says what stands between the items"
        yield "data.history_lines", True, why
    if data.history_lines and (given or data.min_rating is not None):
        why = "a line has a user and items alone, so it goes without data.columns and data.min_rating"
        yield "data.history_lines", True, why
    if data.download_url is not None and data.download is None:
        yield "data.download_url", data.download_url, "it is the address of what data.download names"
    if data.download and data.generate_sample:
        why = "data.generate_sample=true makes another table; choose one of them"
        yield "data.download", data.download, why


def _contradictions_in_split(data: DataConfig) -> Iterator[tuple[str, object, str]]:
    if data.split != "leave_one_out" and data.holdout == 0:
        yield "data.split", data.split, "data.holdout=0 leaves nothing to evaluate; use data.holdout=1 or 2"
    if data.split == "time" and data.columns.time is False:
        yield "data.split", data.split, "data.columns.time=false leaves no times to cut at"
    if data.split_at is not None and data.split != "time":
        yield "data.split_at", data.split_at, "it is the cut of data.split=time; add that"
    if data.split_targets != "first" and data.split == "leave_one_out":
        yield "data.split_targets", data.split_targets, "it goes with data.split=time or files; add one of them"
    if data.split_targets not in ("first", "all") and data.split == "files":
        yield "data.split_targets", data.split_targets, "days are counted from the cut of data.split=time; use all"
    files = {"validation_file": data.validation_file, "test_file": data.test_file}
    if data.split != "files":
        for name, file in files.items():
            if file is not None:
                yield f"data.{name}", file, "it is a table of data.split=files; add that"
    elif data.holdout and None in (missing := [*files.values()][: data.holdout]):
        name = [*files][missing.index(None)]
        yield (
            "data.split",
            data.split,
            f"with data.holdout={data.holdout} it needs data.{name}"
            + (", or data.holdout=1 for a validation alone" if name == "test_file" else ""),
        )
    elif data.holdout == 1 and data.test_file is not None:
        yield "data.test_file", data.test_file, "data.holdout=1 has no test; use data.holdout=2"


def _contradictions_in_inference(inference: InferenceConfig) -> Iterator[tuple[str, object, str]]:
    users, items = ("users", "history"), ("candidates", "exclude")
    unused = [*(() if inference.user_vectors else users), *(() if inference.similar else items)]
    jobs: dict[str, tuple[str, ...]] = {
        "evaluate": ("serve", "export", *VECTORS, *users, *items),
        "serve": ("export", *VECTORS, *users, *items),
        "export": (*VECTORS, *users, *items),
        **dict.fromkeys(VECTORS, tuple(unused)),
    }
    for job, others in jobs.items():
        beside = [f"inference.{name}" for name in others if getattr(inference, name) not in (None, False)]
        if getattr(inference, job) and beside:
            yield f"inference.{job}", getattr(inference, job), f"it goes without {' and '.join(beside)}"
    if isinstance(inference.checkpoint_path, list) and len(inference.checkpoint_path) > 1:
        for job in ("export", *VECTORS):
            if (file := getattr(inference, job)) is not None:
                yield f"inference.{job}", file, "it takes one model; give inference.checkpoint_path one checkpoint"
    if inference.user_vectors is not None and inference.user_vectors == inference.embeddings:
        yield "inference.user_vectors", inference.user_vectors, "inference.embeddings would write to the same file"
    if inference.with_scores and inference.format == "wide":
        yield "inference.format", "wide", "a row for each user has no place for inference.with_scores=true"
    if inference.with_scores and len(inference.columns) < 4:
        why = "inference.with_scores=true needs four names, of user, item, rank and score"
        yield "inference.columns", inference.columns, why


def validation_metrics(topk: Iterable[int]) -> list[str]:
    """Names that validation logs for these K, as `training.monitor_metric` takes them."""
    return [f"val_{name}@{k}" for k in topk for name in ("hit", "ndcg")] + ["val_mrr"]
