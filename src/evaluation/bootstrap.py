"""Confidence intervals over users: how far a figure would move had other users like these been asked.

The percentile bootstrap (Efron, 1979). All contestants and metrics share the resamples, so that differences between
them have intervals too, which are narrower than those of the figures where the same users are hard for both.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
ENTRIES = 2**22  # entries of the tables over (resample, user) that are held at a time


def resampled_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means over users drawn anew with replacement.

    Args:
        values: [E, M], M metrics of each of E users.
        resamples: how often E users are drawn.
        seed: what the draws follow from, together with E.

    Returns:
        [resamples, M].
    """
    users = len(values)
    generator = np.random.default_rng((seed, users))
    means = np.empty((resamples, values.shape[1]))
    rows = max(1, ENTRIES // users)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = generator.integers(0, users, (size, users)) + np.arange(size)[:, None] * users
        counts = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users)
        means[start : start + size] = counts @ values / users
    return means


def interval(means: Floats) -> list[float]:
    """Low and high end that hold the middle 95% of resampled means. [resamples] -> 2 numbers."""
    tail = (1.0 - LEVEL) / 2.0
    return [float(end) for end in np.quantile(means, [tail, 1.0 - tail])]
