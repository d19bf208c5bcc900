"""Whether the memory suffices, asked beforehand: a system without any left ends the program without a word."""

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    import torch

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
SAVES_MEMORY = (
    "leave out rare items with data.min_item_interactions=5, make data.batch_size, evaluation.batch_size or"
    " model.hidden_units smaller, or take a sample of the items with training.loss=sampled_softmax"
)
# The memory itself has run out, as Python or an allocator says it.
SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "Storage size calculation overflowed")
# How often freed memory is given back: steps of training, and batches of users, whose scores are much larger.
STEPS_BETWEEN, BATCHES_BETWEEN = 256, 8
TRAINED, HELD = 16, 4  # bytes of a parameter: with its gradient and two moments of Adam, and by itself


def of(device: "torch.device") -> int:
    """Bytes of a device, or what a container may use of them: not those that happen to be free, which differ each time.

    So every process, and a run that is resumed, sees the same. A system that does not say has as many as there can be.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**63 - 1
    limit = CONTAINER_LIMIT.read_text().strip() if CONTAINER_LIMIT.is_file() else "max"
    return memory if limit == "max" else min(memory, int(limit))


def give_back() -> None:
    """Give memory that was freed back to the system, in about 20 ms, where the C library is glibc.

    It keeps it for what is allocated next. But before glibc 2.38 tensors, being aligned, seldom fit where others were
    freed, and a long run of unlike sizes takes ever more: an evaluation among 50,000 items grew by 1.5 GiB.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim(0)


def require(parameters: int, bytes_each: int, there: int) -> None:
    """See to it that a model fits at all; what else a step needs comes on top.

    Args:
        bytes_each: `TRAINED` or `HELD`.
        there: bytes of memory.

    Raises:
        UserError: if its parameters alone take more than the whole memory.
    """
    needed = parameters * bytes_each
    if needed > there:
        raise UserError(
            f"the memory does not suffice ({parameters:,} parameters take {needed / 2**30:,.1f} GiB, this machine has"
            f" {there / 2**30:,.1f} GiB): {SAVES_MEMORY}"
        )


def is_out(error: BaseException) -> bool:
    """Whether Python, the processor's allocator or the accelerator's has run out of memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in SIGNS)
