"""Sparse gradients of several processes, averaged without an all-reduce of sparse tensors, which NCCL does not have."""

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_processes(gradient: Tensor) -> Tensor:
    """The mean of the sparse gradients [V, D] of all processes, the same tensor in each of them.

    Every process sends the rows that its step touched, filled up to the largest number of them, so what goes over the
    wire follows the batch and not the table. All of them have to call this together.

    Returns:
        A sparse tensor [V, D], not coalesced.
    """
    gradient = gradient.coalesce()
    rows, values = gradient.indices()[0], gradient.values()  # [R], [R, D]
    processes = dist.get_world_size()
    counts = _gathered(rows.new_tensor([len(rows)]), processes)
    lengths = [int(count) for count in counts]
    most = max(lengths)
    all_rows = _gathered(_filled_up(rows, most), processes)
    all_values = _gathered(_filled_up(values, most), processes)
    rows, values = (
        torch.cat([sent[:length] for sent, length in zip(parts, lengths, strict=True)])
        for parts in (all_rows, all_values)
    )
    return torch.sparse_coo_tensor(rows[None], values / processes, gradient.shape, check_invariants=False)


def _filled_up(values: Tensor, length: int) -> Tensor:
    """[R, ...] -> [length, ...], with zeros at the end."""
    filled = values.new_zeros(length, *values.shape[1:])
    filled[: len(values)] = values
    return filled


def _gathered(sent: Tensor, processes: int) -> list[Tensor]:
    received = [torch.empty_like(sent) for _ in range(processes)]
    dist.all_gather(received, sent)
    return received
