"""Memory is kept from one use to the next, and never shared by two at a time."""

import threading

import pytest
import torch

from src import ranking
from src.kept_memory import KeptMemory


def address(kept: KeptMemory, count: int, like: torch.Tensor) -> int:
    with kept.entries(count, like) as memory:
        assert len(memory) >= count
        assert memory.dtype == like.dtype
        return memory.data_ptr()


def test_the_same_memory_is_used_until_more_or_another_type_is_needed() -> None:
    kept, like = KeptMemory(), torch.zeros(0)
    with kept.entries(1000, like) as first:
        pass
    assert address(kept, 1000, like) == address(kept, 7, like) == first.data_ptr()
    assert address(kept, 2000, like) != first.data_ptr()
    address(kept, 10, torch.zeros(0, dtype=torch.float64))


def test_two_uses_at_a_time_have_memory_of_their_own() -> None:
    kept, like = KeptMemory(), torch.zeros(0)
    with kept.entries(10, like) as outer, kept.entries(10, like) as inner:
        assert outer.data_ptr() != inner.data_ptr()
        other: list[int] = []
        thread = threading.Thread(target=lambda: other.append(address(kept, 10, like)))
        thread.start()
        thread.join()
        assert other[0] not in (outer.data_ptr(), inner.data_ptr())


def test_what_an_inference_left_can_be_written_to_by_a_validation() -> None:
    hidden, weight, none = torch.ones(2, 3), torch.ones(5, 3), torch.zeros(0, dtype=torch.long)
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            [(_, scores)] = ranking.linear_candidate_scores(hidden, weight, None, none, none)
            assert scores[:, 1:4].tolist() == [[3.0] * 3] * 2


def test_scores_of_two_batches_at_a_time_stay_apart() -> None:
    weight, none = torch.ones(5, 3), torch.zeros(0, dtype=torch.long)
    one, other = (
        ranking.linear_candidate_scores(torch.full((2, 3), value), weight, None, none, none) for value in (1.0, 2.0)
    )
    (_, first), (_, second) = next(one), next(other)
    assert (first[0, 1], second[0, 1]) == pytest.approx((3.0, 6.0))
