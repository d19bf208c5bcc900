"""How Lightning writes and reads checkpoints here."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from ..atomic_files import write_whole
from ..errors import UserError


class SafeCheckpointIO(TorchCheckpointIO):
    """How Lightning reads and writes checkpoints here.

    A checkpoint appears under its name only when it is whole, so that the one before stays good until then. Only
    tensors and plain containers are read.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it, or raise a `UserError` that says why that is impossible."""
        for name, state in checkpoint.get("callbacks", {}).items():
            _require_plain(name, state)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_whole(Path(path), buffer.getbuffer())
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror or error}): the earlier one is unharmed; fix"
                " that, then resume with training.resume=true"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As Lightning's, but always by weights alone."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def _require_plain(name: str, state: Any) -> None:
    """See that what a callback keeps can be read again: with anything else in it, the checkpoint could not.

    Raises:
        UserError: if it cannot.
    """
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        raise UserError(
            f"the callback {name} has a state_dict that no checkpoint can hold: give it only tensors, numbers, texts,"
            " lists and dictionaries of them"
        ) from error
