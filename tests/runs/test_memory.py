"""What the machine has, and what is refused because of it."""

from pathlib import Path

import pytest
import torch

from src.errors import UserError
from src.runs import memory


def test_memory_is_that_of_the_machine_or_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", tmp_path / "memory.max")
    machine = memory.of(torch.device("cpu"))
    assert 2**27 < machine < 2**50
    for text, least in (("max\n", machine), ("1048576\n", 2**20), (f"{2**60}\n", machine)):
        (tmp_path / "memory.max").write_text(text)
        assert memory.of(torch.device("cpu")) == least


def test_a_model_that_does_not_fit_is_refused_with_its_size() -> None:
    memory.require(1000, memory.TRAINED, 16_000)
    with pytest.raises(UserError, match=r"\(1,073,741,824 parameters take 16.0 GiB, this machine has 8.0 GiB\): leave"):
        memory.require(2**30, memory.TRAINED, 2**33)
    memory.require(2**30, memory.HELD, 2**33)


@pytest.mark.parametrize(
    ("error", "is_out"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_says_that_the_memory_is_out(error: Exception, is_out: bool) -> None:
    assert memory.is_out(error) is is_out


def test_freed_memory_goes_back_where_the_c_library_can_give_it_and_nothing_happens_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    class Glibc:
        @staticmethod
        def malloc_trim(pad: int) -> int:
            asked.append(pad)
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: Glibc)
    memory.give_back()
    assert asked == [0]
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    memory.give_back()
    assert asked == [0]
