"""Candidates, ranks, metrics and top-K: the one place for evaluation and prediction alike.

B batch, V tokens (num_items + 2), S seen pairs, K length of the list. Ranks are 0-based: 0 is the best place.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from src.batch import PAD
from src.errors import UserError
from src.native import compiler, ranks

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]

EXCLUDED = float("-inf")
TOP_K_BLOCK = 64
# So many scores, 2 MiB, are compared at a time on a CPU, so that what comes of it stays in cache, and so many, 4 MiB,
# are computed at a time if they are only to be compared.
COMPARED_AT_A_TIME, COMPUTED_AT_A_TIME = 2**19, 2**20
# Up to here a sum of ones in float32 is exact.
EXACT_IN_FLOAT = 2**24
# Rank of a target that is no candidate: behind every place that any list could have.
UNRANKED = 2**31 - 1


def linear_scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, linear: Linear = F.linear) -> Tensor:
    """Scores `hidden` weight^T + bias to rank by: float32 whatever the training precision, float64 if they are that.

    In bfloat16 a score has 256 values between two powers of two. Of 20,000 items many would tie with the target, which
    counts against it. A copy of the weights in float32, made where they are not, is small beside the scores.

    Args:
        hidden: [B, D].
        weight: [V, D].
        bias: [V] or None.
        linear: computes the product.

    Returns:
        [B, V].
    """
    with without_autocast(hidden.device):
        return linear(*_in_full_precision(hidden, weight, bias))


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which operations on this device keep the type of their arguments."""
    is_known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if is_known else nullcontext()


