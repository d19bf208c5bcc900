"""The Cloze task: shares within 4 standard deviations, the same from the same generator, nothing lost."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from src.batch import TrainBatch
from src.data import masking
from src.data.batching import Plan, TrainingSet
from tests.data import NUM_ITEMS, histories_strategy, sequences_of

MASK = NUM_ITEMS + 1


def within_4_sigma(count: int, draws: int, share: float) -> bool:
    return abs(count - draws * share) <= 4 * np.sqrt(draws * share * (1 - share))


def long_sequences() -> np.ndarray:
    """[300, 90] of random items, with 0 to 29 columns of padding."""
    generator = np.random.default_rng(5)
    sequences = generator.integers(1, NUM_ITEMS, (300, 90), endpoint=True)
    sequences[np.arange(90) < np.arange(300)[:, None] % 30] = 0
    return sequences


def training_set(
    histories: list[list[int]],
    mask_prob: float = 0.3,
    mask_token_share: float = 0.8,
    random_token_share: float = 0.1,
    mask_last_share: float = 0.25,
) -> TrainingSet:
    sequences = sequences_of(histories)
    shares = (mask_prob, mask_token_share, random_token_share, mask_last_share)
    return TrainingSet(sequences.tokens, sequences.histories, NUM_ITEMS, *shares)


def batch_of(dataset: TrainingSet, *entropy: int) -> TrainBatch:
    """All rows in one batch."""
    return dataset[Plan(np.arange(len(dataset.spans)), entropy)]


def columns_of_targets(batch: TrainBatch) -> list[list[int]]:
    """Columns that carry a target, for each row."""
    rows, length = batch.inputs.shape
    columns: list[list[int]] = [[] for _ in range(rows)]
    for place in batch.places.tolist():
        columns[place // length].append(place % length)
    return columns


@pytest.mark.parametrize("mask_prob", [0.15, 0.2, 0.6])
def test_share_of_chosen_items(mask_prob: float) -> None:
    sequences = long_sequences()
    is_chosen, is_last_only = masking.choose_targets(sequences, np.random.default_rng(1), mask_prob, 0.0)
    assert within_4_sigma(is_chosen.sum(), np.count_nonzero(sequences), mask_prob)
    assert is_chosen.any(axis=1).all()
    assert not is_chosen[sequences == 0].any()
    assert not is_last_only.any()


@pytest.mark.parametrize(("mask_share", "random_share"), [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_what_the_chosen_become(mask_share: float, random_share: float) -> None:
    sequences = long_sequences()
    generator = np.random.default_rng(2)
    is_chosen, is_last_only = masking.choose_targets(sequences, generator, 0.6, 0.0)
    inputs = masking.replace_targets(sequences, is_chosen, is_last_only, NUM_ITEMS, generator, mask_share, random_share)
    assert (inputs[~is_chosen] == sequences[~is_chosen]).all()
    before, after = sequences[is_chosen], inputs[is_chosen]
    became_mask = after == MASK
    became_other = ~became_mask & (after != before)
    assert within_4_sigma(became_mask.sum(), len(after), mask_share)
    # One random item in NUM_ITEMS is the one that was there.
    assert within_4_sigma(became_other.sum(), len(after), random_share * (1 - 1 / NUM_ITEMS))
    if random_share:
        assert set(after[became_other].tolist()) == set(range(1, NUM_ITEMS + 1))


def test_a_row_in_which_chance_chooses_nothing_gets_one_target_anywhere() -> None:
    sequences = np.tile([0, 0, 3, 1, 4, 1, 5], (4000, 1))
    is_chosen, _ = masking.choose_targets(sequences, np.random.default_rng(3), 1e-9, 0.0)
    assert (is_chosen.sum(axis=1) == 1).all()
    counts = is_chosen.sum(axis=0)
    assert counts[:2].tolist() == [0, 0]
    assert all(within_4_sigma(count, 4000, 1 / 5) for count in counts[2:])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mask_last(share: float) -> None:
    """That share of the rows has the last item as its only target, and it is always [MASK] there."""
    sequences = long_sequences()
    generator = np.random.default_rng(4)
    is_chosen, is_last_only = masking.choose_targets(sequences, generator, 0.2, share)
    inputs = masking.replace_targets(sequences, is_chosen, is_last_only, NUM_ITEMS, generator, 0.0, 0.5)
    assert within_4_sigma(is_last_only.sum(), len(sequences), share)
    assert (is_chosen[is_last_only].sum(axis=1) == 1).all()
    assert is_chosen[is_last_only, -1].all()
    assert (inputs[is_last_only, -1] == MASK).all()
    assert (inputs[is_last_only, :-1] == sequences[is_last_only, :-1]).all()
    assert not (inputs[~is_last_only] == MASK).any()  # mask_token_share is 0 for the others
    others = is_chosen[~is_last_only]
    assert within_4_sigma(others.sum(), np.count_nonzero(sequences[~is_last_only]), 0.2)


@pytest.mark.parametrize("mask_last_share", [0.0, 1.0])
def test_the_only_item_of_a_history_is_its_target(mask_last_share: float) -> None:
    batch = batch_of(training_set([[7], [2]], 0.01, 1.0, 0.0, mask_last_share), 1)
    assert batch.inputs.tolist() == [[MASK], [MASK]]
    assert batch.targets.tolist() == [7, 2]
    assert columns_of_targets(batch) == [[0], [0]]


def test_mask_prob_1_loses_no_label() -> None:
    history = [row % NUM_ITEMS + 1 for row in range(150)]
    batch = batch_of(training_set([[5, 3], history], 1.0, 1.0, 0.0, 0.0), 1)
    assert batch.targets.tolist() == [5, 3, *history]
    assert columns_of_targets(batch) == [[148, 149], list(range(150))]
    assert batch.inputs.tolist() == [[0] * 148 + [MASK] * 2, [MASK] * 150]


shares = st.floats(0, 1)


@settings(max_examples=80, deadline=None)
@given(
    histories=histories_strategy,
    mask_prob=st.floats(0.01, 1),
    mask_token_share=shares,
    random_token_share=shares,
    mask_last_share=shares,
    entropy=st.integers(0, 2**32 - 1),
)
def test_putting_the_targets_back_gives_the_sequences(
    histories: list[list[int]],
    mask_prob: float,
    mask_token_share: float,
    random_token_share: float,
    mask_last_share: float,
    entropy: int,
) -> None:
    random_token_share = min(random_token_share, 1 - mask_token_share)
    batch = batch_of(training_set(histories, mask_prob, mask_token_share, random_token_share, mask_last_share), entropy)
    assert all(tensor.dtype == torch.int64 for tensor in batch[:3])
    columns = columns_of_targets(batch)
    assert all(len(row) > 0 for row in columns)
    assert len(batch.targets) == len(batch.places) == sum(len(row) for row in columns)
    restored, targets = batch.inputs.clone(), iter(batch.targets.tolist())
    for row, chosen in enumerate(columns):
        for column in chosen:
            restored[row, column] = next(targets)
    longest = max(map(len, histories))
    assert restored.tolist() == [[0] * (longest - len(history)) + history for history in histories]
    for row, history in enumerate(histories):
        assert 0 not in batch.inputs[row, longest - len(history) :]
    assert batch.inputs.max() <= MASK


flags = hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 7))).filter(lambda f: bool(f.any()))


def test_masks_follow_from_the_entropy_alone_and_are_fresh_with_each() -> None:
    histories = [[1 + (row * 3 + column) % NUM_ITEMS for column in range(20)] for row in range(7)]
    dataset = training_set(histories)
    first = batch_of(dataset, 42, 0, 3)
    np.random.default_rng(0).random(100)
    torch.manual_seed(9)
    again = batch_of(training_set(histories), 42, 0, 3)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    for entropy in [(42, 1, 3), (42, 0, 4), (43, 0, 3)]:
        assert not torch.equal(first.inputs, batch_of(dataset, *entropy).inputs)


def test_no_global_random_state_is_read_or_changed() -> None:
    dataset = training_set([[1, 2, 3, 4, 5], [6, 7, 8]])
    batches = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state is what this is about
        torch.manual_seed(seed)
        before = (random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state().tolist())  # noqa: NPY002
        batches.append(batch_of(dataset, 11))
        after = (random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state().tolist())  # noqa: NPY002
        assert str(before) == str(after)
    assert all(torch.equal(a, b) for a, b in zip(*(batch[:3] for batch in batches), strict=True))


def test_the_sequences_themselves_stay_as_they_are() -> None:
    sequences = long_sequences()
    before = sequences.copy()
    generator = np.random.default_rng(6)
    is_chosen, is_last_only = masking.choose_targets(sequences, generator, 0.5, 0.1)
    masking.replace_targets(sequences, is_chosen, is_last_only, NUM_ITEMS, generator, 0.8, 0.1)
    assert (sequences == before).all()
