"""The YAML, its presets and its schema: values, types, ranges, cross-checks, and that every setting arrives."""

import copy
import functools
import inspect
import re
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from src.command_line import cli
from src.command_line.words import quote_text
from src.data import BERT4RecDataModule
from src.data.splits import SplitOptions
from src.data.table import TableOptions
from src.errors import UserError
from src.models import BERT4Rec
from src.runs.folder import RunFolder
from src.settings import Config, known_keys, parse
from src.settings.contradictions import validation_metrics
from src.settings.keys import unknown_key_message, value_text
from src.settings.parse import check
from src.training import build
from src.training.train import train
from tests.models.test_bert4rec import write_table

PRESETS = cli.CONFIGS / "experiment"


def composed(*overrides: str) -> DictConfig:
    """The configuration as the scripts get it from these words on the command line."""
    with initialize_config_dir(config_dir=str(cli.CONFIGS), version_base="1.3"):
        return compose("bert4rec", overrides=list(overrides))


@functools.cache
def default() -> DictConfig:
    return composed()


def changed(settings: dict[str, Any]) -> Config:
    """The defaults with these dotted keys changed, parsed."""
    config = copy.deepcopy(default())
    for key, value in settings.items():
        OmegaConf.update(config, key, value, force_add=True)
    return parse(config)


@functools.cache
def parsed() -> Config:
    return parse(default())


def with_value(key: str, value: Any) -> Config:
    """The defaults with one value in place of another, checked: a tenth of the time that OmegaConf takes for all."""
    config = copy.deepcopy(parsed())
    section, _, name = key.rpartition(".")
    setattr(attrgetter(section)(config) if section else config, name, value)
    check(config)
    return config


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in settings.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def refusal(settings: dict[str, Any]) -> str:
    """The one line with which these settings are refused."""
    with pytest.raises(UserError) as caught:
        changed(settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


SPEC = {
    "data.data_dir": "~/data/train/",
    "data.data_file": "train_ratings.csv",
    "data.batch_size": 128,
    "data.min_interactions": 3,
    "data.num_workers": 4,
    "model.hidden_units": 64,
    "model.num_heads": 4,
    "model.num_layers": 3,
    "model.max_len": 50,
    "model.dropout_rate": 0.3,
    "model.mask_prob": 0.15,
    "model.share_embeddings": True,
    "training.num_epochs": 300,
    "training.lr": 0.0015,
    "training.weight_decay": 0.0,
    "training.monitor_metric": "val_ndcg@10",
    "training.early_stopping": False,
    "training.early_stopping_patience": 20,
    "training.accelerator": "auto",
    "training.precision": "32-true",
}
# All defaults as they are written.
DEFAULTS = {
    key: value
    for key, value in flat(OmegaConf.to_container(OmegaConf.load(cli.CONFIGS / "bert4rec.yaml"))).items()  # type: ignore[arg-type]
    if key.split(".")[0] not in ("defaults", "hydra")
}

SIZES = ("hidden_units", "num_heads", "num_layers", "max_len")


def sizes(*values: int) -> dict[str, int]:
    return {f"model.{key}": value for key, value in zip(SIZES, values, strict=True)}


def paper(
    data_file: str, max_len: int, stride: int, mask_prob: float, dropout: float, attention: float
) -> dict[str, Any]:
    return sizes(64, 2, 2, max_len) | {
        "data.data_file": data_file,
        "data.batch_size": 256,
        "data.window_stride": stride,
        "model.dropout_rate": dropout,
        "model.attention_dropout_rate": attention,
        "model.ffn_dropout_rate": 0.0,
        "model.mask_prob": mask_prob,
        "model.mask_token_share": 1.0,
        "model.random_token_share": 0.0,
        "model.mask_last_share": pytest.approx(1 / 11, abs=1e-4),
        "model.embedding_norm_first": True,
        "model.output_transform": True,
        "model.output_bias": True,
        "training.num_epochs": 100000,
        "training.max_steps": 400000,
        "training.lr": 0.0001,
        "training.optimizer": "adamw",
        "training.weight_decay": 0.01,
        "training.decay_norm_and_bias": False,
        "training.scheduler": "linear",
        "training.warmup_steps": 100,
        "training.gradient_clip": 5.0,
    }


def seed_preset(data_file: str, max_len: int, dropout: float) -> dict[str, Any]:
    return sizes(256, 4, 2, max_len) | {
        "data.data_file": data_file,
        "model.dropout_rate": dropout,
        "model.mask_prob": 0.15,
        "training.lr": 0.001,
        "training.num_epochs": 200,
    }


# What other documents say of presets: the specification and the paper.
EXPECTED: dict[str, dict[str, Any]] = {
    "auto": {"auto": True},
    "small": sizes(32, 2, 2, 30),
    "medium": sizes(64, 4, 3, 50),
    "large": sizes(128, 8, 4, 200),
    "ml-1m": seed_preset("ml-1m.csv", 200, 0.2),
    "steam": seed_preset("steam.csv", 50, 0.5),
    "paper/beauty": paper("beauty.csv", 50, 5, 0.6, 0.5, 0.2),
    "paper/steam": paper("steam.csv", 50, 25, 0.4, 0.1, 0.1),
    "paper/ml-1m": paper("ml-1m.csv", 200, 100, 0.2, 0.2, 0.2),
    "paper/ml-20m": paper("ml-20m.csv", 200, 100, 0.2, 0.1, 0.1),
}


def preset_names() -> list[str]:
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))


