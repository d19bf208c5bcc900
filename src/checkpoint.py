"""Opening a checkpoint of this package, which alone is enough to predict with the original ids."""

import inspect
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from src.data.vocabulary import Vocabulary
from src.errors import UserError
from src.models.network import Network

if TYPE_CHECKING:
    from src.models.bert4rec import BERT4Rec


def load(path: Path) -> "tuple[BERT4Rec, Vocabulary]":
    """The model, in evaluation mode on the CPU, and the item ids behind its tokens.

    Only tensors and plain containers are read (`weights_only=True`): code in a checkpoint does not run.

    Raises:
        UserError: if there is no such file, or it is no checkpoint of this package.
    """
    from src.models.bert4rec import BERT4Rec

    content = _read(path)
    with _explaining(path):
        model = BERT4Rec(**content["hyper_parameters"])
        model.load_state_dict(content["state_dict"])
        vocabulary = _vocabulary(content, model.num_items)
    return model.eval(), vocabulary


def load_network(path: Path) -> tuple[Network, Vocabulary]:
    """As `load`, but the network alone, which needs no Lightning: seconds less for a program that only predicts."""
    content = _read(path)
    with _explaining(path):
        arguments = inspect.signature(Network).parameters
        network = Network(**{name: value for name, value in content["hyper_parameters"].items() if name in arguments})
        weights = {name.removeprefix("network."): tensor for name, tensor in content["state_dict"].items()}
        network.load_state_dict(weights)
        vocabulary = _vocabulary(content, network.num_items)
    return network.eval(), vocabulary


def _vocabulary(content: dict[str, Any], num_items: int) -> Vocabulary:
    vocabulary = Vocabulary.from_state_dict(content["BERT4RecDataModule"]["vocabulary"])
    if len(vocabulary) != num_items:
        raise ValueError(f"{len(vocabulary)} item ids for {num_items} items")
    return vocabulary


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Whatever goes wrong while the content of a checkpoint is put to use, it is no checkpoint of this package."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is no checkpoint of this program ({type(error).__name__}: {reason}): give one that"
            " train_bert4rec.py wrote"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint {path}: train first with python train_bert4rec.py, or name one with"
            " inference.checkpoint_path=FILE"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, or no checkpoint, or holds more than weights and"
            " plain values; give one that train_bert4rec.py wrote"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint of this program: give one that train_bert4rec.py wrote")
    return content
