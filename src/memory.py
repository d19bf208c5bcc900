"""Whether the memory suffices, asked beforehand: a system without any left ends the program without a word."""

import os

from src.errors import UserError

SAVES_MEMORY = (
    "leave out rare items with data.min_item_interactions=5, make data.batch_size, evaluation.batch_size or"
    " model.hidden_units smaller, or take a sample of the items with training.loss=sampled_softmax"
)
# The memory itself has run out, as Python or an allocator says it.
SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "Storage size calculation overflowed")
TRAINED, HELD = 16, 4  # bytes of a parameter: with its gradient and two moments of Adam, and by itself


def total() -> int | None:
    """Bytes that this machine has; None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def require(parameters: int, bytes_each: int) -> None:
    """See to it that a model fits at all; what else a step needs comes on top.

    Raises:
        UserError: if its parameters alone take more than the whole memory.
    """
    there, needed = total(), parameters * bytes_each
    if there is not None and needed > there:
        raise UserError(
            f"the memory does not suffice ({parameters:,} parameters take {needed / 2**30:,.1f} GiB, this machine has"
            f" {there / 2**30:,.1f} GiB): {SAVES_MEMORY}"
        )


def is_out(error: BaseException) -> bool:
    """Whether Python, the processor's allocator or the accelerator's has run out of memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in SIGNS)
