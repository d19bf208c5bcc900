"""How Lightning writes and reads checkpoints here."""

import io
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
