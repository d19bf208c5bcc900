"""Coverage, concentration and popularity of lists, by hand."""

import numpy as np
import pytest

from src.data.batching import EvaluationSet
from src.data.sequences import evaluation_spans
from src.evaluation.beyond_accuracy import beyond_accuracy, gini
from tests.data import sequences_of


def test_by_hand() -> None:
    sequences = sequences_of([[1, 2, 5], [4, 5]])
    _, histories, targets = evaluation_spans(sequences, 1, 1)
    dataset = EvaluationSet(sequences.tokens, histories, 5, 4, True, targets)
    counts = np.array([10, 2, 6, 3, 0])
    lists = np.array([[3, 4], [1, 0]])  # the second user has a single candidate
    found = beyond_accuracy(lists, counts, dataset)
    # Lists: (6 + 3) / 2 and 10; histories: (10 + 2) / 2 and 3.
    assert found == pytest.approx(
        {
            "coverage@2": 3 / 5,
            "gini@2": gini(np.array([1, 0, 1, 1, 0])),
            "popularity@2": (4.5 + 10) / 2,
            "popularity_lift@2": 7.25 / 4.5 - 1,
        }
    )


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [([3, 3, 3, 3], 0.0), ([0, 0, 0, 8], 3 / 4), ([1, 3], 1 / 4), ([5, 1, 3], 8 / 27), ([0, 0], 0.0), ([7], 0.0)],
)
def test_gini(amounts: list[int], expected: float) -> None:
    """Half the mean difference between any two, as a share of the mean."""
    assert gini(np.array(amounts)) == pytest.approx(expected)
    if sum(amounts):
        array = np.array(amounts)
        assert expected == pytest.approx(np.abs(array[:, None] - array).mean() / array.mean() / 2)


def test_users_without_lists_do_not_count() -> None:
    sequences = sequences_of([[1, 2]])
    _, histories, targets = evaluation_spans(sequences, 1, 1)
    dataset = EvaluationSet(sequences.tokens, histories, 2, 4, True, targets)
    found = beyond_accuracy(np.array([[2]]), np.array([0, 4]), dataset)
    assert found == {"coverage@1": 0.5, "gini@1": 0.5, "popularity@1": 4.0, "popularity_lift@1": 0.0}
