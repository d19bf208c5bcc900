"""What a new run takes over from the weights of an earlier one, row by row."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.data.sequences import Spans
from src.data.vocabulary import Vocabulary
from src.models.network import Architecture, Network
from src.training.init_from import NEW, origins, sources, take_over

SIZES = Architecture(hidden_units=4, num_heads=2, num_layers=2, max_len=5)
SEPARATE = replace(SIZES, share_embeddings=False, output_bias=True, output_transform=True)


def vocabulary(*ids: str) -> Vocabulary:
    return Vocabulary(pa.array(ids, type=pa.string()), np.ones(len(ids), dtype=np.int64))


def network(num_items: int, architecture: Architecture) -> Network:
    """One whose weights are all random, those included that begin with zeros or ones."""
    built = Network(num_items, architecture)
    with torch.no_grad():
        for weights in built.parameters():
            weights.normal_()
    return built


def histories(*rows: list[int]) -> tuple[Any, Spans]:
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return tokens, Spans(lengths.cumsum() - lengths, lengths.cumsum())


def test_items_are_known_by_their_ids_in_either_form() -> None:
    found = origins(vocabulary("new", "b", "2.0", "a"), vocabulary("a", "b", "2", "gone"))
    assert found.tolist() == [0, NEW, 2, 3, 1, 5]


@pytest.mark.parametrize("architecture", [SIZES, SEPARATE])
def test_each_row_is_its_own_earlier_one_the_mean_of_neighbours_or_fresh(architecture: Architecture) -> None:
    earlier, later = network(3, architecture), network(5, architecture)
    fresh = {name: weights.clone() for name, weights in later.state_dict().items()}
    # Tokens of the later run: 1 and 2 were 3 and 1; 3, 4 and 5 are new; 2 of the earlier run is gone.
    origin = np.array([0, 3, 1, NEW, NEW, NEW, 4])
    tokens, spans = histories([1, 3, 2, 3], [2, 3], [3, 4, 4], [5, 4], [1])
    has_source = take_over(later, earlier, sources(origin, 5, tokens, spans))
    assert has_source.tolist() == [True, True, True, True, False, False, True]
    # 3 has 1 before it once, 2 before it twice, 2 after it once; 4 and 5 have only new ones beside them.
    for name in ("item_embedding.weight", "output.weight", "output.bias"):
        if name not in fresh:
            continue
        was, now = earlier.state_dict()[name], later.state_dict()[name]
        assert torch.equal(now[[0, 1, 2, 6]], was[[0, 3, 1, 4]])
        torch.testing.assert_close(now[3], (was[3] + 3 * was[1]) / 4)
        assert torch.equal(now[[4, 5]], fresh[name][[4, 5]])
    others = [name for name in fresh if "item_embedding" not in name and name not in ("output.weight", "output.bias")]
    assert all(torch.equal(later.state_dict()[name], earlier.state_dict()[name]) for name in others)


@pytest.mark.parametrize(("earlier_len", "later_len"), [(5, 3), (3, 5)])
def test_positions_count_from_the_end(earlier_len: int, later_len: int) -> None:
    earlier, later = (network(2, replace(SIZES, max_len=length)) for length in (earlier_len, later_len))
    fresh = later.position_embedding.weight.detach().clone()
    take_over(later, earlier, sources(np.arange(4), 4, *histories([1, 2])))
    assert torch.equal(later.position_embedding.weight[-3:], earlier.position_embedding.weight[-3:])
    assert torch.equal(later.position_embedding.weight[:-3], fresh[:-3])


def test_the_same_table_gives_the_same_scores() -> None:
    earlier, later = network(6, SEPARATE).eval(), network(6, SEPARATE).eval()
    take_over(later, earlier, sources(np.arange(8), 8, *histories([1, 2, 3])))
    inputs = torch.tensor([[0, 1, 5, 7], [2, 3, 4, 7]])
    assert torch.equal(later(inputs), earlier(inputs))


@given(
    rows=st.lists(st.lists(st.integers(1, 7), max_size=6), max_size=6),
    origin=st.lists(st.sampled_from([NEW, 1, 2, 3]), min_size=7, max_size=7),
)
def test_sources_count_the_known_items_right_beside_a_new_one(rows: list[list[int]], origin: list[int]) -> None:
    padded = np.array([0, *origin, 4])
    expected = np.zeros((9, 5))
    for token in np.flatnonzero(padded != NEW):
        expected[token, padded[token]] = 1
    for row in rows:
        for place, token in enumerate(row):
            for beside in row[max(0, place - 1) : place] + row[place + 1 : place + 2]:
                if padded[token] == NEW != padded[beside]:
                    expected[token, padded[beside]] += 1
    assert np.array_equal(sources(padded, 5, *histories(*rows)).to_dense().numpy(), expected)
