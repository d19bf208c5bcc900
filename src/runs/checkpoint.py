"""Reading checkpoints; one of this package alone is enough to predict with the original ids."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..data.vocabulary import Vocabulary
from ..errors import UserError
from ..models.network import CHECKPOINT_FORMAT, FORMAT_KEY, Architecture, Network
from .proposals import start

if TYPE_CHECKING:
    from ..models.bert4rec import BERT4Rec

Module = TypeVar("Module", bound=nn.Module)


def load(path: Path) -> "tuple[BERT4Rec, Vocabulary]":
    """The model, in evaluation mode on the CPU, and the item ids behind its tokens.

    Only tensors and plain containers are read (`weights_only=True`): code in a checkpoint does not run.

    Raises:
        UserError: if there is no such file, or it is no checkpoint of this package.
    """
    return build(read(path), path)


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, by weights and plain values alone.

    Raises:
        UserError: if there is no such file, it cannot be read, or a newer version of this package wrote it.
    """
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint {path}: train first with {start('train')}, or name one with"
            " inference.checkpoint_path=FILE"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes from anywhere raise anything
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, or no checkpoint, or holds more than weights and"
            " plain values; give one that train_bert4rec.py wrote"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of this program: give one that train_bert4rec.py wrote")
    number = content.get(FORMAT_KEY, 1)  # the first format had no number
    if type(number) is not int or number > CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has format {str(number)[:20]}, and this version of the program reads up to format"
            f" {CHECKPOINT_FORMAT}: use the version that wrote it, or a newer one"
        )
    return content


def load_network(path: Path) -> tuple[Network, Vocabulary]:
    """As `load`, but the network alone, which needs no Lightning: seconds less for a program that only predicts."""
    return _assembled(read(path), path, _network_of, "network.")


def load_ensemble(paths: Sequence[Path]) -> "tuple[BERT4Rec, Vocabulary]":
    """As `load`; of several checkpoints the first model, which predicts and is evaluated by the mean of all scores.

    Raises:
        UserError: as `load`, or if the models do not have the same items.
    """
    (model, *others), vocabulary = _load_together(paths, load)
    model.others = nn.ModuleList(other.network for other in others)
    model.max_len = max(each.max_len for each in (model, *others))
    return model, vocabulary


def load_networks(paths: Sequence[Path]) -> tuple[list[Network], Vocabulary]:
    """As `load_network`, of each checkpoint.

    Raises:
        UserError: as `load_ensemble`.
    """
    return _load_together(paths, load_network)


def _load_together(
    paths: Sequence[Path], load_one: Callable[[Path], tuple[Module, Vocabulary]]
) -> tuple[list[Module], Vocabulary]:
    loaded = [load_one(path) for path in paths]
    first = loaded[0][1]
    for path, (_, vocabulary) in zip(paths, loaded, strict=True):
        if which := first.difference(vocabulary):
            raise UserError(
                f"{paths[0]} and {path} do not have the same items, {len(first):,} and {len(vocabulary):,}, {which}:"
                " give checkpoints that were trained on one table with the same data.* settings"
            )
    return [model for model, _ in loaded], first


def build(content: dict[str, Any], path: Path) -> "tuple[BERT4Rec, Vocabulary]":
    """The model and the item ids of what `read` gave; `path` is for the message alone.

    Raises:
        UserError: if parts are missing, or do not fit together.
    """
    from ..models.bert4rec import BERT4Rec

    return _assembled(content, path, BERT4Rec)


def _assembled(
    content: dict[str, Any], path: Path, make: Callable[..., Module], prefix: str = ""
) -> tuple[Module, Vocabulary]:
    """What `make` gives with the hyperparameters and, their names without the prefix, the weights of a checkpoint."""
    try:
        arguments = content["hyper_parameters"]
        weights = {name.removeprefix(prefix): tensor for name, tensor in content["state_dict"].items()}
        _check_shapes(make, arguments, weights)
        model = make(**arguments)
        model.load_state_dict(weights)
        vocabulary = Vocabulary.from_state_dict(content["BERT4RecDataModule"]["vocabulary"])
        _check_vocabulary(vocabulary, arguments["num_items"])
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is no checkpoint of this program ({type(error).__name__}: {reason}): give one that"
            " train_bert4rec.py wrote"
        ) from error
    return model.eval(), vocabulary


def _network_of(num_items: int, **hyper_parameters: Any) -> Network:
    """The network of a model's hyperparameters, among which there are others."""
    names = {field.name for field in fields(Architecture)}
    return Network(num_items, Architecture(**{k: v for k, v in hyper_parameters.items() if k in names}))


class _NoDraws(TorchFunctionMode):
    """Leaves out the drawing of initial weights, for which torch would load its compiler on the device "meta"."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The tensor as it is, instead of one drawn from a normal or uniform distribution."""
        kwargs = kwargs or {}
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _check_vocabulary(vocabulary: Vocabulary, num_items: int) -> None:
    if len(vocabulary) != num_items:
        raise ValueError(f"{len(vocabulary)} item ids for {num_items} items")
    if vocabulary.ids.null_count:
        raise ValueError("an item without an id")
    if len(vocabulary.ids.unique()) < len(vocabulary):
        raise ValueError("an item id that stands for two items")
    if vocabulary.counts.shape != (len(vocabulary),) or (vocabulary.counts < 0).any():
        raise ValueError(f"counts of shape {vocabulary.counts.shape} for {len(vocabulary)} item ids, or below 0")


def _check_shapes(model: Callable[..., nn.Module], arguments: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Compare without memory for the weights, so that a forged size cannot ask for any."""
    if not 1 <= arguments.get("num_layers", 1) <= len(weights):
        raise ValueError(f"num_layers={arguments['num_layers']} with {len(weights)} tensors")
    with torch.device("meta"), _NoDraws():
        wanted = {name: tensor.shape for name, tensor in model(**arguments).state_dict().items()}
    for name in wanted.keys() | weights.keys():
        there = weights[name].shape if name in weights else None
        if there != wanted.get(name):
            raise ValueError(f"{str(name)[:60]} is {there} and should be {wanted.get(name)}")
