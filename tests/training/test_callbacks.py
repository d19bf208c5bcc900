"""What is done beside each step of training: the same draws whatever came before."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from src.training import callbacks


def draws_of_step(epoch: int, step: int, rank: int = 0, seed: int = 3) -> list[float]:
    callback = callbacks.LastCheckpoint(Path("last.ckpt"), None, seed, {})
    trainer = mock.Mock(current_epoch=epoch, global_rank=rank, fit_loop=mock.Mock(batch_idx=step))
    callback.on_train_batch_start(trainer, mock.Mock(device=torch.device("cpu")), None, step)
    return torch.rand(4).tolist()


def test_each_step_has_draws_of_its_own_that_depend_on_nothing_before() -> None:
    first = draws_of_step(1, 2)
    torch.rand(5)
    assert draws_of_step(1, 2) == first
    others = [draws_of_step(2, 2), draws_of_step(1, 3), draws_of_step(1, 2, rank=1), draws_of_step(1, 2, seed=4)]
    assert all(other != first for other in others)


def test_seeds_of_a_cpu_are_those_of_torch() -> None:
    torch.manual_seed(2**63 + 5)
    expected = torch.rand(4)
    torch.rand(3)
    callbacks.seed(2**63 + 5, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("device", "seeds"), [("cpu", []), ("cuda", ["cuda"]), ("mps", ["all"])])
def test_an_accelerator_is_seeded_beside_the_cpu(monkeypatch: pytest.MonkeyPatch, device: str, seeds: list) -> None:
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda number: seeded.append("cuda"))
    monkeypatch.setattr(torch, "manual_seed", lambda number: seeded.append("all"))
    torch.default_generator.manual_seed(7)
    expected = torch.rand(4)
    callbacks.seed(7, torch.device(device))
    assert seeded == seeds
    assert torch.equal(torch.rand(4), expected)
