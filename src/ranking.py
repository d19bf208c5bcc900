"""Candidates, ranks and top-K: the one place for evaluation and prediction alike.

B batch, V tokens (num_items + 2), S seen pairs, K length of the list. Ranks are 0-based: 0 is the best place.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .batch import PAD
from .errors import UserError
from .kept_memory import KeptMemory

EXCLUDED = float("-inf")
TOP_K_BLOCK = 64
# So many scores, 64 MiB, are in memory at a time, but those of at least so many rows: for each chunk of rows the whole
# item table is read.
SCORES_AT_A_TIME, LEAST_ROWS = 2**24, 32
# Up to here a sum of ones in float32 is exact.
EXACT_IN_FLOAT = 2**24
# Rank of a target that is no candidate: behind every place that any list could have.
UNRANKED = 2**31 - 1
_kept = KeptMemory()  # for scores


def rows_at_a_time(tokens: int) -> int:
    """Of how many rows the scores of so many tokens are to be in memory at a time."""
    return max(LEAST_ROWS, SCORES_AT_A_TIME // tokens)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which operations on this device keep the type of their arguments."""
    is_known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if is_known else nullcontext()


def in_full_precision(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """All three in float32, or in float64 if one of them is that."""
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
        ranks = torch.ge(scores, target_scores, out=torch.empty_like(scores)).sum(dim=1).long() - 1
    else:
        ranks = (scores >= target_scores).sum(dim=1) - 1
    return ranks.masked_fill(target_scores[:, 0] == EXCLUDED, UNRANKED)


@torch.no_grad()
def linear_candidate_scores(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seen_rows: Tensor,
    seen_items: Tensor,
    linear: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """`candidate_scores` of hidden weight^T + bias, some rows R at a time.

    In float32 whatever the training precision, or in float64 if they are that: in bfloat16 a score has 256 values
    between two powers of two, so that of 20,000 items many would tie with the target, which counts against it.

    Args:
        hidden: [B, D].
        weight: [V, D].
        bias: [V] or None.
        seen_rows, seen_items: [S] int64 each, as in `candidate_scores`, rows ascending.
        linear: computes the product, [R, D] -> [R, V], if it is another one.

    Yields:
        which rows, and their scores [R, V], in memory that the next ones overwrite.

    Raises:
        UserError: if a score is NaN or infinite.
    """
    hidden, weight, bias = in_full_precision(hidden, weight, bias)
    rows = rows_at_a_time(len(weight))
    starts = range(0, len(hidden), rows)
    cuts = torch.searchsorted(seen_rows.cpu(), torch.tensor([*starts, len(hidden)])).tolist()
    with _kept.entries(min(rows, len(hidden)) * len(weight), hidden) as memory:
        for number, start in enumerate(starts):
            some = hidden[start : start + rows]  # [R, D]
            with without_autocast(hidden.device):
                if linear is not None:
                    scores = linear(some)
                else:
                    here = memory[: len(some) * len(weight)].view(len(some), -1)
                    scores = torch.mm(some, weight.t(), out=here)  # [R, V]
                    if bias is not None:
                        scores += bias
            seen = slice(cuts[number], cuts[number + 1])
            yield (
                slice(start, start + len(some)),
                candidate_scores(scores, seen_rows[seen] - start, seen_items[seen]),
            )


def linear_target_ranks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    seen_rows: Tensor,
    seen_items: Tensor,
    linear: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`target_ranks` of `linear_candidate_scores`: [B] int64.

    Args:
        targets: [B] int64, the true token of each row. An excluded one is `UNRANKED`.
    """
    chunks = linear_candidate_scores(hidden, weight, bias, seen_rows, seen_items, linear)
    return torch.cat([targets[:0], *(target_ranks(scores, targets[rows]) for rows, scores in chunks)])


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
