"""The items most similar to given ones. V tokens, S given items, R of them at a time, K neighbours of each."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ranking
from ..models.network import Network


def nearest_items(
    network: Network, tokens: Tensor, topk: int, is_barred: Tensor | None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The items whose vectors, without bias, have the largest cosine with those of given items.

    Args:
        tokens: [S] int64, items; none is its own neighbour.
        topk: K.
        is_barred: [V] bool, tokens that are nobody's neighbour, or None.

    Yields:
        which of the given items, their neighbours [R, K] int64, best first, 0 where there are fewer, and the cosines
        [R, K].

    Raises:
        UserError: if a weight is NaN or infinite.
    """
    directions = F.normalize(network.output.weight.float())  # [V, D]
    given = torch.arange(len(tokens), device=tokens.device)
    for some, cosines in ranking.linear_candidate_scores(directions[tokens], directions, None, given, tokens):
        if is_barred is not None:
            cosines.masked_fill_(is_barred, ranking.EXCLUDED)
        items, best = ranking.top_k(cosines, topk)
        yield some, items, best.clamp(max=1.0)  # a rounding error above it has no angle
