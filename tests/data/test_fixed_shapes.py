"""Batches of fixed shapes hold the same task as those of any shape: the same rows, the same chances, the same loss."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.batch import PAD, RowBatch, TrainBatch
from src.data import fixed_shapes
from src.data.batching import NegativeSampler, Plan
from src.data.fixed_shapes import FixedShapes, RowSet, shapes, slots
from src.models import BERT4Rec
from tests.data import NUM_ITEMS, histories_strategy, sequences_of
from tests.data.test_data_module import data_module, original_sequences, process

MASK = NUM_ITEMS + 1
SHARES = {"mask_prob": 0.3, "mask_token_share": 0.7, "random_token_share": 0.2, "mask_last_share": 0.0}


def made(histories: list[list[int]], batch_size: int, seed: int = 1, **changes: float) -> TrainBatch:
    """One batch of all histories."""
    sequences = sequences_of(histories)
    spans = sequences.histories
    data = FixedShapes(sequences.tokens, spans, torch.device("cpu"), NUM_ITEMS, **{**SHARES, **changes})
    return data.batch(rows_of(spans.lengths, batch_size, seed))


def rows_of(lengths: np.ndarray, batch_size: int, seed: int) -> RowBatch:
    row_set = RowSet(lengths, batch_size, shapes(int(lengths.max())))
    return row_set[Plan(np.arange(len(lengths)), (seed,), (seed, 0))]


def within(count: int, draws: int, share: float) -> bool:
    return abs(count - draws * share) <= 5 * math.sqrt(draws * share * (1 - share))


def restored(batch: TrainBatch) -> list[list[int]]:
    """The sequences before they were masked."""
    inputs, is_used = batch.inputs.clone(), batch.targets != PAD
    inputs.view(-1)[batch.places[is_used]] = batch.targets[is_used]
    return [[token for token in row if token] for row in inputs[: batch.num_rows].tolist()]


@settings(max_examples=40, deadline=None)
@given(histories=histories_strategy, spare=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_every_row_has_a_target_and_comes_back_without_its_mask(
    histories: list[list[int]], spare: int, seed: int
) -> None:
    batch = made(histories, len(histories) + spare, seed)
    assert restored(batch) == histories
    used = batch.places[batch.targets != PAD]
    assert (used.diff() > 0).all()
    length = batch.inputs.shape[1]
    assert set((used // length).tolist()) == set(range(len(histories)))
    assert batch.inputs[len(histories) :].tolist() == [[0] * (length - 1) + [MASK]] * spare
    assert (batch.places[batch.targets == PAD] == 0).all()
    assert batch.num_rows == len(histories)


def test_shares_are_those_of_the_settings() -> None:
    generator = np.random.default_rng(5)
    histories = [generator.integers(1, NUM_ITEMS + 1, 40).tolist() for _ in range(1500)]
    batch = made(histories, 1500)
    items, targets = 1500 * 40, batch.targets[batch.targets != PAD]
    assert within(len(targets), items, 0.3)
    seen = batch.inputs.view(-1)[batch.places[: len(targets)]]
    assert within(int((seen == MASK).sum()), len(targets), 0.7)
    # Of the random items, one in NUM_ITEMS happens to be the target.
    assert within(int((seen == targets).sum()), len(targets), 0.1 + 0.2 / NUM_ITEMS)
    columns = torch.bincount(batch.places[: len(targets)] % 40, minlength=40)
    assert all(within(int(count), 1500, 0.3) for count in columns)
    others = seen[(seen != MASK) & (seen != targets)]
    assert set(others.tolist()) == set(range(1, NUM_ITEMS + 1))


def test_a_share_of_the_rows_has_its_last_item_as_the_only_target_behind_mask() -> None:
    histories = [[1 + row % NUM_ITEMS] * 12 for row in range(2000)]
    batch = made(histories, 2000, mask_prob=0.5, mask_last_share=0.25, mask_token_share=0.0)
    used = batch.places[batch.targets != PAD]
    rows, columns = used // 12, used % 12
    counts = torch.bincount(rows, minlength=2000)
    is_last = batch.inputs[:, -1] == MASK  # no other row has one
    assert within(int(is_last.sum()), 2000, 0.25)
    assert (counts[is_last] == 1).all()
    assert (columns[is_last[rows]] == 11).all()


def test_shapes_are_few_and_cover_every_length() -> None:
    for longest in (1, 7, 8, 9, 50, 100, 200, 1000):
        found = shapes(longest)
        assert len(found) <= fixed_shapes.LENGTHS
        assert list(found) == sorted(set(found))
        assert found[-1] == longest


@pytest.mark.parametrize(
    ("length", "mask_prob"), [(1, 0.5), (8, 0.15), (50, 0.15), (200, 0.2), (100, 0.9), (30, 0.001)]
)
def test_more_targets_than_slots_are_as_good_as_impossible(length: int, mask_prob: float) -> None:
    room = slots(1, length, mask_prob)
    chance = math.fsum(
        math.comb(length, n) * mask_prob**n * (1 - mask_prob) ** (length - n) for n in range(room + 1, length + 1)
    )
    assert chance < fixed_shapes.OVERFLOW
    assert room <= length
    assert slots(64, length, mask_prob) < 64 * room or room == 1  # rows share what one of them seldom needs


@pytest.mark.parametrize("mask_prob", [0.0, 1.0])
def test_none_or_all_chosen_have_room(mask_prob: float) -> None:
    batch = made([[1, 2, 3], [4]], 2, mask_prob=mask_prob)
    assert int((batch.targets != PAD).sum()) == (4 if mask_prob else 2)


def test_targets_beyond_the_slots_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_shapes, "slots", lambda *_: 5)
    histories = [[1, 2, 3, 4], [2, 3, 4, 5]]
    batch = made(histories, 2, mask_prob=1.0, mask_token_share=1.0, random_token_share=0.0)
    assert batch.inputs.tolist() == [[MASK] * 4, [MASK, 3, 4, 5]]
    assert batch.targets.tolist() == [1, 2, 3, 4, 2]
    assert batch.places.tolist() == [0, 1, 2, 3, 4]


def test_draws_follow_from_the_seed_alone() -> None:
    histories = [[1, 2, 3, 4, 5] * 4, [3, 2]]
    one, same, other = (made(histories, 2, seed) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "gbce"])
def test_the_loss_is_that_of_the_rows_and_targets_in_use(loss: str) -> None:
    sequences = sequences_of([[1, 2, 3, 4, 5, 6, 1, 2, 3], [3, 2], [4, 4, 1]])
    spans = sequences.histories
    sampler = None if loss == "softmax" else NegativeSampler(np.arange(NUM_ITEMS), 4, 0.5)
    data = FixedShapes(sequences.tokens, spans, torch.device("cpu"), NUM_ITEMS, **SHARES, negative_sampler=sampler)
    batch = data.batch(rows_of(spans.lengths, 5, 1))
    model = BERT4Rec(NUM_ITEMS, hidden_units=8, num_heads=2, num_layers=2, max_len=9, dropout_rate=0.0, loss=loss)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    is_used = batch.targets != PAD
    trimmed = batch._replace(inputs=batch.inputs[:3], places=batch.places[is_used], targets=batch.targets[is_used])
    gradients = []
    for each in (batch, trimmed):
        model.zero_grad()
        value = model.loss(each)
        value.backward()
        gradients.append([value.detach(), *(weight.grad.to_dense() for weight in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_negatives_come_with_the_chances_of_the_sampler_and_are_those_of_all_processes() -> None:
    sequences = sequences_of([[1, 2, 3]])
    counts = np.array([1, 4, 9, *[1] * (NUM_ITEMS - 3)])
    sampler = NegativeSampler(counts, 4000, 1.0)
    data = FixedShapes(
        sequences.tokens, sequences.histories, torch.device("cpu"), NUM_ITEMS, **SHARES, negative_sampler=sampler
    )
    row_set = RowSet(np.array([3]), 1, shapes(3))
    one, other = (data.batch(row_set[Plan(np.arange(1), (rank,), (7,))]) for rank in (1, 2))
    assert one.negatives is not None
    assert other.negatives is not None
    assert torch.equal(one.negatives.items, other.negatives.items)
    found = torch.bincount(one.negatives.items, minlength=NUM_ITEMS + 1)[1:]
    assert all(
        within(int(count), 4000, weight / counts.sum()) for count, weight in zip(found, counts.tolist(), strict=True)
    )
    torch.testing.assert_close(one.negatives.log_counts, torch.from_numpy(sampler.log_counts)[one.negatives.items - 1])


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_data_module_serves_the_same_rows_either_way(world_size: int, tmp_path: Path) -> None:
    def rows(on_device: bool) -> list[list[int]]:
        batches = []
        for rank in range(world_size):
            data = process(data_module(tmp_path, batch_size=2, on_device=on_device), rank, world_size)
            made = (data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader())
            batches += [batch for batch in made if batch.num_rows]
        if on_device:
            return sorted(row for batch in batches for row in restored(batch))
        return original_sequences(batches)

    assert rows(True) == rows(False)


def test_it_lies_on_the_device_by_itself_on_cuda_alone(tmp_path: Path) -> None:
    data = data_module(tmp_path, on_device="auto")
    assert [process(data, 0, 1, device)._lies_on_device() for device in ("cpu", "cuda", "mps")] == [False, True, False]
