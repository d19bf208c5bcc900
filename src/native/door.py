"""The one door to the compiled CPU kernels: what the package computes of a network in training, ranking and prediction.

Each function computes what the modules of `src.models.network` say: by kernels where they apply, else by the modules.

N targets or places, B rows, L length, D hidden_units, S seen pairs.
"""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from src import ranking
from src.batch import PAD
from src.models import losses
from src.models.network import Network
from src.native import compiler, cross_entropy, encoder, ranks


def encode(network: Network, inputs: Tensor, places: Tensor) -> Tensor:
    """`network.encode(inputs, places)`: [B, L] int64, [N] places of the flattened inputs, none padding -> [N, D]."""
    library = _library(network)
    return network.encode(inputs, places) if library is None else encoder.encode(library, network, inputs, places)


def softmax_loss(network: Network, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of `network.logits(hidden)` [N, V] against the targets [N] in use; a scalar."""
    library = _library(network)
    hidden, weight, bias = network.output_transform(hidden), network.output.weight, network.output.bias
    if library is None:
        return losses.linear_cross_entropy(hidden, weight, bias, targets)
    is_used = targets != PAD
    if not is_used.all():
        hidden, targets = hidden[is_used], targets[is_used]
        if len(targets) == 0:
            return hidden.sum() * 0.0
    return cross_entropy.linear_cross_entropy(library, hidden, weight, bias, targets)


def target_ranks(network: Network, hidden: Tensor, targets: Tensor, seen_rows: Tensor, seen_items: Tensor) -> Tensor:
    """0-based rank of each target [B] among all candidates, by `network.logits(hidden)`: [B] int64.

    Args:
        seen_rows, seen_items: [S] int64 each, as in `src.ranking.candidate_scores`.

    Raises:
        UserError: if a score is NaN or infinite.
    """
    hidden, weight, bias = network.output_transform(hidden), network.output.weight, network.output.bias
    library = _library(network)
    if library is not None:
        counted = ranks.linear_target_ranks(library, hidden, weight, bias, targets, seen_rows, seen_items)
        if counted is not None:
            is_excluded = (targets == PAD) | (targets == len(weight) - 1)
            is_excluded[seen_rows[seen_items == targets[seen_rows]]] = True
            return counted.masked_fill(is_excluded, ranking.UNRANKED)
    return ranking.linear_target_ranks(hidden, weight, bias, targets, seen_rows, seen_items)


def candidate_scores(
    network: Network, hidden: Tensor, seen_rows: Tensor, seen_items: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """`network.logits(hidden)` as `src.ranking.linear_candidate_scores` gives them, some rows at a time."""
    hidden, weight, bias = network.output_transform(hidden), network.output.weight, network.output.bias
    return ranking.linear_candidate_scores(hidden, weight, bias, seen_rows, seen_items)


def _library(network: Network) -> ctypes.CDLL | None:
    """The kernels for this network, where they apply."""
    weight = network.output.weight
    if weight.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting():
        return None
    return compiler.library(weight.dtype)
