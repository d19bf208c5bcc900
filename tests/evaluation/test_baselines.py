"""Popularity and successors of the last item, against counting in plain Python."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src import ranking
from src.data.batching import EvaluationSet
from src.data.sequences import Sequences, evaluation_spans, training_spans
from src.evaluation.baselines import LastItemSuccessors, Popularity
from src.evaluation.collector import Observer, Scorer, observe
from tests.data import NUM_ITEMS, histories_strategy, sequences_of


def evaluation_set(sequences: Sequences, num_items: int, exclude_seen: bool) -> EvaluationSet:
    _, histories, targets = evaluation_spans(sequences, 1, 1)
    return EvaluationSet(sequences.tokens, histories, num_items, 4, exclude_seen, targets)


def ranks_of(scorer: Scorer, dataset: EvaluationSet) -> list[int]:
    return observe(scorer, dataset, Observer({}, 3), batch_size=2).ranks["full"].tolist()


def rank_by_hand(keys: dict[int, tuple[int, ...]], target: int, out: set[int]) -> int:
    if target in out:
        return ranking.UNRANKED
    return sum(keys[item] >= keys[target] for item in keys if item not in out) - 1


counts_strategy = st.lists(st.integers(0, 5), min_size=NUM_ITEMS, max_size=NUM_ITEMS)


@settings(max_examples=100, deadline=None)
@given(histories=histories_strategy, counts=counts_strategy, exclude_seen=st.booleans(), max_len=st.integers(2, 5))
def test_ranks_are_those_of_plain_counting(
    histories: list[list[int]], counts: list[int], exclude_seen: bool, max_len: int
) -> None:
    histories = [*histories, [1, 2]]
    sequences = sequences_of(histories)
    dataset = replace(evaluation_set(sequences, NUM_ITEMS, exclude_seen), max_len=max_len)
    spans = training_spans(sequences, 1)
    follows = Counter(
        pair
        for history in histories
        for training in [history[:-1] if len(history) > 1 else history]
        for pair in itertools.pairwise(training)
    )
    popularity, successors = [], []
    for *history, target in (history for history in histories if len(history) > 1):
        out = set(history) if exclude_seen else set()
        items = range(1, NUM_ITEMS + 1)
        popularity.append(rank_by_hand({item: (counts[item - 1],) for item in items}, target, out))
        keys = {item: (follows[history[-1], item], counts[item - 1]) for item in items}
        successors.append(rank_by_hand(keys, target, out))
    assert ranks_of(Popularity(np.array(counts)), dataset) == popularity
    assert ranks_of(LastItemSuccessors(sequences.tokens, spans, np.array(counts)), dataset) == successors


@pytest.mark.parametrize(
    ("exclude_seen", "expected"),
    [
        (False, [1, 4, 0, 4]),
        # Item 1 is out of the way of the first; the third and the last have their target in the history.
        (True, [0, 3, ranking.UNRANKED, ranking.UNRANKED]),
    ],
)
def test_popularity_by_hand(exclude_seen: bool, expected: list[int]) -> None:
    counts = np.array([9, 5, 2, 2, 2])  # items 3, 4 and 5 share the last place
    sequences = sequences_of([[1, 1, 2], [2, 4], [3, 1, 1], [5, 3, 5]])
    assert ranks_of(Popularity(counts), evaluation_set(sequences, 5, exclude_seen)) == expected


def test_lists_of_the_item_item_baseline_are_successors_then_popular_items() -> None:
    sequences = sequences_of([[1, 4, 1, 4, 1, 5, 2], [3, 1, 6], [6, 2]])
    counts = np.array([1, 9, 8, 7, 6, 5])
    scorer = LastItemSuccessors(sequences.tokens, training_spans(sequences, 1), counts)
    lists = observe(scorer, evaluation_set(sequences, 6, False), Observer({}, 4)).lists
    # 5 was followed by nothing in training; 1 twice by 4 and once by 5; 6 by nothing.
    assert lists.tolist() == [[2, 3, 4, 5], [4, 5, 2, 3], [2, 3, 4, 5]]


def test_a_user_without_history_gets_the_popular_items() -> None:
    sequences = sequences_of([[3], [3, 1, 2]])
    counts = np.array([1, 5, 2])
    histories = sequences.histories
    targets = sequences.tokens[histories.stops - 1]
    before = type(histories)(histories.starts, histories.stops - 1)
    dataset = EvaluationSet(sequences.tokens, before, 3, 4, False, targets)
    scorer = LastItemSuccessors(sequences.tokens, training_spans(sequences, 1), counts)
    assert observe(scorer, dataset, Observer({}, 3)).lists.tolist() == [[2, 3, 1], [2, 3, 1]]
    alone = EvaluationSet(sequences.tokens, before[np.array([0])], 3, 4, False, targets[:1])
    assert observe(scorer, alone, Observer({}, 3)).lists.tolist() == [[2, 3, 1]]


def test_the_item_item_baseline_tells_pairs_of_a_large_catalogue_apart() -> None:
    num_items = 60_000  # pairs of them are beyond what a table's int32 tokens hold
    sequences = Sequences(
        np.array([59_999, 60_000, 5, 59_999, 60_000, 3, 59_999, 60_000], dtype=np.int32), np.array([0, 3, 5, 8])
    )
    dataset = evaluation_set(sequences, num_items, False)
    scorer = LastItemSuccessors(sequences.tokens, training_spans(sequences, 1), np.zeros(num_items, dtype=np.int64))
    # 60000 followed 59999 once, nothing followed 60000.
    assert ranks_of(scorer, dataset) == [num_items - 1, 0, 0]
