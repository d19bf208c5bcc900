"""What `experiment=auto` and `experiment=best` pick for which data and memory."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.errors import UserError
from src.settings import Config
from src.training import settings_by_data
from src.training.train import train
from tests.scripts.conftest import Table, call, checkpoint, compose, table  # noqa: F401

PLENTY = 2**40
SIZES = {"small": (32, 2, 2, 30), "medium": (64, 4, 3, 50), "large": (128, 8, 4, 200)}


def sizes(config: Config) -> tuple[int, int, int, int]:
    model = config.model
    return model.hidden_units, model.num_heads, model.num_layers, model.max_len


@pytest.mark.parametrize(
    ("users", "name"),
    [(1, "small"), (9_999, "small"), (10_000, "medium"), (100_000, "medium"), (100_001, "large")],
)
def test_the_number_of_users_decides_the_preset(users: int, name: str) -> None:
    config, reasons = settings_by_data.choose_size(compose("experiment=auto"), users, 500, [], PLENTY)
    assert sizes(config) == SIZES[name] == sizes(compose(f"experiment={name}"))
    assert config.data.batch_size == 128
    assert reasons.startswith(f"auto        {name}, for ")
    assert f"model.max_len={SIZES[name][3]}" in reasons
    assert replace(config, auto=False) == replace(compose(f"experiment={name}"), auto=False)


def test_what_the_user_has_set_stays_and_is_named() -> None:
    words = ["experiment=auto", "model.max_len=77", "data.batch_size=500"]
    config, reasons = settings_by_data.choose_size(compose(*words), 20_000, 500, settings_by_data.given_keys(words), 1)
    assert sizes(config) == (64, 4, 3, 77)
    assert config.data.batch_size == 500
    assert "as you set it: max_len=77" in reasons
    assert "batch_size" not in reasons


@pytest.mark.parametrize(("interactions", "items"), [(30.0, 49_999), (165.0, 3_416)])
def test_long_histories_of_few_items_keep_the_recipe(interactions: float, items: int) -> None:
    config = compose("experiment=best")
    chosen, reasons = settings_by_data.choose_recipe(config, interactions, items, set())
    assert chosen == config
    assert reasons == f"auto        histories of {interactions:.0f} interactions are long: nothing to change"


def test_many_items_are_sampled() -> None:
    chosen, reasons = settings_by_data.choose_recipe(compose("experiment=best"), 99.6, 50_000, set())
    sampled = ("training.loss=sampled_softmax", "training.num_negatives=2048", "training.negative_power=1.0")
    assert chosen == compose("experiment=best", *sampled)
    assert reasons == f"auto        histories of 100 interactions are long: {' '.join(sampled)}"


def test_short_histories_get_short_windows_and_the_sampled_loss() -> None:
    chosen, reasons = settings_by_data.choose_recipe(compose("experiment=best"), 29.9, 17, set())
    words = ["data.batch_size=128", "data.window_stride=1", "model.max_len=8", "training.loss=sampled_softmax"]
    words += ["training.num_negatives=2048", "training.negative_power=1.0"]
    assert chosen == compose("experiment=best", *words)
    assert reasons == f"auto        histories of 30 interactions are short: {' '.join(words)}"


def test_a_recipe_leaves_what_the_user_has_set() -> None:
    words = ["experiment=best", "model.max_len=60", "training.loss=softmax"]
    chosen, reasons = settings_by_data.choose_recipe(compose(*words), 7.0, 10**6, settings_by_data.given_keys(words))
    assert (chosen.model.max_len, chosen.training.loss, chosen.data.window_stride) == (60, "softmax", 1)
    assert "max_len" not in reasons
    assert "training.loss" not in reasons


def test_what_was_set_must_go_with_the_preset() -> None:
    words = ["experiment=auto", "model.num_heads=64"]
    with pytest.raises(UserError, match=r"hidden_units=32.*num_heads=64"):
        settings_by_data.choose_size(compose(*words), 5, 500, settings_by_data.given_keys(words), PLENTY)


def test_the_batch_is_halved_until_it_fits_half_of_the_memory() -> None:
    config = compose("experiment=auto")
    large = compose("experiment=large").model
    memory = 2 * settings_by_data.training_bytes(large, 10**5, 32)
    chosen, reasons = settings_by_data.choose_size(config, 10**6, 10**5, [], memory)
    assert chosen.data.batch_size == 32
    assert re.search(r"data\.batch_size=32: about \d+\.\d\d GiB of \d+\.\d\d GiB", reasons)
    assert settings_by_data.choose_size(config, 10**6, 10**5, [], memory - 2)[0].data.batch_size == 16
    assert settings_by_data.choose_size(config, 10**6, 10**5, [], 1)[0].data.batch_size == 1


def test_the_estimate_is_above_what_is_kept_for_backward() -> None:
    """Saved tensors of a real step, counted, against the estimate without weights."""
    from src.models.network import Architecture, Network

    model = replace(compose().model, hidden_units=32, num_heads=2, num_layers=2, max_len=20)
    network = Network(50, Architecture(32, 2, 2, 20))
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        network.encode(torch.randint(1, 50, (8, 20))).sum()
    estimate = settings_by_data.training_bytes(model, 50, 8) - settings_by_data.training_bytes(model, 50, 0)
    assert sum(kept.values()) < 1.1 * estimate < 4 * sum(kept.values())


def test_keys_are_found_behind_hydras_prefixes() -> None:
    assert settings_by_data.given_keys(["a.b=1", "+c=x=y", "++d.e=", "~f"]) == {"a.b", "c", "d.e", "f"}


def test_a_run_trains_the_model_that_was_announced(table: Table, tmp_path: Path) -> None:  # noqa: F811
    settings = ("training.num_epochs=1", "training.accelerator=cpu", "evaluation.report=false", "model.num_layers=1")
    outcome = call(train, *table.overrides, f"output_dir={tmp_path}", "experiment=auto", *settings)
    assert (outcome.code, outcome.err) == (0, "")
    assert "auto        small, for fewer than 10,000 users: model.hidden_units=32" in outcome.out
    assert "as you set it: num_layers=1" in outcome.out
    hparams = checkpoint(tmp_path / "checkpoints" / "last.ckpt")["hyper_parameters"]
    assert (hparams["hidden_units"], hparams["num_layers"], hparams["max_len"]) == (32, 1, 30)


def test_a_run_trains_by_the_recipe_of_its_table(table: Table, tmp_path: Path) -> None:  # noqa: F811
    settings = ("training.num_epochs=1", "training.accelerator=cpu", "evaluation.report=false", "model.hidden_units=8")
    outcome = call(train, *table.overrides, f"output_dir={tmp_path}", "experiment=best", *settings)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"auto        histories of \d+ interactions are short: .* model\.max_len=8 ", outcome.out)
    state = checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    hparams = state["hyper_parameters"]
    assert (hparams["hidden_units"], hparams["max_len"], hparams["loss"]) == (8, 8, "sampled_softmax")
