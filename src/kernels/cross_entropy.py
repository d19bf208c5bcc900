"""Cross entropy over all tokens by `cross_entropy.c`.

N targets, D hidden_units, V tokens.
"""

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ..kept_memory import KeptMemory
from . import structures

# Exponentials of so many logits, 64 MiB, are held at a time, but those of not fewer and not more targets than so many:
# the whole output matrix is read for them, and a tile of them has to fit in a core's own cache.
HELD_ENTRIES, LEAST_ROWS, MOST_ROWS = 2**24, 32, 256
FILL = 16  # as in product.h
# Pieces of the vocabulary that a thread has: with more than one, a quick thread can take one more.
SLOTS_PER_THREAD = 4


def linear_cross_entropy(
    library: ctypes.CDLL, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> Tensor:
    """cross_entropy(hidden weight^T + bias, targets), averaged over the targets; a scalar.

    Args:
        library: for the type of the others, from `src.kernels.compiler`.
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [N] int64.

    Raises:
        IndexError: if a target is none of the tokens.
    """
    if len(targets) == 0:
        return hidden.sum() * torch.nan  # the mean of nothing, as torch has it
    if int(targets.min()) < 0 or int(targets.max()) >= len(weight):
        raise IndexError(f"a target is not among the {len(weight)} tokens")
    loss: Tensor = _LinearCrossEntropy.apply(library, hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return loss


# For the exponentials.
_kept = KeptMemory()


class _LinearCrossEntropy(torch.autograd.Function):
    """Forms the gradients in the forward pass: the loss is a scalar, so that they only have to be scaled later."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, library: ctypes.CDLL, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
        (count, width), tokens, threads = hidden.shape, len(weight), torch.get_num_threads()
        blocks = -(-count // min(MOST_ROWS, max(LEAST_ROWS, HELD_ENTRIES // tokens)))
        rows = -(-count // blocks)
        arguments = structures.CrossEntropy(
            count=count,
            tokens=tokens,
            width=width,
            rows=rows,
            threads=threads,
            slots=SLOTS_PER_THREAD * threads if threads > 1 else 1,
        )
        pointer = ctypes.byref(arguments)
        losses = hidden.new_empty(count)
        gradients = [None if x is None else torch.empty_like(x) for x in (hidden, weight, bias)]
        with _kept.entries(tokens * (-(-rows // FILL) * FILL), hidden) as held:
            lent = {
                "hidden": hidden,
                "weight": weight,
                "bias": bias,
                "targets": targets,
                "held": held,
                "memory": hidden.new_empty(library.cross_entropy_memory(pointer)),
                "losses": losses,
                **dict(zip(("hidden_gradient", "weight_gradient", "bias_gradient"), gradients, strict=True)),
            }
            for name, tensor in lent.items():
                setattr(arguments, name, None if tensor is None else tensor.data_ptr())
            library.cross_entropy(pointer)
        ctx.save_for_backward(*gradients)  # type: ignore[arg-type]
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients: tuple[Tensor | None, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
        if gradient != 1.0:  # nearly always 1: no pass over a large matrix for that
            gradients = tuple(None if x is None else x * gradient for x in gradients)
        return None, *gradients, None
