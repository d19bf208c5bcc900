"""Settings of all tests."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run side by side on few cores and compute next to nothing: more threads would only wait for each other."""
    torch.set_num_threads(1)