def test_defaults() -> None:
    assert flat(asdict(parse(default()))) == DEFAULTS
    assert DEFAULTS | SPEC == DEFAULTS


def test_schema_and_yaml_have_the_same_keys() -> None:
    assert sorted(known_keys()) == sorted(DEFAULTS)


@pytest.mark.parametrize("name", preset_names())
def test_preset(name: str) -> None:
    written = flat(OmegaConf.to_container(OmegaConf.load(PRESETS / f"{name}.yaml")))  # type: ignore[arg-type]
    values = flat(asdict(parse(composed(f"experiment={name}"))))
    assert values == DEFAULTS | EXPECTED.get(name, written | {"data.data_dir": values["data.data_dir"]})


def test_sample_preset_keeps_all_its_files_in_a_folder_of_its_own() -> None:
    config = parse(composed("experiment=sample"))
    assert config.data.generate_sample
    assert config.output_dir == "saved/sample"
    assert parse(composed("experiment=sample", "output_dir=elsewhere")).data.data_dir == "elsewhere/data"


@pytest.mark.parametrize("name", preset_names())
def test_preset_says_how_it_is_run(name: str) -> None:
    comments = [line for line in (PRESETS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(re.search(rf"python train_bert4rec\.py experiment={re.escape(name)}( |$)", line) for line in comments)


@pytest.mark.parametrize("name", ["best/ml-1m", "sample"])
def test_a_preset_gives_way_to_the_command_line(name: str) -> None:
    config = parse(composed(f"experiment={name}", "training.lr=0.5", "model.num_layers=5"))
    assert (config.training.lr, config.model.num_layers) == (0.5, 5)


TOO_FAR: dict[str, list[Any]] = {
    "seed": [-1, 2**32],
    "data.batch_size": [0],
    "data.min_interactions": [0],
    "data.min_item_interactions": [0],
    "data.columns.user": [0, -1, "", 1.5, True, False],
    "data.columns.time": [0, "", True],
    "data.columns.rating": [False],
    "data.encoding": ["utf-9", "hex", "", "utf\x00", "undefined"],
    "data.on_bad_rows": ["skip", "Drop"],
    "data.min_rating": [float("nan"), float("inf")],
    "data.time_format": ["", "day", "%H:%M", "%Y-%m"],
    "data.download": ["ml-2m"],
    "data.download_url": ["http://127.0.0.1/ml-1m.zip"],
    "data.num_workers": [-1],
    "data.window_stride": [0, 51],
    "data.holdout": [-1, 3],
    "data.split": ["random", "Time"],
    "data.split_targets": ["last", 0, -1.0, float("inf"), float("nan"), True, None, [1]],
    "inference.checkpoint_path": [3, True, ["a", 1], []],
    "data.split_at": [0, 0.0, float("inf"), float("nan"), True, "soon", "2024-13-01", "0001-01-01", [1], "2024-01-31"],
    "data.validation_file": ["v.csv"],
    "model.hidden_units": [0, 63],
    "model.num_heads": [0],
    "model.num_layers": [0],
    "model.max_len": [1],
    "model.dropout_rate": [-0.1, 1.0],
    "model.attention_dropout_rate": [-0.1, 1.0],
    "model.ffn_dropout_rate": [-0.1, 1.0],
    "model.mask_prob": [0.0, 1.1],
    "model.mask_token_share": [-0.1, 1.1],
    "model.random_token_share": [-0.1, 0.21, 1.1],
    "model.mask_last_share": [-0.1, 1.1],
    "training.num_epochs": [0],
    "training.max_steps": [0],
    "training.num_nodes": [0],
    "training.checkpoint_every_n_steps": [0],
    "training.lr": [0.0, -0.1, float("inf"), float("nan")],
    "model.linear_init": ["banana"],
    "training.optimizer": ["sgd"],
    "training.weight_decay": [-0.1, float("inf"), float("nan")],
    "training.scheduler": ["step"],
    "training.warmup_steps": [-1],
    "training.gradient_clip": [0.0, -1.0, float("inf")],
    "training.monitor_metric": ["val_loss", "val_ndcg@5", "ndcg@10"],
    "training.early_stopping_patience": [0],
    "training.val_check_interval": [0.0, -1.0, 1.5, 2.25, float("inf"), float("nan")],
    "training.devices": [0, -1, True, "two", None, [], [True], [0, "1"]],
    "native": [0, 1, "yes", None],
    "training.precision": ["banana"],
    "training.resume": [None, 1, ["a"]],
    "evaluation.batch_size": [0],
    "evaluation.topk": [[], [0], [10, -5]],
    "evaluation.bootstrap": [-1],
    "training.logger": [["banana"], ["csv", "CSV"], ["csv", {"target": "a.B"}], [1]],
    "training.callbacks": [["a.B"], [{"_target_": 1}], [{"every": 2}], [None]],
    "evaluation.protocols": [[], ["uniform-100"], ["full", "uniform-99"]],
    "inference.host": [""],
    "inference.port": [-1, 65536],
    "inference.format": ["tall"],
    "inference.columns": [[], ["user"], ["a", "b", "c"], ["a", "a"], ["a", ""], ["a", "b,c"], ["a", 'b"']],
    "inference.topk": [0],
    "inference.export": ["model.pt"],
    "inference.embeddings": ["items.npy", "items"],
    "inference.user_vectors": ["users.npy"],
    "inference.batch_size": [0],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in TOO_FAR.items() for value in values])
def test_value_out_of_range_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        with_value(key, value)
    message = str(caught.value)
    assert message.startswith(f"{key}={value_text(value)} is not possible: ")
    if value is TOO_FAR[key][0]:
        assert refusal({key: value}) == message


JUST_RIGHT: dict[str, list[Any]] = {
    "seed": [0, 2**32 - 1],
    "data.batch_size": [1],
    "data.min_interactions": [1],
    "data.columns.user": ["userId", "1"],
    "data.columns.time": ["when", False],
    "data.delimiter": [";", "::", "\t", ","],
    "data.list_delimiter": [" ", "|"],
    "data.time_format": ["%d.%m.%Y %H:%M", "%m %d, %Y"],
    "data.encoding": ["latin-1", "cp949"],
    "data.on_bad_rows": ["drop"],
    "data.min_rating": [-1.0, 0.0, 4.5],
    "data.download": ["ml-100k", "ml-1m", "ml-20m", "beauty", "steam"],
    "data.num_workers": [0],
    "data.window_stride": [1, 50],
    "data.holdout": [0, 1],
    "model.hidden_units": [4],
    "model.num_heads": [1, 64],
    "model.max_len": [2],
    "model.dropout_rate": [0.0, 0.99],
    "model.attention_dropout_rate": [0.0],
    "model.mask_prob": [1.0],
    "model.random_token_share": [0.0, 0.2],
    "model.mask_last_share": [1.0],
    "training.weight_decay": [0.5],
    "training.val_check_interval": [0.01, 0.5, 1.0, 2.0, 7],
    "training.devices": ["auto", 2, [0], [0, 3]],
    "native": ["auto", True, False],
    "training.precision": ["16-mixed", "bf16-mixed", "bf16-true", "64-true"],
    "training.monitor_metric": ["val_hit@10", "val_mrr"],
    "training.resume": [True, "some/last.ckpt"],
    "training.init_from": ["some/last.ckpt"],
    "training.logger": [[], ["csv", {"_target_": "a.B", "deep": {"er": [1, None]}}]],
    "training.callbacks": [[{"_target_": "a.B"}]],
    "inference.columns": [["customer id", "prediction"], ["u", "i", "r", "s"]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in JUST_RIGHT.items() for value in values])
def test_value_at_the_edge_of_its_range_is_taken(key: str, value: Any) -> None:
    config = changed({key: value}) if value is JUST_RIGHT[key][0] else with_value(key, value)
    assert flat(asdict(config)) == DEFAULTS | {key: value}


@pytest.mark.parametrize(
    ("settings", "key", "rule"),
    [
        ({"model.hidden_units": 30}, "model.hidden_units=30", "divisible by model.num_heads=4"),
        ({"model.num_heads": 5}, "model.hidden_units=64", "divisible by model.num_heads=5"),
        ({"model.mask_token_share": 0.95}, "model.random_token_share=0.1", "model.mask_token_share=0.95"),
        ({"training.compile": True, "data.on_device": False}, "training.compile=true", "data.on_device=true"),
        ({"training.cuda_graph": True, "data.on_device": False}, "training.cuda_graph=true", "data.on_device=true"),
        ({"training.cuda_graph": True, "training.precision": "16-mixed"}, "training.cuda_graph=true", "use bf16-mixed"),
        (
            {"training.steps_per_execution": 4, "training.precision": "16-mixed"},
            "training.steps_per_execution=4",
            "use bf16-mixed",
        ),
        ({"data.holdout": 0, "training.early_stopping": True}, "training.early_stopping=true", "data.holdout=0"),
        ({"data.holdout": 0, "data.split": "time"}, "data.split=time", "data.holdout=0 leaves nothing"),
        ({"data.columns.time": False, "data.split": "time"}, "data.split=time", "data.columns.time=false leaves no"),
        ({"data.split_at": 0.8}, "data.split_at=0.8", "add that"),
        ({"data.test_file": "t.csv"}, "data.test_file=t.csv", "data.split=files"),
        ({"data.split": "files"}, "data.split=files", "needs data.validation_file"),
        (
            {"data.split": "files", "data.validation_file": "v"},
            "data.split=files",
            "needs data.test_file, or data.hold",
        ),
        (
            {"data.split": "files", "data.validation_file": "v", "data.test_file": "t", "data.holdout": 1},
            "data.test_file=t",
            "data.holdout=1 has no test",
        ),
        ({"data.window_stride": 9, "model.max_len": 8}, "data.window_stride=9", "model.max_len=8"),
        ({"data.columns.user": 1}, "data.columns=[1]", "user and item need places"),
        ({"data.columns.user": 1, "data.columns.item": "film"}, "data.columns=[1,film]", "no column a name"),
        ({"data.columns.time": 4}, "data.columns=[4]", "user and item need places"),
        ({"data.history_lines": True, "data.columns.user": "a"}, "data.history_lines=true", "without data.columns"),
        ({"data.history_lines": True, "data.min_rating": 3.0}, "data.history_lines=true", "and data.min_rating"),
        ({"data.history_lines": True, "data.list_delimiter": ","}, "data.history_lines=true", "data.list_delimiter"),
        ({"data.download": "ml-1m", "data.generate_sample": True}, "data.download=ml-1m", "data.generate_sample"),
        ({"inference.with_scores": True, "inference.format": "wide"}, "inference.format=wide", "with_scores"),
        ({"inference.with_scores": True, "inference.columns": ["a", "b"]}, "inference.columns=[a,b]", "four names"),
        ({"evaluation.topk": [5]}, "training.monitor_metric=val_ndcg@10", "val_hit@5, val_ndcg@5, val_mrr"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], key: str, rule: str) -> None:
    message = refusal(settings)
    assert message.startswith(f"{key} is not possible: ")
    assert rule in message


@pytest.mark.parametrize(
    ("key", "other", "kind"),
    [
        ("evaluation.topk", "seed", "a list, evaluation.topk=[42]"),
        ("training.logger", "output_dir", "a list"),
        ("data.quotes", "output_dir", "true or false"),
        ("model.dropout_rate", "data.encoding", "a number"),
        ("data.batch_size", "model.dropout_rate", "a whole number"),
        ("training.num_epochs", "output_dir", "a whole number"),
    ],
)
def test_the_value_of_another_setting_has_to_fit_too(key: str, other: str, kind: str) -> None:
    message = refusal({key: f"${{{other}}}"})
    assert message.startswith(f"{key}=")
    assert f"give {kind}" in message


@pytest.mark.parametrize("key", ["data.delimiter", "data.list_delimiter"])
@pytest.mark.parametrize(
    ("typed", "meant"), [("tab", "\t"), ("\\t", "\t"), ("Space", " "), ("comma", ","), ("semicolon", ";"), ("bar", "|")]
)
def test_delimiters_that_a_shell_would_swallow_have_names(key: str, typed: str, meant: str) -> None:
    assert flat(asdict(changed({key: typed})))[key] == meant


@pytest.mark.parametrize("key", ["data.delimiter", "data.list_delimiter"])
@pytest.mark.parametrize("value", ["x", "7", "commas", "a\nb", '"'])
def test_nonsense_between_fields_is_refused(key: str, value: str) -> None:
    message = refusal({key: value})
    assert message.startswith(f"{key}={value_text(value)} is not possible: ")
    assert "such as tab, space, comma" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "at", ["2024-01-31", "2024-01-31 12:30", "2024-01-31T12:30:00+09:00", 0.5, 1706659200, -7, None]
)
def test_a_cut_is_a_date_a_time_or_a_share(at: Any) -> None:
    assert changed({"data.split": "time", "data.split_at": at}).data.split_at == at


@pytest.mark.parametrize(("typed", "at"), [("0.8", 0.8), ("1706659200", 1706659200), ("1.7e9", 1.7e9), ("null", None)])
def test_a_cut_on_the_command_line_is_a_number_if_it_can_be(typed: str, at: float | None) -> None:
    word = quote_text(f"data.split_at={typed}")
    assert parse(composed("data.split=time", word)).data.split_at == at


def test_the_tables_of_a_split_lie_in_the_data_folder(tmp_path: Path) -> None:
    files = {"data.validation_file": "v.csv", "data.test_file": "/elsewhere/t.csv"}
    data = changed({"data.split": "files", "data.data_dir": str(tmp_path), **files}).data
    assert data.split_options["validation"] == tmp_path / "v.csv"
    assert data.split_options["test"] == Path("/elsewhere/t.csv")


def test_metrics_that_may_be_monitored() -> None:
    assert validation_metrics([5, 20]) == ["val_hit@5", "val_ndcg@5", "val_hit@20", "val_ndcg@20", "val_mrr"]
    config = changed({"evaluation.topk": [5, 20], "training.monitor_metric": "val_hit@20"})
    assert config.evaluation.topk == [5, 20]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "today"),
        ("seed", None),
        ("output_dir", None),
        ("data.batch_size", 12.5),
        ("data.data_file", None),
        ("data.min_rating", "good"),
        ("data.deduplicate", "perhaps"),
        ("data.columns", "user"),
        ("model.num_layers", 2.5),
        ("model.num_layers", True),
        ("model.dropout_rate", "much"),
        ("model.share_embeddings", "maybe"),
        ("training.lr", "fast"),
        ("training.lr", None),
        ("training.lr", [0.1]),
        ("training.max_steps", "all"),
        ("evaluation.topk", 10),
        ("evaluation.topk", None),
        ("evaluation.protocols", "full"),
        ("inference.topk", "ten"),
        ("inference.checkpoint_path", "[]"),
        ("inference.checkpoint_path", "[a,]"),
        ("model", 3),
    ],
)
def test_value_of_the_wrong_type_is_refused_by_name(key: str, value: Any) -> None:
    is_section = key in ("model", "data.columns")
    assert refusal({key: value}).startswith(
        f"{key} is a section" if is_section else f"{key}={value_text(value)} is not"
    )


