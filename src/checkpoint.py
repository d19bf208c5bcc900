"""Opening a checkpoint of this package, which alone is enough to predict with the original ids."""

import pickle
from pathlib import Path
from typing import Any

import torch

from src.data.vocabulary import Vocabulary
from src.errors import UserError
from src.models.bert4rec import BERT4Rec


def load(path: Path) -> tuple[BERT4Rec, Vocabulary]:
    """The model, in evaluation mode on the CPU, and the item ids behind its tokens.

    Only tensors and plain containers are read (`weights_only=True`): code in a checkpoint does not run.

    Raises:
        UserError: if there is no such file, or it is no checkpoint of this package.
    """
    content = _read(path)
    try:
        vocabulary = Vocabulary.from_state_dict(content["BERT4RecDataModule"]["vocabulary"])
        model = BERT4Rec(**content["hyper_parameters"])
        model.load_state_dict(content["state_dict"])
        if len(vocabulary) != model.num_items:
            raise ValueError(f"{len(vocabulary)} item ids for {model.num_items} items")
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is no checkpoint of this program ({type(error).__name__}: {reason}): give one that"
            " train_bert4rec.py wrote"
        ) from error
    return model.eval(), vocabulary


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
