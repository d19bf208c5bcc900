"""What lists of recommendations are like beyond how often they hit.

U users, K length of a list, N items. A list holds item tokens, 0 where a user has fewer.
"""

import numpy as np

from ..data.batching import EvaluationSet
from ..data.sequences import Indices, flatten


def beyond_accuracy(lists: Indices, counts: Indices, evaluation_set: EvaluationSet) -> dict[str, float]:
    """Coverage, concentration and popularity bias of the lists of all users.

    Args:
        lists: [U, K] int64.
        counts: [N] int64, training interactions of each item.
        evaluation_set: the histories of the users, in the same order.

    Returns:
        coverage@K: share of the catalogue that is in anybody's list.
        gini@K: Gini coefficient of how often items are listed: 0 all alike, towards 1 a few items in all lists.
        popularity@K: mean over users of the mean training count of the items in the list.
        popularity_lift@K: by how much that is above the same mean over the users' own histories, as a share of it;
            0 where people get what is as popular as what they had (Abdollahpouri et al., 2020).
    """
    k = lists.shape[1]
    listed = np.bincount(lists[lists > 0], minlength=len(counts) + 1)[1:]
    rows, places = np.nonzero(lists)
    popularity = mean_over_users(rows, counts[lists[rows, places] - 1])
    rows, tokens = flatten(evaluation_set.tokens, evaluation_set.histories)
    usual = mean_over_users(rows, counts[tokens - 1])
    return {
        f"coverage@{k}": float((listed > 0).mean()),
        f"gini@{k}": gini(listed),
        f"popularity@{k}": popularity,
        f"popularity_lift@{k}": popularity / usual - 1.0 if usual else 0.0,
    }


def gini(amounts: Indices) -> float:
    """Gini coefficient of amounts [N] that are not negative: 0 if all are the same, (N - 1) / N if one has it all."""
    total = int(amounts.sum())
    if total == 0:
        return 0.0
    ordered = np.sort(amounts).astype(np.float64)
    size = len(ordered)
    return float(2.0 * (np.arange(1, size + 1) * ordered).sum() / (size * total) - (size + 1) / size)


def mean_over_users(rows: Indices, amounts: Indices) -> float:
    """Mean of the means of each user's amounts [S], those of the users `rows` [S]; who has none does not count."""
    numbers = np.bincount(rows)
    has_any = numbers > 0
    return float((np.bincount(rows, weights=amounts)[has_any] / numbers[has_any]).mean())