def test_wrong_type_within_a_list_is_refused_by_name() -> None:
    assert refusal({"evaluation.topk": [10, "x"]}).startswith("evaluation.topk=[10,x] is not possible: ")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("training.lrr", "did you mean training.lr?"),
        ("modle.max_len", "did you mean model.max_len?"),
        ("data.datafile", "did you mean data.data_file?"),
        ("max_len", "did you mean model.max_len?"),
        ("outputdir", "did you mean output_dir?"),
        ("inference.exclude_sen", "did you mean inference.exclude_seen?"),
        ("model.lr", "did you mean training.lr?"),
        ("training.holdout", "did you mean data.holdout?"),
        ("learning_rate", "did you mean training.lr?"),
        ("training.learning_rate", "did you mean training.lr?"),
        ("epochs", "did you mean training.num_epochs?"),
        ("epoch", "did you mean training.num_epochs?"),
        ("batchsize", "did you mean data.batch_size?"),
        ("model.hidden_size", "did you mean model.hidden_units?"),
        ("top_k", "did you mean inference.topk?"),
        ("preset", "did you mean experiment?"),
        ("zzz", "--help lists every key"),
    ],
)
def test_unknown_key_names_the_nearest(key: str, hint: str) -> None:
    expected = f"there is no setting {key}: {hint}"
    assert unknown_key_message(key) == expected


