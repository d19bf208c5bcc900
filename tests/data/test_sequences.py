"""Histories, splits, windows and padding, against plain loops."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.sequences import (
    Sequences,
    Spans,
    build,
    encode,
    evaluation_spans,
    flatten,
    pad_left,
    training_spans,
    windows,
)
from src.data.vocabulary import Vocabulary
from tests.data import NUM_ITEMS, histories_strategy, interactions_of, lists_of, sequences_of

Histories = list[list[int]]


def vocabulary_of(ids: str) -> Vocabulary:
    return Vocabulary(pa.array(list(ids), pa.string()), np.ones(len(ids), dtype=np.int64))


def test_spans() -> None:
    spans = Spans(np.array([0, 3, 3, 10]), np.array([3, 3, 10, 11]))
    assert len(spans) == 4
    assert spans.lengths.tolist() == [3, 0, 7, 1]
    last = spans.last(2)
    assert (last.starts.tolist(), last.stops.tolist()) == ([1, 3, 8, 10], [3, 3, 10, 11])
    assert spans.last(0).lengths.tolist() == [0, 0, 0, 0]
    assert spans[np.array([2, 0, 2])].lengths.tolist() == [7, 3, 7]
    assert spans[spans.lengths > 1].starts.tolist() == [0, 3]


def test_build_gives_tokens_from_1_in_order_of_first_appearance() -> None:
    sequences, ids, _ = build(interactions_of([list("cab"), list("bdc")]), min_interactions=3)
    assert ids.to_pylist() == ["c", "a", "b", "d"]
    assert lists_of(sequences.tokens, sequences.histories) == [[1, 2, 3], [3, 4, 1]]
    assert (sequences.tokens.dtype, sequences.offsets.dtype) == (np.int32, np.int64)


def test_build_drops_short_users_and_the_items_only_they_have() -> None:
    interactions = interactions_of([list("xa"), list("abc"), ["y"], list("cczab")])
    sequences, ids, _ = build(interactions, min_interactions=3)
    assert ids.to_pylist() == ["a", "b", "c", "z"]
    assert lists_of(sequences.tokens, sequences.histories) == [[1, 2, 3], [3, 3, 4, 1, 2]]
    sequences, ids, _ = build(interactions, min_interactions=4)
    assert ids.to_pylist() == ["a", "b", "c", "z"]
    assert lists_of(sequences.tokens, sequences.histories) == [[3, 3, 4, 1, 2]]
    sequences, ids, _ = build(interactions, min_interactions=1)
    assert ids.to_pylist() == ["x", "a", "b", "c", "y", "z"]
    assert len(sequences.histories) == 4


def test_build_with_no_user_left() -> None:
    sequences, ids, _ = build(interactions_of([list("xa"), list("b")]), min_interactions=3)
    assert ids.to_pylist() == []
    assert len(sequences.histories) == 0
    assert len(sequences.tokens) == 0


letters = st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=6), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(histories=letters, min_interactions=st.integers(1, 4))
def test_build_keeps_padding_apart_from_every_item(histories: list[list[str]], min_interactions: int) -> None:
    """Token 0 is padding alone, tokens 1..N are all in use, and each stands for the item it came from."""
    sequences, ids, _ = build(interactions_of(histories), min_interactions)
    kept = [history for history in histories if len(history) >= min_interactions]
    assert set(sequences.tokens.tolist()) == set(range(1, len(ids) + 1))
    decoded = [
        [ids[token - 1].as_py() for token in tokens] for tokens in lists_of(sequences.tokens, sequences.histories)
    ]
    assert decoded == kept


def n_core(rows: list[tuple[int, str]], least: int, least_item: int) -> list[tuple[int, str]]:
    """By plain loops: the rows that are left when users and items with too few are taken out until none is."""
    while True:
        users, items = Counter(user for user, _ in rows), Counter(item for _, item in rows)
        left = [(user, item) for user, item in rows if users[user] >= least and items[item] >= least_item]
        if left == rows:
            return rows
        rows = left


@settings(max_examples=60, deadline=None)
@given(histories=letters, min_interactions=st.integers(1, 3), min_item_interactions=st.integers(2, 4))
def test_build_leaves_the_n_core(histories: list[list[str]], min_interactions: int, min_item_interactions: int) -> None:
    sequences, ids, users = build(interactions_of(histories), min_interactions, min_item_interactions)
    rows = [(user, item) for user, history in enumerate(histories) for item in history]
    expected: dict[int, list[str]] = {}
    for user, item in n_core(rows, min_interactions, min_item_interactions):
        expected.setdefault(user, []).append(item)
    decoded = [[ids[token - 1].as_py() for token in part] for part in lists_of(sequences.tokens, sequences.histories)]
    assert decoded == list(expected.values())
    assert users.to_pylist() == [f"u{user}" for user in expected]


def test_batches_are_int64_whatever_the_tokens_are() -> None:
    tokens, spans = np.array([3, 1, 2], dtype=np.int32), Spans(np.array([0, 2]), np.array([2, 3]))
    assert pad_left(tokens, spans).dtype == pad_left(tokens, spans, append=4).dtype == np.int64
    assert flatten(tokens, spans)[1].dtype == np.int64
    assert evaluation_spans(Sequences(tokens, np.array([0, 3])), 2, 1)[2].dtype == np.int64


def test_encode_drops_and_counts_unknown_items() -> None:
    interactions = interactions_of([list("axbx"), list("xy"), list("cya")])
    sequences, dropped = encode(interactions, vocabulary_of("cab"))
    assert lists_of(sequences.tokens, sequences.histories) == [[2, 3], [], [1, 2]]
    by_id = dict(zip(interactions.item_ids.to_pylist(), dropped.tolist(), strict=True))
    assert by_id == {"a": 0, "x": 3, "b": 0, "y": 2, "c": 0}


def test_encode_with_no_known_item_leaves_empty_histories() -> None:
    sequences, dropped = encode(interactions_of([list("xy"), list("x")]), vocabulary_of("ab"))
    assert sequences.histories.lengths.tolist() == [0, 0]
    assert dropped.tolist() == [2, 1]
    assert pad_left(sequences.tokens, sequences.histories, append=3).tolist() == [[3], [3]]


@settings(max_examples=50, deadline=None)
@given(histories=letters)
def test_encode_agrees_with_build(histories: list[list[str]]) -> None:
    """Prediction on the training file sees the tokens that training saw."""
    interactions = interactions_of(histories)
    built, ids, _ = build(interactions, min_interactions=1)
    encoded, dropped = encode(interactions, Vocabulary(ids, np.ones(len(ids), dtype=np.int64)))
    assert encoded.tokens.tolist() == built.tokens.tolist()
    assert encoded.offsets.tolist() == built.offsets.tolist()
    assert not dropped.any()


@settings(max_examples=60, deadline=None)
@given(histories=histories_strategy, holdout=st.sampled_from([0, 1, 2]))
def test_splits_agree_with_slices(histories: Histories, holdout: int) -> None:
    sequences = sequences_of(histories)
    evaluated = [user for user, history in enumerate(histories) if len(history) > holdout]

    training = lists_of(sequences.tokens, training_spans(sequences, holdout))
    assert training == [h[:-holdout] if holdout and u in evaluated else h for u, h in enumerate(histories)]

    for from_end in range(1, holdout + 1):
        users, spans, targets = evaluation_spans(sequences, holdout, from_end)
        assert users.tolist() == evaluated
        assert lists_of(sequences.tokens, spans) == [histories[user][:-from_end] for user in evaluated]
        assert targets.tolist() == [histories[user][-from_end] for user in evaluated]


def test_the_test_history_has_the_validation_item_and_no_history_has_its_target() -> None:
    sequences = sequences_of([[1, 2, 3, 4], [5, 6], [7, 8, 9]])
    users, validation, validation_targets = evaluation_spans(sequences, holdout=2, from_end=2)
    _, test, test_targets = evaluation_spans(sequences, holdout=2, from_end=1)
    assert users.tolist() == [0, 2]
    assert validation_targets.tolist() == [3, 8]
    assert test_targets.tolist() == [4, 9]
    assert lists_of(sequences.tokens, validation) == [[1, 2], [7]]
    assert lists_of(sequences.tokens, test) == [[1, 2, 3], [7, 8]]
    assert lists_of(sequences.tokens, training_spans(sequences, holdout=2)) == [[1, 2], [5, 6], [7]]


def plain_windows(length: int, max_len: int, stride: int) -> list[tuple[int, int]]:
    """From the end backwards, until the start of the span is in."""
    start = length - max_len
    found = [(max(start, 0), length)]
    while start > 0:
        start -= stride
        found.append((max(start, 0), max(start, 0) + max_len))
    return found


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), max_len=st.integers(1, 9), stride=st.integers(1, 9)
)
def test_windows(lengths: list[int], max_len: int, stride: int) -> None:
    stride = min(stride, max_len)
    stops = np.cumsum(lengths) + 100
    spans = Spans(stops - lengths, stops)
    cut = windows(spans, max_len, stride)
    expected = [
        (start + first, start + last)
        for start, length in zip(spans.starts, lengths, strict=True)
        for first, last in plain_windows(length, max_len, stride)
    ]
    assert list(zip(cut.starts.tolist(), cut.stops.tolist(), strict=True)) == expected

    assert cut.lengths.max() <= max_len
    for start, stop in zip(spans.starts.tolist(), stops.tolist(), strict=True):
        is_here = (cut.starts >= start) & (cut.stops <= stop)
        starts, ends = sorted(cut.starts[is_here].tolist()), sorted(cut.stops[is_here].tolist())
        covered = {place for first, last in zip(starts, ends, strict=True) for place in range(first, last)}
        assert covered == set(range(start, stop))
        assert ends[-1] == stop
        assert set(np.diff(starts[1:])) <= {stride}  # only the first window may be nearer to its neighbour


def test_windows_by_hand() -> None:
    cut = windows(Spans(np.array([0, 10]), np.array([10, 12])), max_len=4, stride=3)
    assert list(zip(cut.starts.tolist(), cut.stops.tolist(), strict=True)) == [(6, 10), (3, 7), (0, 4), (10, 12)]


possible_histories = st.lists(st.lists(st.integers(1, NUM_ITEMS), max_size=6), min_size=1, max_size=5)  # or empty


@settings(max_examples=60, deadline=None)
@given(histories=possible_histories, append=st.none() | st.just(NUM_ITEMS + 1), data=st.data())
def test_pad_left_and_flatten_agree_with_plain_loops(
    histories: Histories, append: int | None, data: st.DataObject
) -> None:
    sequences = sequences_of(histories)
    rows = data.draw(st.lists(st.integers(0, len(histories) - 1), min_size=1, max_size=6))
    spans = sequences.histories[np.array(rows)]
    picked = [histories[row] for row in rows]

    longest = max(len(history) for history in picked)
    end = [] if append is None else [append]
    expected = [[0] * (longest - len(history)) + history + end for history in picked]
    padded = pad_left(sequences.tokens, spans, append)
    assert padded.dtype == np.int64
    assert padded.tolist() == expected

    flat_rows, flat_tokens = flatten(sequences.tokens, spans)
    assert flat_rows.dtype == flat_tokens.dtype == np.int64
    pairs = [(row, token) for row, history in enumerate(picked) for token in history]
    assert list(zip(flat_rows.tolist(), flat_tokens.tolist(), strict=True)) == pairs


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_windows_of_what_fits_are_the_spans_themselves(stride: int) -> None:
    spans = Spans(np.array([0, 5, 6]), np.array([5, 6, 10]))
    cut = windows(spans, 5, stride)
    assert (cut.starts.tolist(), cut.stops.tolist()) == ([0, 5, 6], [5, 6, 10])
