"""Metrics of ranks: HIT@K, NDCG@K, Recall@K and MRR of held-out items, one place for training and evaluation alike."""

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


def means(ranks: Tensor, topk: list[int], prefix: str, owners: Tensor | None = None) -> dict[str, float]:
    """Means over users: `{prefix}hit@K` and `{prefix}ndcg@K` for each K, and `{prefix}mrr`.

    Args:
        ranks: [targets] int64, every target once, so that the figures do not depend on the batch size.
        owners: [targets] int64, whose each is; None: each is another user's. With owners there is
            `{prefix}recall@K` too.
    """
    return {f"{prefix}{name}": values.mean().item() for name, values in by_user(ranks, topk, owners).items()}


def by_user(ranks: Tensor, topk: list[int], owners: Tensor | None = None) -> dict[str, Tensor]:
    """What `means` averages: `hit@K`, `ndcg@K`, with owners `recall@K`, and `mrr` of each user, [users] each.

    All targets of a user have their places in one list. HIT@K asks for any of them within the first K, Recall@K is the
    share of them there, NDCG@K is the sum of theirs over that of a list that begins with them all, and MRR takes the
    first.
    """
    values: dict[str, Tensor] = {}
    ranks = ranks.cpu()  # once
    if owners is None:
        for k in topk:
            values[f"hit@{k}"] = hit(ranks, k)
            values[f"ndcg@{k}"] = ndcg(ranks, k)
        return values | {"mrr": reciprocal_rank(ranks)}
    _, users, sizes = torch.unique(owners.cpu(), return_inverse=True, return_counts=True)

    def sums(amounts: Tensor) -> Tensor:
        return torch.zeros(len(sizes), dtype=torch.double).index_add(0, users, amounts)

    for k in topk:
        hits = sums(hit(ranks, k))
        best = ndcg(torch.arange(k), k).cumsum(0)  # of lists that begin with 1, 2, ... targets
        values[f"hit@{k}"] = (hits > 0).double()
        values[f"ndcg@{k}"] = sums(ndcg(ranks, k)) / best[sizes.clamp(max=k) - 1]
        values[f"recall@{k}"] = hits / sizes
    first = torch.zeros(len(sizes), dtype=torch.double).scatter_reduce(0, users, reciprocal_rank(ranks), "amax")
    return values | {"mrr": first}