@pytest.mark.parametrize("key", ["training.lrr", "modle.max_len", "zzz"])
def test_unknown_key_on_the_command_line_is_named(key: str) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed(f"{key}=1")
    assert cli.one_line(caught.value) == unknown_key_message(key)


@pytest.mark.parametrize(("key", "named"), [("training.lrr", "training.lrr"), ("zzz", "zzz"), ("zzz.lr", "zzz")])
def test_unknown_key_that_hydra_was_told_to_add_is_refused_too(key: str, named: str) -> None:
    """+key=value on the command line."""
    with pytest.raises(UserError, match=f"^there is no setting {named}: "):
        parse(composed(f"+{key}=1"))


def test_parsed_configuration_is_plain() -> None:
    """Nothing of OmegaConf travels on: a checkpoint with it would not load under weights_only=True."""
    config = changed({"training.devices": [0, 1], "evaluation.topk": [5, 10]})
    values = flat(asdict(config))
    assert {type(value) for value in values.values()} == {bool, int, float, str, list, type(None)}


# A value for every argument of the model and the data module that is not the default.
OTHER = {
    "seed": 7,
    "data.data_file": "other.csv",
    "data.generate_sample": True,
    "data.batch_size": 31,
    "data.min_interactions": 5,
    "data.min_item_interactions": 4,
    "data.holdout": 1,
    "data.split": "time",
    "data.window_stride": 11,
    "data.num_workers": 2,
    "data.on_device": True,
    "model.hidden_units": 24,
    "model.num_heads": 6,
    "model.num_layers": 1,
    "model.max_len": 19,
    "model.dropout_rate": 0.25,
    "model.mask_prob": 0.35,
    "model.share_embeddings": False,
    "model.mask_token_share": 0.6,
    "model.random_token_share": 0.3,
    "model.mask_last_share": 0.45,
    "model.attention_dropout_rate": 0.05,
    "model.ffn_dropout_rate": 0.02,
    "model.embedding_norm_first": True,
    "model.output_transform": True,
    "model.output_bias": True,
    "model.linear_init": "xavier",
    "training.gbce_calibration": 0.5,
    "training.negative_power": 0.6,
    "training.lr": 0.5,
    "training.optimizer": "adamw",
    "training.weight_decay": 0.03,
    "training.decay_norm_and_bias": False,
    "training.scheduler": "cosine",
    "training.warmup_steps": 9,
    "evaluation.topk": [3, 10],
    "evaluation.filter_seen": False,
    "evaluation.batch_size": 77,
}


