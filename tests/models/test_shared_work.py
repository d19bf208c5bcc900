"""Pieces of work that two threads take in turn."""

import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from src.models.shared_work import SharedWork, can_be_shared


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("threads", [1, 3, 4])
def test_each_piece_is_done_once_and_then_what_comes_afterwards(threads: int, is_shared: bool) -> None:
    torch.set_num_threads(threads)
    done: list[int] = []
    work = SharedWork((functools.partial(done.append, n) for n in range(50)), is_shared, lambda: done.append(50))
    work.begin()
    work.finish()
    assert sorted(done) == list(range(51))
    assert done[-1] == 50
    work.finish()
    assert len(done) == 51
    assert torch.get_num_threads() == threads


def test_two_threads_are_at_it_with_half_of_torchs_threads_each() -> None:
    both, seen = threading.Barrier(2), []

    def meet() -> None:
        seen.append((threading.get_ident(), torch.get_num_threads()))
        both.wait(timeout=30)

    SharedWork([meet, meet]).finish()
    assert len({thread for thread, _ in seen}) == 2
    assert [threads for _, threads in seen] == [2, 2]
    assert torch.get_num_threads() == 4


def test_the_second_thread_goes_on_while_this_one_does_other_things() -> None:
    is_done = threading.Event()
    work = SharedWork([is_done.set])
    work.begin()
    assert is_done.wait(timeout=30)
    assert torch.get_num_threads() == 2
    work.finish()
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("threads", "is_shared"), [(1, True), (4, False)])
def test_what_is_not_to_be_shared_is_left_to_this_thread(threads: int, is_shared: bool) -> None:
    torch.set_num_threads(threads)
    seen: list[tuple[int, int]] = []
    work = SharedWork([lambda: seen.append((threading.get_ident(), torch.get_num_threads()))] * 3, is_shared)
    work.begin()
    assert seen == []
    work.finish()
    assert seen == [(threading.get_ident(), threads)] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="how long threads spin is known of GNU OpenMP alone")
@pytest.mark.parametrize(
    ("spins", "threads", "expected"),
    [
        ("5000", 2, True),
        ("0", 4, True),
        ("5000", 1, False),
        ("300000", 2, False),
        ("infinite", 2, False),
        (None, 2, False),
    ],
)
def test_there_is_a_core_to_share_with_unless_threads_spin_on_it(
    spins: str | None, threads: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if spins is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", spins)
    torch.set_num_threads(threads)
    assert can_be_shared() == expected


def test_neither_thread_records_gradients_or_casts() -> None:
    both, seen = threading.Barrier(2), []

    def meet() -> None:
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        both.wait(timeout=30)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        SharedWork([meet, meet]).finish()
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(False, False)] * 2


@pytest.mark.parametrize("fails_here", [True, False])
def test_a_piece_that_fails_is_told_of_and_the_rest_left(fails_here: bool) -> None:
    here, both, done = threading.get_ident(), threading.Barrier(2), []

    def meet() -> None:
        both.wait(timeout=30)
        if (threading.get_ident() == here) == fails_here:
            raise MemoryError("too little")
        stop.wait(timeout=30)

    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()  # by then the other thread has failed
    work = SharedWork([meet, meet], afterwards=lambda: done.append(0))
    with pytest.raises(MemoryError, match="too little"):
        work.finish()
    assert done == []
    assert torch.get_num_threads() == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forked processes here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_a_second_thread_of_its_own() -> None:
    def work() -> None:
        both = threading.Barrier(2)
        SharedWork([lambda: both.wait(timeout=30)] * 2).finish()

    work()
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
