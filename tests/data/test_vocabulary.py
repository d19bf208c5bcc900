"""The map between item ids and tokens."""

from io import BytesIO

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.vocabulary import Vocabulary

id_lists = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), min_size=1, max_size=20, unique=True)


def vocabulary_of(ids: list[str], counts: list[int] | None = None) -> Vocabulary:
    return Vocabulary(pa.array(ids, pa.string()), np.array(counts or [1] * len(ids), dtype=np.int64))


@settings(max_examples=50, deadline=None)
@given(ids=id_lists, data=st.data())
def test_ids_come_back(ids: list[str], data: st.DataObject) -> None:
    vocabulary = vocabulary_of(ids)
    picked = data.draw(st.lists(st.sampled_from(ids), max_size=30))
    tokens = vocabulary.encode(pa.array(picked, pa.string()))
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [ids.index(item) + 1 for item in picked]
    assert vocabulary.decode(tokens).to_pylist() == picked
    assert len(vocabulary) == len(ids)


def test_tokens_begin_at_1_and_unknown_ids_are_0() -> None:
    vocabulary = vocabulary_of(["b", "a", "007"])
    assert vocabulary.encode(pa.array(["b", "a", "007", "7", "", "B", "c"])).tolist() == [1, 2, 3, 0, 0, 0, 0]


def test_encode_of_nothing() -> None:
    assert vocabulary_of(["b"]).encode(pa.array([], pa.string())).tolist() == []
    assert vocabulary_of(["b"]).decode(np.array([], dtype=np.int64)).to_pylist() == []


def test_most_popular_comes_first_and_ties_go_by_token() -> None:
    assert vocabulary_of(list("abcde"), [2, 7, 0, 7, 2]).most_popular().tolist() == [2, 4, 1, 5, 3]
    ids = [f"i{row}" for row in range(50)]  # enough to upset an unstable sort
    expected = [token for rest in (2, 1, 0) for token in range(1, 51) if token % 3 == rest]
    assert vocabulary_of(ids, [token % 3 for token in range(1, 51)]).most_popular().tolist() == expected


@settings(max_examples=30, deadline=None)
@given(ids=id_lists, data=st.data())
def test_state_survives_a_checkpoint_that_holds_no_code(ids: list[str], data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 2**40), min_size=len(ids), max_size=len(ids)))
    vocabulary = vocabulary_of(ids, counts)
    file = BytesIO()
    torch.save(vocabulary.state_dict(), file)
    file.seek(0)
    restored = Vocabulary.from_state_dict(torch.load(file, weights_only=True))
    assert restored.ids.equals(vocabulary.ids)
    assert restored.counts.dtype == np.int64
    assert restored.counts.tolist() == counts


def test_state_is_plain_containers() -> None:
    state = vocabulary_of(["x", "y"], [5, 3]).state_dict()
    assert state == {"ids": ["x", "y"], "counts": [5, 3]}
    assert {type(value) for values in state.values() for value in values} == {str, int}
