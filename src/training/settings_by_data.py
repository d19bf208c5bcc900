"""What follows from the data and the machine: the sizes of `experiment=auto`, the recipe of `experiment=best`."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from ..settings import CONFIGS, Config
from ..settings.parse import check
from ..settings.schema import ModelConfig

PRESETS = CONFIGS / "experiment"
SMALL, LARGE = 10_000, 100_000  # users, as the guide's table of recommended sizes has them
# Interactions of a user in training, on average: MovieLens has 104 and 163, Amazon Beauty 7 (docs/results.md).
SHORT = 30
MANY_ITEMS = 50_000  # from here on a sample of negatives trains faster than a softmax of all
SAMPLED = ("training.loss", "training.num_negatives", "training.negative_power")
WINDOWS = ("data.batch_size", "data.window_stride", "model.max_len")
SHARE_OF_MEMORY = 0.5  # the rest is for the data, the catalogue's scores and other programs


def choose_recipe(config: Config, interactions: float, items: int, given: Iterable[str]) -> tuple[Config, str]:
    """The settings with windows and loss of `experiment=best/beauty`, as far as this table calls for them.

    Args:
        interactions: of a user in training, on average. Short histories call for short windows, and the loss.
        items: in training. Many call for the sampled loss.
        given: dotted keys that the user has set, which stay as they are.

    Returns:
        The settings, and a line that says what was chosen and why.

    Raises:
        UserError: if what was chosen does not go with what was given.
    """
    is_short = interactions < SHORT
    keys = WINDOWS + SAMPLED if is_short else SAMPLED if items >= MANY_ITEMS else ()
    preset, chosen = _preset("best/beauty"), []
    for name in keys:
        if name not in given:
            section, key = name.split(".")
            config = replace(config, **{section: replace(getattr(config, section), **{key: preset[section][key]})})
            chosen.append(f"{name}={preset[section][key]}")
    check(config)
    why = f"histories of {interactions:.0f} interactions are {'short' if is_short else 'long'}"
    return config, f"auto        {why}: {' '.join(chosen) or 'nothing to change'}"


def choose_size(config: Config, users: int, items: int, given: Iterable[str], memory: int) -> tuple[Config, str]:
    """The settings with the size of the preset that suits so many users, and a batch that fits the memory.

    Args:
        users, items: in training.
        given: dotted keys that the user has set, which stay as they are.
        memory: bytes of the device that trains.

    Returns:
        The settings, and a line or two that say what was chosen and why.

    Raises:
        UserError: if the preset does not go with what was given.
    """
    given = set(given)
    name = "small" if users < SMALL else "medium" if users <= LARGE else "large"
    why = {
        "small": f"fewer than {SMALL:,} users",
        "medium": f"{SMALL:,} to {LARGE:,} users",
        "large": f"more than {LARGE:,} users",
    }
    preset = _preset(name)
    chosen = {key: value for key, value in preset["model"].items() if f"model.{key}" not in given}
    model = replace(config.model, **chosen)
    lines = [
        f"auto        {name}, for {why[name]}: " + " ".join(f"model.{key}={value}" for key, value in chosen.items())
    ]
    kept = [f"{key}={getattr(config.model, key)}" for key in preset["model"] if f"model.{key}" in given]
    if kept:
        lines.append(f"            as you set it: {', '.join(kept)}")
    data = config.data
    if "data.batch_size" not in given:
        size = data.batch_size
        while size > 1 and training_bytes(model, items, size) > SHARE_OF_MEMORY * memory:
            size //= 2
        data = replace(data, batch_size=size)
        needed = training_bytes(model, items, size)
        lines.append(f"            data.batch_size={size}: about {_gib(needed)} GiB of {_gib(memory)} GiB")
    config = replace(config, model=model, data=data)
    check(config)
    return config, "\n".join(lines)


def training_bytes(model: ModelConfig, items: int, batch_size: int) -> int:
    """Roughly what training holds in memory at once, in bytes, erring upwards.

    Weights, gradients and Adam's two moments; and what backward needs of every token of a batch: about 26 vectors of
    the model's width in each layer, and an attention weight for each other token and head, twice with its dropout.
    """
    width, layers, length = model.hidden_units, model.num_layers, model.max_len
    embeddings = (items + 2) * width * (1 if model.share_embeddings else 2) + length * width
    weights = embeddings + layers * 12 * width**2
    activations = batch_size * length * layers * (26 * width + 2 * model.num_heads * length)
    return 4 * (4 * weights + activations)


def given_keys(overrides: Iterable[str]) -> set[str]:
    """Dotted keys of a command line's overrides, whatever prefix Hydra lets them have."""
    return {override.partition("=")[0].lstrip("+~") for override in overrides}


def _preset(name: str) -> dict[str, dict[str, Any]]:
    preset: Any = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{name}.yaml"))
    return preset  # type: ignore[no-any-return]


def _gib(amount: int) -> str:
    return f"{amount / 2**30:.2f}"
