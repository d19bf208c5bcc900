"""Popularity, against the ranks of the same scores by the general way."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src import baselines, ranking
from src.data.batching import EvaluationSet
from src.data.sequences import Sequences, evaluation_spans
from src.data.vocabulary import Vocabulary
from tests.data import NUM_ITEMS, histories_strategy, sequences_of


def vocabulary_of(counts: list[int]) -> Vocabulary:
    return Vocabulary(pa.array([f"i{row}" for row in range(len(counts))]), np.array(counts, dtype=np.int64))


def evaluation_set(sequences: Sequences, num_items: int, exclude_seen: bool) -> EvaluationSet:
    _, histories, targets = evaluation_spans(sequences, 1, 1)
    return EvaluationSet(sequences.tokens, histories, num_items, 4, exclude_seen, targets)


def ranks_by_scores(counts: list[int], dataset: EvaluationSet) -> list[int]:
    """The popularity of every item as its score, [MASK] and padding above all."""
    ranks: dict[int, int] = {}
    for batch in dataset[np.arange(len(dataset.targets))]:
        scores = torch.tensor([1e9, *counts, 1e9], dtype=torch.float64).repeat(len(batch.targets), 1)
        scores = ranking.candidate_scores(scores, batch.seen_rows, batch.seen_items)
        part = ranking.target_ranks(scores, batch.targets)
        ranks |= dict(zip(batch.users.tolist(), part.tolist(), strict=True))
    return [ranks[row] for row in range(len(dataset.targets))]


@settings(max_examples=100, deadline=None)
@given(
    histories=histories_strategy,
    counts=st.lists(st.integers(0, 5), min_size=NUM_ITEMS, max_size=NUM_ITEMS),
    exclude_seen=st.booleans(),
)
def test_ranks_are_those_of_the_counts_as_scores(
    histories: list[list[int]], counts: list[int], exclude_seen: bool
) -> None:
    dataset = evaluation_set(sequences_of([*histories, [1, 2]]), NUM_ITEMS, exclude_seen)
    ranks = baselines.popularity_ranks(vocabulary_of(counts), dataset)
    assert ranks.dtype == np.int64
    assert ranks.tolist() == ranks_by_scores(counts, dataset)


@pytest.mark.parametrize(
    ("exclude_seen", "expected"),
    [
        (False, [1, 4, 0, 4]),
        # Item 1 is out of the way of the first; the third and the last have their target in the history.
        (True, [0, 3, ranking.UNRANKED, ranking.UNRANKED]),
    ],
)
def test_ranks_by_hand(exclude_seen: bool, expected: list[int]) -> None:
    counts = [9, 5, 2, 2, 2]  # items 3, 4 and 5 share the last place
    sequences = sequences_of([[1, 1, 2], [2, 4], [3, 1, 1], [5, 3, 5]])
    dataset = evaluation_set(sequences, 5, exclude_seen)
    assert baselines.popularity_ranks(vocabulary_of(counts), dataset).tolist() == expected