def _in_full_precision(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def candidate_scores(scores: Tensor, seen_rows: Tensor, seen_items: Tensor) -> Tensor:
    """Take padding, [MASK] and each row's seen items out of the race by setting their scores to -inf, in place.

    Args:
        scores: [B, V], one score per token.
        seen_rows: [S] int64, rows of `scores`.
        seen_items: [S] int64, the item to exclude from the row beside it.

    Returns:
        `scores` itself, [B, V].

    Raises:
        UserError: if a score is NaN or infinite; such a score has no rank.
    """
    # A sum is many times cheaper than looking at each score, and not finite if one of them is not.
    if not torch.isfinite(scores.sum()) and not torch.isfinite(scores).all():
        raise UserError(
            "the model gave NaN or infinite scores, which have no rank: training has diverged, try a lower training.lr"
        )
    scores[:, PAD] = EXCLUDED
    scores[:, -1] = EXCLUDED
    scores.view(-1)[seen_rows * scores.shape[1] + seen_items] = EXCLUDED
    return scores


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of each row's target by counting the candidates that score at least as much; ties count against it.

    Args:
        scores: [B, V] from `candidate_scores`.
        targets: [B] int64, the true token of each row. An excluded one is `UNRANKED`.

    Returns:
        [B] int64.
    """
    target_scores = scores.gather(1, targets[:, None])  # [B, 1]
    if scores.device.type == "cpu" and scores.shape[1] <= EXACT_IN_FLOAT:
        # Ones and zeros as floats: comparing and summing them is several times faster than with booleans.
        rows = max(1, COMPARED_AT_A_TIME // scores.shape[1])
        memory = torch.empty_like(scores[:rows])
        counts = [
            torch.ge(some, target, out=memory[: len(some)]).sum(dim=1)
            for some, target in zip(torch.split(scores, rows), torch.split(target_scores, rows), strict=True)
        ]
        ranks = torch.cat(counts).long() - 1
    else:
        ranks = (scores >= target_scores).sum(dim=1) - 1
    return ranks.masked_fill(target_scores[:, 0] == EXCLUDED, UNRANKED)


@torch.no_grad()
def linear_target_ranks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, seen_rows: Tensor, seen_items: Tensor
) -> Tensor:
    """`target_ranks` of `linear_scores`, with `candidate_scores` taken out of the race.

    On a CPU a large catalogue is taken some tokens at a time, and their scores are counted while they are in cache, by
    compiled code where there is a compiler.

    Args:
        hidden: [B, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [B] int64, the true token of each row.
        seen_rows, seen_items: [S] int64 each, as in `candidate_scores`.

    Returns:
        [B] int64.

    Raises:
        UserError: if a score is NaN or infinite.
    """
    with without_autocast(hidden.device):
        hidden, weight, bias = _in_full_precision(hidden, weight, bias)
        if hidden.device.type == "cpu" and len(hidden) * len(weight) > COMPUTED_AT_A_TIME:
            counts = _counts(hidden, weight, bias, targets, seen_rows, seen_items)
            if counts is not None:
                is_excluded = (targets == PAD) | (targets == len(weight) - 1)
                is_excluded[seen_rows[seen_items == targets[seen_rows]]] = True
                return counts.masked_fill(is_excluded, UNRANKED)
    scores = linear_scores(hidden, weight, bias)
    return target_ranks(candidate_scores(scores, seen_rows, seen_items), targets)


def _counts(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, seen_rows: Tensor, seen_items: Tensor
) -> Tensor | None:
    """How many candidates score at least as much as each target, itself apart, [B] int64; None for no numbers."""
    library = compiler.library(hidden.dtype)
    if library is not None:
        return ranks.linear_target_ranks(library, hidden, weight, bias, targets, seen_rows, seen_items)
    guess = _true_scores(hidden, weight, bias, targets)
    counts, true_scores, total = _count(hidden, weight, bias, targets, guess, seen_rows, seen_items)
    if not torch.isfinite(total):
        return None
    if not torch.equal(guess, true_scores):  # of few rows, another shape of product can differ in the last bit
        counts, *_ = _count(hidden, weight, bias, targets, true_scores, seen_rows, seen_items)
    return counts - 1


def _true_scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    scores = (hidden @ weight[targets].t()).diagonal()
    return scores if bias is None else scores + bias[targets]


def _count(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    threshold: Tensor,
    seen_rows: Tensor,
    seen_items: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """How many candidates of each row score at least `threshold` [B]: [B] int64.

    Returns:
        also the scores of the targets as they were met on the way, [B], and the sum of all scores, a scalar.
    """
    rows, tokens = len(hidden), len(weight)
    width = max(1, COMPUTED_AT_A_TIME // rows)
    starts = torch.arange(0, tokens, width)
    # Sorted, those of one stretch of tokens stand together.
    target_rows, targets_until = _by_stretch(targets, starts)
    seen_places, seen_until = _by_stretch(seen_items, starts)
    memory = hidden.new_empty(rows * width)
    counts, true_scores, total = torch.zeros_like(targets), torch.empty_like(threshold), hidden.new_zeros(())
    for number, start in enumerate(starts.tolist()):
        some = weight[start : start + width]  # [W, D]
        scores = torch.mm(hidden, some.t(), out=memory[: rows * len(some)].view(rows, -1))  # [B, W]
        if bias is not None:
            scores += bias[start : start + width]
        total += scores.sum()
        here = target_rows[targets_until[number] : targets_until[number + 1]]
        true_scores[here] = scores[here, targets[here] - start]
        seen = seen_places[seen_until[number] : seen_until[number + 1]]
        scores[seen_rows[seen], seen_items[seen] - start] = EXCLUDED
        if start == 0:
            scores[:, PAD] = EXCLUDED
        if start + len(some) == tokens:
            scores[:, -1] = EXCLUDED
        # Ones and zeros as floats: summing them is several times faster than booleans, and exact.
        counts += scores.ge_(threshold[:, None]).sum(dim=1).long()
    return counts, true_scores, total


def _by_stretch(tokens: Tensor, starts: Tensor) -> tuple[Tensor, list[int]]:
    """Places of the tokens [S] sorted by token, and how many of them come before each start, and in all."""
    tokens, places = torch.sort(tokens)
    return places, [*torch.searchsorted(tokens, starts).tolist(), len(tokens)]


def sampled_ranks(scores: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Rank of each row's target among its negatives alone; ties count against it.

    Args:
        scores: [B, V] from `candidate_scores`.
        targets: [B] int64, the true token of each row. An excluded one is `UNRANKED`.
        negatives: [B, n] int64, tokens; padding is no candidate.

    Returns:
        [B] int64, 0 to n.
    """
    target_scores = scores.gather(1, targets[:, None])  # [B, 1]
    ranks = (scores.gather(1, negatives) >= target_scores).sum(dim=1)
    return ranks.masked_fill(target_scores[:, 0] == EXCLUDED, UNRANKED)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best candidates of each row, best first.

    Args:
        scores: [B, V] from `candidate_scores`.
        k: how many; at most V are returned.

    Returns:
        items [B, K] int64 and their scores [B, K]. Where a row has fewer than K candidates, item is 0 and score -inf.
    """
    rows, tokens = scores.shape
    if tokens <= 2 * k * TOP_K_BLOCK:
        best, items = scores.topk(min(k, tokens), dim=1)  # [B, K] each
    else:
        # The K best stand in the K blocks with the best maxima; only those are looked at more closely.
        whole = tokens // TOP_K_BLOCK * TOP_K_BLOCK
        maxima = scores[:, :whole].view(rows, -1, TOP_K_BLOCK).amax(dim=2)  # [B, blocks]
        starts = maxima.topk(k, dim=1).indices[:, :, None] * TOP_K_BLOCK  # [B, K, 1]
        inside = (starts + torch.arange(TOP_K_BLOCK, device=scores.device)).flatten(1)  # [B, K * block]
        rest = torch.arange(whole, tokens, device=scores.device).expand(rows, -1)
        considered = torch.cat([inside, rest], dim=1)
        best, places = scores.gather(1, considered).topk(k, dim=1)
        items = considered.gather(1, places)
    return items.masked_fill(best == EXCLUDED, PAD), best


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


def metrics(ranks: Tensor, topk: list[int], prefix: str) -> dict[str, float]:
    """Means over users: `{prefix}hit@K` and `{prefix}ndcg@K` for each K, and `{prefix}mrr`.

    Args:
        ranks: [users] int64, every user once, so that the figures do not depend on the batch size.
    """
    return {f"{prefix}{name}": values.mean().item() for name, values in metrics_by_user(ranks, topk).items()}


def metrics_by_user(ranks: Tensor, topk: list[int]) -> dict[str, Tensor]:
    """What `metrics` takes the means of: `hit@K`, `ndcg@K` and `mrr` of each user, [users] each."""
    values: dict[str, Tensor] = {}
    ranks = ranks.cpu()  # once
    for k in topk:
        values[f"hit@{k}"] = hit(ranks, k)
        values[f"ndcg@{k}"] = ndcg(ranks, k)
    return values | {"mrr": reciprocal_rank(ranks)}