TABLE = {
    "data.columns.user": 1,
    "data.columns.item": 3,
    "data.columns.time": 7,
    "data.columns.rating": 6,
    "data.delimiter": "|",
    "data.quotes": False,
    "data.list_delimiter": ",",
    "data.time_format": "%d.%m.%Y",
    "data.encoding": "cp949",
    "data.on_bad_rows": "drop",
    "data.min_rating": 3.5,
    "data.deduplicate": True,
}
DOWNLOAD = {"data.download": "ml-20m", "data.download_url": "http://127.0.0.1/x.zip"}
SAMPLED = {"training.loss": "gbce", "training.num_negatives": 31}


def test_every_argument_of_the_model_comes_from_its_setting() -> None:
    hparams = dict(build.build_model(changed(OTHER), num_items=13).hparams)
    names = {key.rpartition(".")[2]: value for key, value in OTHER.items() if not key.startswith("data.")}
    arguments = set(inspect.signature(BERT4Rec).parameters)
    assert hparams == {"num_items": 13, "loss": "softmax"} | {
        name: names[name] for name in arguments - {"num_items", "loss"}
    }
    defaults = dict(BERT4Rec(13).hparams) | {"topk": [10]}
    assert sorted(name for name in hparams if hparams[name] == defaults[name]) == ["loss", "num_items"]
    assert build.build_model(changed(SAMPLED), num_items=13).hparams["loss"] == "gbce"


