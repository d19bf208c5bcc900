"""Groups of users that are like each other in one respect, to see for whom a model works."""

import numpy as np

from ..data.sequences import Indices

GROUPS = 5


def groups(amounts: Indices, wanted: int = GROUPS) -> list[tuple[str, Indices]]:
    """Split users by an amount into groups of about equal size; users with the same amount stay together.

    Args:
        amounts: [E] int64, such as the length of each history.
        wanted: how many groups; where many users share an amount there are fewer.

    Returns:
        From the smallest amounts to the largest: a label such as "5" or "5 to 12", from the amounts that occur, and the
        users [G] int64.
    """
    inner = np.quantile(amounts, np.arange(1, wanted) / wanted, method="inverted_cdf")
    uppers = np.unique([*inner, amounts.max()])  # inclusive
    group_of = np.searchsorted(uppers, amounts, side="left")
    found = []
    for group in range(len(uppers)):
        users = np.flatnonzero(group_of == group)
        low, high = int(amounts[users].min()), int(amounts[users].max())
        found.append((f"{low:,}" if low == high else f"{low:,} to {high:,}", users))
    return found
