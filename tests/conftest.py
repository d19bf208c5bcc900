"""Settings of all tests."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch

from src.kernels import compiler


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run side by side on few cores and compute next to nothing: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _rare_garbage_collection() -> None:
    """Else a tenth of all time goes into looking through the half million objects of libraries."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _switch_of_compiled_code() -> Iterator[None]:
    """Scripts called in this process set it for good."""
    before = os.environ.get(compiler.SWITCH)
    yield
    if before is None:
        os.environ.pop(compiler.SWITCH, None)
    else:
        os.environ[compiler.SWITCH] = before
