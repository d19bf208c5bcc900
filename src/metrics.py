"""Metrics of ranks: HIT@K, NDCG@K and MRR of one held-out item a user, one place for training and evaluation alike."""

import torch
from torch import Tensor


def hit(ranks: Tensor, k: int) -> Tensor:
    """HIT@K of each rank: 1 within the first K places, else 0; with one target a user this is Recall@K.

    As all metrics in float64, and so on the CPU: some devices, such as Apple's, have no float64. Same shape as `ranks`.
    """
    return (ranks.cpu() < k).double()


def ndcg(ranks: Tensor, k: int) -> Tensor:
    """NDCG@K of each rank: 1 / log2(rank + 2) within the first K places, else 0. Same shape as `ranks`."""
    return hit(ranks, k) / torch.log2(ranks.cpu().double() + 2.0)


def reciprocal_rank(ranks: Tensor) -> Tensor:
    """1 / (rank + 1), whose mean is MRR. Same shape as `ranks`."""
    return 1.0 / (ranks.cpu().double() + 1.0)


def means(ranks: Tensor, topk: list[int], prefix: str) -> dict[str, float]:
    """Means over users: `{prefix}hit@K` and `{prefix}ndcg@K` for each K, and `{prefix}mrr`.

    Args:
        ranks: [users] int64, every user once, so that the figures do not depend on the batch size.
    """
    return {f"{prefix}{name}": values.mean().item() for name, values in by_user(ranks, topk).items()}


def by_user(ranks: Tensor, topk: list[int]) -> dict[str, Tensor]:
    """What `means` averages: `hit@K`, `ndcg@K` and `mrr` of each user, [users] each."""
    values: dict[str, Tensor] = {}
    ranks = ranks.cpu()  # once
    for k in topk:
        values[f"hit@{k}"] = hit(ranks, k)
        values[f"ndcg@{k}"] = ndcg(ranks, k)
    return values | {"mrr": reciprocal_rank(ranks)}
