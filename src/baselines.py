"""What a model has to beat."""

import numpy as np
from numpy.typing import NDArray

from src import ranking
from src.data.batching import EvaluationSet
from src.data.sequences import flatten
from src.data.vocabulary import Vocabulary


def popularity_ranks(vocabulary: Vocabulary, evaluation_set: EvaluationSet) -> NDArray[np.int64]:
    """Rank of every held-out item when all candidates are ranked by how often training saw them.

    The same rules as for a model: seen items are no candidates if the set says so, ties count against the target, and
    an excluded target is `ranking.UNRANKED`. Counted without a score matrix.

    Returns:
        [E] int64, in the order of the set.
    """
    counts, targets = vocabulary.counts, evaluation_set.targets
    target_counts = counts[targets - 1]
    ranks = len(counts) - np.searchsorted(np.sort(counts), target_counts, side="left") - 1
    if evaluation_set.exclude_seen:
        rows, items = flatten(evaluation_set.tokens, evaluation_set.histories)
        pairs = np.unique(rows * (len(counts) + 1) + items)  # a history may have an item twice
        rows, items = np.divmod(pairs, len(counts) + 1)
        ranks -= np.bincount(rows[counts[items - 1] >= target_counts[rows]], minlength=len(targets))
        ranks[rows[items == targets[rows]]] = ranking.UNRANKED
    return ranks
