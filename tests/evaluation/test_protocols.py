"""Negatives: who is excluded, what they depend on, and how often each item is drawn."""

import itertools
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.batching import EvaluationSet
from src.data.sequences import Sequences, evaluation_spans
from src.evaluation import protocols
from src.evaluation.protocols import draw
from tests.data import NUM_ITEMS, histories_strategy, sequences_of

SAMPLED = ("uniform-100", "popularity-100")


def set_of(sequences: Sequences, num_items: int = NUM_ITEMS) -> EvaluationSet:
    _, histories, targets = evaluation_spans(sequences, 1, 1)
    return EvaluationSet(sequences.tokens, histories, num_items, 4, True, targets)


def ids_of(users: int) -> pa.StringArray:
    return pa.array([f"user {row}" for row in range(users)], pa.string())


@settings(max_examples=100, deadline=None)
@given(
    histories=histories_strategy,
    counts=st.lists(st.integers(0, 4), min_size=NUM_ITEMS, max_size=NUM_ITEMS),
    protocol=st.sampled_from(SAMPLED),
    size=st.integers(1, NUM_ITEMS + 3),
    draws=st.sampled_from([1, 3, 300]),
    entries=st.sampled_from([1, 40, 2**22]),
)
def test_negatives_are_distinct_and_never_of_the_history_nor_the_target(
    histories: list[list[int]], counts: list[int], protocol: str, size: int, draws: int, entries: int
) -> None:
    histories = [*histories, [1, 2]]
    evaluated = [history for history in histories if len(history) > 1]
    counts[5] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocols, "DRAWS", draws)
        patch.setattr(protocols, "ENTRIES", entries)
        negatives = draw(
            protocol, set_of(sequences_of(histories)), np.array(counts), ids_of(len(evaluated)), seed=3, size=size
        )
    assert negatives.shape == (len(evaluated), size)
    for history, row in zip(evaluated, negatives.tolist(), strict=True):
        drawn = [item for item in row if item]
        possible = {
            item
            for item in range(1, NUM_ITEMS + 1)
            if item not in history and (protocol == "uniform-100" or counts[item - 1] > 0)
        }
        assert row == drawn + [0] * (size - len(drawn))
        assert len(set(drawn)) == len(drawn) == min(size, len(possible))
        assert set(drawn) <= possible


def many_histories(users: int, items: int) -> list[list[int]]:
    generator = np.random.default_rng(4)
    return [generator.permutation(items)[: 3 + user % 5].tolist() for user in range(users)]


@pytest.mark.parametrize("protocol", SAMPLED)
def test_a_users_negatives_depend_on_nobody_else_and_on_no_order(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = [[item + 1 for item in history] for history in many_histories(40, 500)]
    counts = np.random.default_rng(5).integers(0, 9, 500)
    ids = ids_of(len(histories))
    whole = draw(protocol, set_of(sequences_of(histories), 500), counts, ids, seed=7)
    some = [31, 4, 17]
    alone = draw(protocol, set_of(sequences_of([histories[row] for row in some]), 500), counts, ids.take(some), seed=7)
    assert alone.tolist() == whole[some].tolist()
    monkeypatch.setattr(protocols, "ENTRIES", 1)  # one user at a time
    assert draw(protocol, set_of(sequences_of(histories), 500), counts, ids, seed=7).tolist() == whole.tolist()


@pytest.mark.parametrize("protocol", SAMPLED)
def test_seed_and_user_and_nothing_but_them_change_the_draws(protocol: str) -> None:
    dataset = set_of(sequences_of([[1, 2, 3]] * 3), 500)
    counts = np.full(500, 2)
    ids = pa.array(["ann", "bob", "ann"])
    one, same, other = (draw(protocol, dataset, counts, ids, seed=seed) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one[0].tolist() == one[2].tolist()
    assert set(one[0]) != set(one[1])
    assert set(one[0]) != set(other[0])


def test_the_draws_of_this_version_are_those_of_the_next() -> None:
    """Figures of different machines and versions of this package can be compared."""
    dataset = set_of(sequences_of([[1, 2, 3]]), 40)
    row = draw("uniform-100", dataset, np.ones(40, dtype=np.int64), pa.array(["ann"]), seed=42, size=6)[0].tolist()
    assert row == [25, 22, 17, 14, 40, 19]


@pytest.mark.parametrize("draws", [1, 2, 300])
def test_popularity_draws_one_after_the_other_with_chances_by_count(
    draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ordered pair as often as drawing without replacement has it, whichever way the draws are completed."""
    monkeypatch.setattr(protocols, "DRAWS", draws)
    users = 20_000
    counts = np.array([3, 9, 1, 4, 7, 2, 0])
    sequences = sequences_of([[2, 5]] * users)  # so that 1, 3, 4 and 6 are left, with counts 3, 1, 4 and 2
    negatives = draw("popularity-100", set_of(sequences, 7), counts, ids_of(users), seed=11, size=2)
    seen = Counter(map(tuple, negatives.tolist()))
    left = {1: 3, 3: 1, 4: 4, 6: 2}
    assert set(seen) == set(itertools.permutations(left, 2))
    for (first, second), count in seen.items():
        chance = left[first] / 10 * left[second] / (10 - left[first])
        assert abs(count / users - chance) < 4 * math.sqrt(chance * (1 - chance) / users)


@pytest.mark.parametrize("draws", [1, 300])
def test_uniform_draws_every_item_alike(draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "DRAWS", draws)
    users, items, size = 5_000, 30, 6
    counts = np.arange(items)
    negatives = draw("uniform-100", set_of(sequences_of([[2, 5]] * users), items), counts, ids_of(users), 1, size)
    counts = np.bincount(negatives.ravel(), minlength=items + 1)
    chance = size / (items - 2)
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    others = np.delete(counts, [0, 2, 5]) / users
    assert np.abs(others - chance).max() < 4.5 * math.sqrt(chance * (1 - chance) / users)


def test_uniforms_are_those_of_splitmix64() -> None:
    """The first numbers of the reference implementation from seed 1234567."""
    numbers = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    got = protocols.uniforms(np.array([1234567], dtype=np.uint64), 0, 3)
    assert got.tolist() == [[(number >> 11) / 2**53 for number in numbers]]
    assert protocols.uniforms(np.array([1234567], dtype=np.uint64), 2, 3).tolist() == [[got[0, 2]]]
