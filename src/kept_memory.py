"""Memory that a computation needs anew for each batch, kept from one to the next."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class KeptMemory(threading.local):
    """One piece of memory for each thread.

    The C library gives a piece of more than 32 MiB back to the system when it is freed. To get its pages anew took a
    quarter of the time of a call (docs/performance.md). On a GPU torch's own allocator keeps it.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    @contextmanager
    def entries(self, count: int, like: Tensor) -> Iterator[Tensor]:
        """At least so many entries of the type of `like`, [>= count], for as long as the context lasts."""
        memory, self._memory = self._memory, None  # a second context, within this one, gets memory of its own
        if memory is None or memory.dtype != like.dtype or memory.device != like.device or len(memory) < count:
            memory = None  # before more is taken
            with torch.inference_mode(False):  # what is made in that mode cannot be written to outside of it
                memory = like.new_empty(count)
        try:
            yield memory
        finally:
            if memory.device.type == "cpu":
                self._memory = memory