def test_every_argument_of_the_data_module_comes_from_its_setting(tmp_path: Path) -> None:
    folder = {"data.data_dir": str(tmp_path), "output_dir": str(tmp_path / "run")}
    data = build.build_data(changed(OTHER | TABLE | folder))
    names = {key.rpartition(".")[2]: value for key, value in OTHER.items() if not key.startswith("evaluation.")}
    names |= {"filter_seen": False, "eval_batch_size": 77}
    arguments = set(inspect.signature(BERT4RecDataModule).parameters) - {"data_dir", "data_file", "num_negatives"}
    arguments -= {"download", "download_url", "frame"}  # of another table than the sample
    names |= {
        "cache_dir": tmp_path / "run" / "cache",
        "split": SplitOptions("time", None),
        "table_options": TableOptions(1, 3, 7, 6, "|", "cp949", "drop", 3.5, True, "%d.%m.%Y", ",", False, False),
    }
    assert {name: getattr(data, name) for name in arguments} == {name: names[name] for name in arguments}
    assert data.path == tmp_path / "other.csv"
    assert data.num_negatives == 0  # softmax needs none
    assert build.build_data(changed(SAMPLED)).num_negatives == 31
    assert build.build_data(changed({"data.cache": False})).cache_dir is None
    downloads = build.build_data(changed(DOWNLOAD | folder))
    assert (downloads.download, downloads.download_url) == ("ml-20m", "http://127.0.0.1/x.zip")
    assert downloads.path == changed(DOWNLOAD | folder).data.path == tmp_path / "ml-20m.csv"
    defaults = BERT4RecDataModule()
    assert not [name for name in arguments if getattr(data, name) == getattr(defaults, name)]


