"""Which rows form which batch, and what evaluation and prediction are given."""

from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.batch import PredictBatch
from src.data.batching import (
    AheadLoader,
    EvaluationSet,
    HistorySet,
    NegativeSampler,
    OrderedBatches,
    Plan,
    ShuffledBatches,
    TrainingSet,
)
from src.data.sequences import evaluation_spans
from tests.data import NUM_ITEMS, histories_strategy, sequences_of

MASK = NUM_ITEMS + 1


def rows_of(sampler: ShuffledBatches, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return [plan.rows.tolist() for plan in sampler]


def history_set(histories: list[list[int]], max_len: int, exclude_seen: bool = True) -> HistorySet:
    sequences = sequences_of(histories)
    return HistorySet(sequences.tokens, sequences.histories, NUM_ITEMS, max_len, exclude_seen)


def inputs_of(dataset: HistorySet, *rows: int) -> dict[int, list[int]]:
    """Input of each row of the data set, padding included."""
    batch = dataset[np.array(rows)]
    return dict(zip(batch.users.tolist(), batch.inputs.tolist(), strict=True))


def seen_of(batch: PredictBatch) -> set[tuple[int, int]]:
    """Row of the data set and item of every seen pair."""
    return {(int(batch.users[row]), int(item)) for row, item in zip(batch.seen_rows, batch.seen_items, strict=True)}


lengths_strategy = st.lists(st.integers(1, 9), min_size=1, max_size=40).map(np.array)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_strategy, batch_size=st.integers(1, 7), epoch=st.integers(0, 5))
def test_every_row_once_an_epoch(lengths: np.ndarray, batch_size: int, epoch: int) -> None:
    sampler = ShuffledBatches(lengths, batch_size, seed=3)
    batches = rows_of(sampler, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == len(sampler) == -(-len(lengths) // batch_size)
    full, rest = divmod(len(lengths), batch_size)
    assert sorted(len(batch) for batch in batches) == [rest] * (rest > 0) + [batch_size] * full


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_strategy, batch_size=st.integers(1, 5), world_size=st.sampled_from([2, 3]))
def test_processes_share_every_batch_out(lengths: np.ndarray, batch_size: int, world_size: int) -> None:
    samplers = [ShuffledBatches(lengths, batch_size, 3, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(2)
    assert all(len(plan.rows) > 0 for sampler in samplers for plan in sampler)  # or a process would miss a step
    plans = [[plan.rows.tolist() if plan.counts else [] for plan in sampler] for sampler in samplers]
    assert {len(plan) for plan in plans} == {len(samplers[0])}
    for shares in zip(*plans, strict=True):
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert 1 <= len(shares[0]) <= batch_size
    alone = rows_of(ShuffledBatches(lengths, batch_size * world_size, 3), epoch=2)
    assert [sorted(row for share in shares for row in share) for shares in zip(*plans, strict=True)] == [
        sorted(batch) for batch in alone
    ]


@settings(max_examples=30, deadline=None)
@given(lengths=lengths_strategy, batch_size=st.integers(1, 5), first=st.integers(0, 9))
def test_a_resumed_epoch_has_the_rest_of_it_and_the_next_one_is_whole(
    lengths: np.ndarray, batch_size: int, first: int
) -> None:
    whole, resumed = ShuffledBatches(lengths, batch_size, 3, 0, 2), ShuffledBatches(lengths, batch_size, 3, 0, 2)
    resumed.resume(epoch=4, first_batch=first)
    iter(resumed)  # Lightning may begin more than once
    assert rows_of(resumed, 4) == rows_of(whole, 4)[first:]
    assert rows_of(resumed, 5) == rows_of(whole, 5)


def test_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = np.arange(50) % 7 + 1
    first = rows_of(ShuffledBatches(lengths, 8, seed=3), epoch=4)
    sampler = ShuffledBatches(lengths, 8, seed=3)
    assert rows_of(sampler, epoch=1) != first
    assert rows_of(sampler, epoch=4) == first
    assert rows_of(ShuffledBatches(lengths, 8, seed=5), epoch=4) != first
    # Not only the batches are in another order, their rows are others.
    assert {frozenset(batch) for batch in rows_of(sampler, epoch=5)} != {frozenset(batch) for batch in first}


@pytest.mark.parametrize("ahead", [1, 3, 9])
def test_batches_made_in_a_row_are_those_made_one_by_one(ahead: int) -> None:
    made: list[int] = []

    class Numbers:
        def __getitem__(self, number: int) -> int:
            made.append(number)
            return number * number

    loader = AheadLoader(ahead=ahead, dataset=Numbers(), sampler=range(7), batch_size=None)
    assert len(loader) == 7
    for _ in range(2):
        made.clear()
        for place, batch in enumerate(loader):
            assert batch == place**2
            assert len(made) == min(7, (place // ahead + 1) * ahead)
        assert made == list(range(7))


def test_each_batch_has_random_draws_of_its_own() -> None:
    entropies = []
    for epoch in range(3):
        for rank in range(2):
            sampler = ShuffledBatches(np.ones(30, dtype=np.int64), 4, 3, rank, world_size=2)
            sampler.set_epoch(epoch)
            entropies += [plan.entropy for plan in sampler]
    draws = {tuple(np.random.default_rng(entropy).integers(0, 2**60, 2)) for entropy in entropies}
    assert len(draws) == len(entropies) == 3 * 2 * 4


def test_rows_of_a_batch_are_of_similar_length() -> None:
    lengths = np.random.default_rng(1).integers(1, 200, 400)
    batches = rows_of(ShuffledBatches(lengths, 16, seed=3))  # few enough rows for a single pool
    extremes = sorted((min(lengths[batch]), max(lengths[batch])) for batch in batches)
    for (_, longest_before), (shortest, _) in pairwise(extremes):
        assert longest_before <= shortest


def test_similar_lengths_in_a_large_table_too() -> None:
    lengths = np.random.default_rng(1).integers(1, 200, 20_000)
    batches = rows_of(ShuffledBatches(lengths, 16, seed=3))
    padded = sum(max(lengths[batch]) * len(batch) for batch in batches)
    assert padded <= 1.05 * lengths.sum()
    longest = [max(lengths[batch]) for batch in batches]
    assert np.corrcoef(longest[:-1], longest[1:])[0, 1] < 0.1  # but not one length after the other


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(0, 30),
    batch_size=st.integers(1, 7),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 99),
    in_turn=st.booleans(),
)
def test_evaluation_has_each_row_exactly_once_whatever_the_number_of_processes(
    num_rows: int, batch_size: int, world_size: int, seed: int, in_turn: bool
) -> None:
    order = np.random.default_rng(seed).permutation(num_rows)
    samplers = [OrderedBatches(order, batch_size, rank, world_size, in_turn) for rank in range(world_size)]
    plans = [[rows.tolist() for rows in sampler] for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(plan) for plan in plans]
    assert sorted(row for plan in plans for batch in plan for row in batch) == list(range(num_rows))
    assert all(len(batch) <= batch_size for plan in plans for batch in plan)
    assert all(plan == [[]] or all(plan) for plan in plans)  # nothing at all is one empty batch
    assert num_rows == 0 or all(plans)
    alone = [rows.tolist() for rows in OrderedBatches(order, batch_size)]
    assert sorted(batch for plan in plans for batch in plan if batch) == sorted(alone)
    if not in_turn:
        assert [row for plan in plans for batch in plan for row in batch] == order.tolist()


def test_input_is_the_last_items_and_the_mask() -> None:
    dataset = history_set([[1, 2, 3, 4, 5], [6, 7], [], [8]], max_len=4)
    assert inputs_of(dataset, 0, 3, 2, 1) == {
        0: [3, 4, 5, MASK],
        3: [0, 0, 8, MASK],
        2: [0, 0, 0, MASK],
        1: [0, 6, 7, MASK],
    }
    assert all(tensor.dtype == torch.int64 for batch in dataset[np.array([1, 3])] for tensor in batch)


def test_batches_are_as_wide_as_they_have_to_be() -> None:
    dataset = history_set([[1, 2, 3, 4, 5], [6, 7], [], [8]], max_len=9)
    assert inputs_of(dataset, 0, 1) == {0: [1, 2, 3, 4, 5, MASK], 1: [0, 0, 0, 6, 7, MASK]}
    assert inputs_of(dataset, 1, 3) == {1: [6, 7, MASK], 3: [0, 8, MASK]}


@pytest.mark.parametrize("max_len", [2, 3, 50])
def test_a_history_of_one_item_keeps_it_and_an_empty_one_is_the_mask_alone(max_len: int) -> None:
    dataset = history_set([[7], []], max_len)
    assert inputs_of(dataset, 0) == {0: [7, MASK]}
    assert inputs_of(dataset, 1) == {1: [MASK]}
    assert seen_of(dataset[np.array([1])]) == set()


def test_items_older_than_the_input_have_no_effect_on_it() -> None:
    new, old = history_set([[9, 9, 3, 4, 5]], max_len=4), history_set([[1, 2, 3, 4, 5]], max_len=4)
    assert inputs_of(new, 0) == inputs_of(old, 0) == {0: [3, 4, 5, MASK]}


@settings(max_examples=60, deadline=None)
@given(histories=histories_strategy, max_len=st.integers(2, 6), data=st.data())
def test_the_whole_history_is_seen(histories: list[list[int]], max_len: int, data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(len(histories))))
    dataset = history_set(histories, max_len)
    assert seen_of(dataset[np.array(rows)]) == {(row, item) for row in rows for item in histories[row]}
    kept = {row: [token for token in tokens if token] for row, tokens in inputs_of(dataset, *rows).items()}
    assert kept == {row: [*histories[row][-(max_len - 1) :], MASK] for row in rows}


def test_nothing_is_seen_unless_asked() -> None:
    dataset = history_set([[1, 2, 3], [4]], max_len=3, exclude_seen=False)
    assert seen_of(dataset[np.array([0, 1])]) == set()
    assert inputs_of(dataset, 0, 1) == {0: [2, 3, MASK], 1: [0, 4, MASK]}


distinct_histories = st.lists(
    st.lists(st.integers(1, NUM_ITEMS), min_size=3, max_size=9, unique=True), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(histories=distinct_histories, max_len=st.integers(2, 6), from_end=st.sampled_from([1, 2]))
def test_evaluation_input_ends_before_the_target_and_never_holds_it(
    histories: list[list[int]], max_len: int, from_end: int
) -> None:
    sequences = sequences_of(histories)
    _, spans, targets = evaluation_spans(sequences, 2, from_end)
    dataset = EvaluationSet(sequences.tokens, spans, NUM_ITEMS, max_len, True, targets)
    batch = dataset[np.arange(len(histories))]
    assert batch.targets.tolist() == [histories[user][-from_end] for user in batch.users]
    seen, inputs = seen_of(batch), inputs_of(dataset, *range(len(histories)))
    for row, history in enumerate(histories):
        tokens = [token for token in inputs[row] if token]
        assert tokens == [*history[:-from_end][-(max_len - 1) :], MASK]
        assert not {*tokens, *(item for r, item in seen if r == row)} & set(history[-from_end:])


def test_a_training_batch_holds_every_row_once_and_its_targets() -> None:
    histories = [[1 + (row + column) % NUM_ITEMS for column in range(1 + row % 9)] for row in range(20)]
    sequences = sequences_of(histories)
    dataset = TrainingSet(sequences.tokens, sequences.histories, NUM_ITEMS, 1.0, 0.0, 0.0, 0.0)
    batch = dataset[Plan(np.arange(20), (5,))]
    assert batch.negatives is None
    assert [[token for token in row if token] for row in batch.inputs.tolist()] == histories
    assert batch.targets.tolist() == batch.inputs.flatten()[batch.places].tolist() == [*chain(*histories)]
    assert dataset[Plan(np.arange(20), (5,), counts=False)].targets.tolist() == [0] * len(batch.targets)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_negatives_follow_the_counts(power: float) -> None:
    counts = np.array([50, 8, 0, 1, 20])  # an item never seen in training is drawn like one seen once
    size = 20_000
    negatives = NegativeSampler(counts, size, power).draw(np.random.default_rng(3))
    weights = np.array([50, 8, 1, 1, 20]) ** power
    chances = weights / weights.sum()
    items = negatives.items.numpy()
    assert negatives.items.dtype == torch.int64
    assert negatives.log_counts.dtype == torch.float32
    assert items.shape == negatives.log_counts.shape == (size,)
    drawn = np.bincount(items, minlength=7)[1:6]
    assert drawn.sum() == size  # items alone: neither padding nor [MASK]
    assert (np.abs(drawn - size * chances) <= 4 * np.sqrt(size * chances * (1 - chances))).all()
    np.testing.assert_allclose(negatives.log_counts.numpy(), np.log(size * chances)[items - 1], rtol=1e-5)


def test_negatives_come_with_a_step_and_follow_from_its_entropy() -> None:
    sequences = sequences_of([[1, 2, 3]] * 4)
    sampler = NegativeSampler(np.ones(NUM_ITEMS, dtype=np.int64), 6, 0.0)
    spans = sequences.histories
    dataset = TrainingSet(sequences.tokens, spans, NUM_ITEMS, 0.5, 1.0, 0.0, 0.0, negative_sampler=sampler)
    items = []
    for entropy in ((1, 2), (1, 2), (1, 3)):
        negatives = dataset[Plan(np.arange(4), (7,), entropy)].negatives
        assert negatives is not None
        items.append(negatives.items.tolist())
    assert len(items[0]) == 6
    assert items[0] == items[1] != items[2]
