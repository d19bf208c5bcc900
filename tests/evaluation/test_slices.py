"""Groups of about equal size."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from src.evaluation.slices import groups


def test_by_hand() -> None:
    amounts = np.array([3, 1200, 1, 2, 2, 9, 50, 7, 8, 1200])
    assert [(label, users.tolist()) for label, users in groups(amounts)] == [
        ("1 to 2", [2, 3, 4]),
        ("3", [0]),
        ("7 to 8", [7, 8]),
        ("9 to 50", [5, 6]),
        ("1,200", [1, 9]),
    ]


def test_one_amount_is_one_group() -> None:
    assert [(label, users.tolist()) for label, users in groups(np.array([4, 4, 4]))] == [("4", [0, 1, 2])]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 6))
def test_every_user_is_in_one_group_and_groups_do_not_overlap(amounts: list[int], wanted: int) -> None:
    array = np.array(amounts)
    found = groups(array, wanted)
    assert sorted(np.concatenate([users for _, users in found])) == list(range(len(amounts)))
    ends = [(array[users].min(), array[users].max()) for _, users in found]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))
    assert len(found) <= wanted
    if len(set(amounts)) == len(amounts) >= wanted:
        sizes = [len(users) for _, users in found]
        assert len(sizes) == wanted
        assert max(sizes) - min(sizes) <= 1