def test_trainer_comes_from_the_settings(tmp_path: Path) -> None:
    settings = {
        "training.num_epochs": 6,
        "training.max_steps": 17,
        "training.checkpoint_every_n_steps": 7,
        "training.gradient_clip": 2.5,
        "training.precision": "bf16-true",
        "training.accelerator": "cpu",
        "training.devices": 1,
        "training.early_stopping": True,
        "training.early_stopping_patience": 4,
        "training.monitor_metric": "val_mrr",
        "training.val_check_interval": 3.0,
    }
    trainer = build.build_trainer(changed(settings), RunFolder(tmp_path))
    assert (trainer.max_epochs, trainer.max_steps, trainer.gradient_clip_val) == (6, 17, 2.5)
    assert (trainer.precision, trainer.num_devices) == ("bf16-true", 1)
    assert trainer.early_stopping_callback is not None
    assert (trainer.early_stopping_callback.patience, trainer.early_stopping_callback.monitor) == (4, "val_mrr")
    best, last = trainer.checkpoint_callbacks
    assert (best.monitor, last.every_n_steps) == ("val_mrr", 7)  # type: ignore[attr-defined]
    assert trainer.check_val_every_n_epoch == 3


class Validations(pl.Callback):
    """In which epoch each validation took place, counted from 1."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs.append(trainer.current_epoch + 1)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(1.0, [1, 2, 3, 4]), (2.0, [2, 4]), (3, [3]), (0.5, [1, 1, 2, 2, 3, 3, 4, 4])],
)
def test_whole_intervals_count_epochs_and_fractions_parts_of_one(
    tmp_path: Path, interval: float, expected: list[int]
) -> None:
    """Lightning alone would take 2.0 for every 2 batches."""
    data = BERT4RecDataModule(str(tmp_path), write_table(tmp_path).name, batch_size=2, max_len=6)
    data.setup()
    assert len(data.train_dataloader()) == 6
    validations = Validations()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=4,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[validations],
        **build.validation_schedule(changed({"training.val_check_interval": interval}).training),
    )
    trainer.fit(BERT4Rec(data.num_items, 4, 2, 1, 6), data)
    assert validations.epochs == expected


@pytest.mark.parametrize(
    "settings", [{"training.max_steps": 1}, {"training.num_epochs": 2, "training.val_check_interval": 3}]
)
def test_training_that_ends_before_the_first_validation_is_refused_or_gives_its_figures(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    tiny = {
        "data.data_dir": str(tmp_path),
        "data.data_file": write_table(tmp_path).name,
        "data.batch_size": 2,
        "model.hidden_units": 4,
        "model.num_layers": 1,
        "model.max_len": 6,
        "training.accelerator": "cpu",
        "training.devices": 1,
        "output_dir": str(tmp_path / "run"),
        "evaluation.report": False,
    }
    try:
        config, refused = changed(tiny | settings), ""
    except UserError as error:
        config, refused = None, str(error)
    if config is None:
        assert "training.val_check_interval" in refused
    else:
        train(config)
        assert RunFolder(tmp_path / "run").metrics.is_file()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("inference.evaluate=true", "inference.export=m.onnx", "inference.users=u.csv"),
            "inference.evaluate=true is not possible: it goes without inference.export and inference.users",
        ),
        (
            ("inference.serve=true", "inference.export=m.onnx", "inference.candidates=i.csv"),
            "inference.serve=true is not possible: it goes without inference.export and inference.candidates",
        ),
        (
            ("inference.evaluate=true", "inference.serve=true"),
            "inference.evaluate=true is not possible: it goes without inference.serve",
        ),
        (
            ("inference.export=m.onnx", "inference.exclude=i.csv"),
            "inference.export=m.onnx is not possible: it goes without inference.exclude",
        ),
        (
            (
                "inference.embeddings=i.csv",
                "inference.similar=i.txt",
                "inference.users=u.csv",
                "inference.exclude=i.csv",
            ),
            "inference.embeddings=i.csv is not possible: it goes without inference.users",
        ),
        (
            ("inference.user_vectors=u.csv", "inference.users=u.csv", "inference.candidates=i.csv"),
            "inference.user_vectors=u.csv is not possible: it goes without inference.candidates",
        ),
        (
            ("inference.embeddings=v.csv", "inference.user_vectors=v.csv"),
            "inference.user_vectors=v.csv is not possible: inference.embeddings would write to the same file",
        ),
    ],
)
def test_what_a_job_does_not_heed_is_refused(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(composed(*words))
    assert str(refused.value) == line


def test_a_setting_of_an_earlier_version_is_refused_with_what_to_do() -> None:
    assert unknown_key_message("training.cpu_processes") == (
        "there is no setting training.cpu_processes since November 2026: leave it out; a training step runs in one"
        " process, on all threads"
    )
