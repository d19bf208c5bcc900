"""The negatives that a target is ranked among under the sampled protocols.

E evaluated users, N items, B users of a chunk, M draws of each.

The full protocol ranks every item. The sampled ones rank the target among 100 items that the user does not have, drawn
without replacement: uniformly, or one after the other with chances that go with how often training saw the items
(popularity, the protocol of the paper). A sampled figure is far above a full one and orders models differently
(Krichene and Rendle, 2020), so the two never stand in one column.

What is drawn for a user follows from the seed, the user's id, the user's history and the vocabulary alone: neither the
other users nor the order or the number of batches or processes change it.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from ..data.batching import EvaluationSet
from ..data.sequences import Indices, flatten

FULL = "full"
UNIFORM = "uniform-100"
NEGATIVES = 100
# Draws of each user with replacement; whoever has too few distinct ones among them is completed from all items.
DRAWS = 3 * NEGATIVES
# Entries of the tables over (user, item) that are held at a time.
ENTRIES = 2**22

UInt64s = NDArray[np.uint64]


def draw(
    protocol: str,
    evaluation_set: EvaluationSet,
    counts: Indices,
    user_ids: pa.StringArray,
    seed: int,
    size: int = NEGATIVES,
) -> Indices:
    """Negatives of every evaluated user.

    Args:
        protocol: "uniform-100" or "popularity-100".
        evaluation_set: E histories with their targets; all items of both are excluded.
        counts: [N] int64, training interactions of each item; under popularity an item without any is never drawn.
        user_ids: [E] strings, in the order of the set.
        seed: what, with the id, each user's draws follow from.
        size: how many a user gets, if there are so many.

    Returns:
        [E, size] int64 tokens; where a user has fewer candidates, the rest of the row is 0.
    """
    weights = np.ones(len(counts)) if protocol == UNIFORM else counts.astype(np.float64)
    hashes = pd.util.hash_array(user_ids.to_numpy(zero_copy_only=False), categorize=False)
    keys = _mix(hashes ^ _mix(np.full(len(hashes), seed, dtype=np.uint64)))  # [E], of each user's random stream
    negatives = np.zeros((len(keys), size), dtype=np.int64)
    rows = max(1, ENTRIES // max(len(counts) + 1, DRAWS))
    for start in range(0, len(keys), rows):
        chunk = np.arange(start, min(start + rows, len(keys)))
        is_taken = np.zeros((len(chunk), len(counts) + 1), dtype=bool)  # [B, N + 1], by token
        is_taken[flatten(evaluation_set.tokens, evaluation_set.histories[chunk])] = True
        is_taken[np.arange(len(chunk)), evaluation_set.targets[chunk]] = True
        negatives[chunk] = _draw(weights, is_taken, keys[chunk], size)
    return negatives


def uniforms(keys: UInt64s, start: int, stop: int) -> NDArray[np.float64]:
    """Entries `start` to `stop` of the streams of random numbers in [0, 1) that belong to the keys.

    SplitMix64 (Steele, Lea and Flood, 2014), whose n-th number needs none of those before it.

    Returns:
        [B, stop - start].
    """
    places = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((_mix(keys[:, None] + places) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _mix(x: UInt64s) -> UInt64s:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _draw(weights: NDArray[np.float64], is_taken: NDArray[np.bool_], keys: UInt64s, size: int) -> Indices:
    """Negatives [B, size] of some users; marks them in `is_taken` [B, N + 1].

    Drawing with replacement and passing over what is taken gives items one after the other with chances that go with
    the weights of those left, which is drawing without replacement.
    """
    cumulative = weights.cumsum() / weights.sum()
    last = np.searchsorted(cumulative, cumulative[-1])  # the last sum may be a little below 1
    draws = np.minimum(np.searchsorted(cumulative, uniforms(keys, 0, DRAWS), side="right"), last) + 1  # [B, M]
    by_user = pd.Series((draws + np.arange(len(draws))[:, None] * is_taken.shape[1]).ravel())
    is_new = ~by_user.duplicated().to_numpy().reshape(draws.shape) & ~np.take_along_axis(is_taken, draws, axis=1)
    places = is_new.cumsum(axis=1) - 1
    rows, columns = np.nonzero(is_new & (places < size))
    negatives = np.zeros((len(keys), size), dtype=np.int64)
    negatives[rows, places[rows, columns]] = draws[rows, columns]
    is_taken[rows, draws[rows, columns]] = True
    short = np.flatnonzero(negatives[:, -1] == 0)
    if len(short):
        negatives[short] = _complete(negatives[short], weights, is_taken[short], keys[short])
    return negatives


def _complete(negatives: Indices, weights: NDArray[np.float64], is_taken: NDArray[np.bool_], keys: UInt64s) -> Indices:
    """Fill rows of negatives that end in zeros, by one exponential clock for each item that is not taken.

    The clocks run at the rates of the weights; in the order in which they ring, items are drawn without replacement.
    """
    size = negatives.shape[1]
    with np.errstate(divide="ignore"):
        clocks = -np.log1p(-uniforms(keys, DRAWS, DRAWS + len(weights))) / weights  # [B, N]; infinite at weight 0
    clocks[is_taken[:, 1:] | (weights == 0)] = np.inf
    most = min(size, len(weights))
    first = np.argpartition(clocks, most - 1, axis=1)[:, :most]
    times = np.take_along_axis(clocks, first, axis=1)
    order = np.argsort(times, axis=1)
    rung = np.where(np.take_along_axis(times, order, axis=1) < np.inf, np.take_along_axis(first, order, axis=1) + 1, 0)
    found = (negatives != 0).sum(axis=1)
    rows, columns = np.nonzero(np.arange(most) < (size - found)[:, None])
    negatives[rows, found[rows] + columns] = rung[rows, columns]
    return negatives
