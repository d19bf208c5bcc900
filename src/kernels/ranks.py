"""Ranks of targets among all items by `ranks.c`.

B rows, D hidden_units, V tokens, S seen pairs.
"""

import ctypes

import torch
from torch import Tensor

from . import structures
from .cross_entropy import FILL

# Pieces of the vocabulary that a thread has: with more than one, a quick thread can take one more.
SLOTS_PER_THREAD = 4


def linear_target_ranks(
    library: ctypes.CDLL,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    seen_rows: Tensor,
    seen_items: Tensor,
) -> Tensor | None:
    """How many candidates score at least as much as each target, itself apart, by `hidden` weight^T + bias.

    Candidates are all tokens but the first, the last, and those a row has seen.

    Args:
        library: for the type of the first three, from `src.kernels.compiler`.
        hidden: [B, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [B] int64.
        seen_rows, seen_items: [S] int64 each, a row and a token that is no candidate there.

    Returns:
        [B] int64, or None if a score is NaN or infinite.
    """
    hidden, weight, targets = hidden.detach().contiguous(), weight.detach().contiguous(), targets.contiguous()
    (rows, width), tokens, threads = hidden.shape, len(weight), torch.get_num_threads()
    if rows == 0:
        return targets.clone()
    every = torch.arange(rows)
    pairs = (
        torch.cat(
            [
                seen_items * rows + seen_rows,
                targets * rows + every,
                every,  # padding
                (tokens - 1) * rows + every,  # [MASK]
            ]
        )
        .sort()
        .values
    )  # by item
    slots, stride = SLOTS_PER_THREAD * threads if threads > 1 else 1, -(-rows // FILL) * FILL | FILL
    arguments = structures.Ranks(
        rows=rows, tokens=tokens, width=width, excluded=len(pairs), threads=threads, slots=slots
    )
    pointer = ctypes.byref(arguments)
    ranks, check = torch.empty_like(targets), hidden.new_empty(slots)
    lent = {
        "hidden": hidden,
        "weight": weight,
        "bias": bias,
        "targets": targets,
        "excluded_rows": pairs % rows,
        "excluded_items": pairs // rows,
        "panels": hidden.new_empty(library.ranks_panels_size(pointer)),
        "thresholds": hidden.new_empty(stride),
        "scores": hidden.new_empty(threads * library.ranks_scores_size(pointer)),
        "counts": hidden.new_empty(slots * stride, dtype=torch.int32),
        "ranks": ranks,
        "check": check,
    }
    for name, tensor in lent.items():
        setattr(arguments, name, None if tensor is None else tensor.data_ptr())
    library.count_ranks(pointer)
    return ranks if bool(check.isfinite().all()) else None
