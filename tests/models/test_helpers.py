"""Gradients of several processes are those of one; helpers come, err and go without a trace."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.batch import Negatives, TrainBatch, TrainStep
from src.data.batching import NegativeSampler, Plan, TrainingSet
from src.data.sequences import Spans
from src.errors import UserError
from src.models import helpers as helpers_module
from src.models.helpers import Helpers
from src.models.network import Network
from src.models.objective import Objective

NUM_ITEMS, MAX_LEN, ROWS = 11, 6, 9


def network_of(share_embeddings: bool = True, dropout_rate: float = 0.0) -> Network:
    torch.manual_seed(0)
    return Network(NUM_ITEMS, 8, 2, 2, MAX_LEN, dropout_rate, share_embeddings, output_bias=True).double()


def step_of(negatives: int = 0, shares: int = 2) -> TrainStep:
    generator = np.random.default_rng(3)
    lengths = np.sort(generator.integers(1, MAX_LEN + 1, ROWS))
    offsets = np.concatenate([[0], lengths.cumsum()])
    tokens = generator.integers(1, NUM_ITEMS + 1, offsets[-1])
    sampler = NegativeSampler(np.ones(NUM_ITEMS, np.int64), negatives, 0.0) if negatives else None
    spans = Spans(offsets[:-1], offsets[1:])
    dataset = TrainingSet(tokens, spans, NUM_ITEMS, 0.5, 1.0, 0.0, 0.0, 8, sampler, shares)
    step = dataset[Plan(np.arange(ROWS), (1,))]
    if negatives:
        assert step.negatives is not None
        return step._replace(negatives=step.negatives._replace(log_counts=step.negatives.log_counts.double()))
    return step


def gradients(network: Network) -> list[torch.Tensor]:
    found = []
    for parameter in network.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad.clone())
    network.zero_grad()
    return found


def take_step(helpers: Helpers, network: Network, objective: Objective, step: TrainStep) -> float:
    """As the module does it: the first share here, the others there; the loss of all."""
    counts = [sum(len(part.targets) for part in share) for share in step.shares]
    helpers.start(step.shares[1:], step.negatives, sum(counts))
    loss = objective(network, step.shares[0], step.negatives) * (counts[0] / sum(counts))
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()) + helpers.finish()


@pytest.fixture
def running() -> Iterator[list[Helpers]]:
    """Helpers to be ended whatever happens."""
    started: list[Helpers] = []
    yield started
    for helpers in started:
        helpers.close()


@pytest.mark.parametrize(
    ("loss", "shares_embeddings"),
    [("softmax", True), ("softmax", False), ("gbce", True), ("sampled_softmax", False)],
)
def test_gradients_and_loss_are_those_of_one_process(
    loss: str, shares_embeddings: bool, running: list[Helpers]
) -> None:
    objective, step = Objective(loss, 0.75), step_of(0 if loss == "softmax" else 4)
    network = network_of(shares_embeddings)
    alone = copy.deepcopy(network)
    running.append(Helpers(network, objective, 1))
    for _ in range(2):  # the second time with other weights, which the helpers have to see
        expected_loss = objective(alone, step.parts, step.negatives)
        expected_loss.backward()  # type: ignore[no-untyped-call]
        assert take_step(running[0], network, objective, step) == pytest.approx(
            float(expected_loss.detach()), rel=1e-12
        )
        for found, expected in zip(gradients(network), gradients(alone), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            for one, other in zip(network.parameters(), alone.parameters(), strict=True):
                change = torch.randn_like(one)
                one += change
                other += change


def test_dropout_follows_from_the_seed_of_the_step(running: list[Helpers]) -> None:
    objective, step, network = Objective("softmax", 0.75), step_of(), network_of(dropout_rate=0.5)
    running.append(Helpers(network, objective, 1))
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        take_step(running[0], network, objective, step)
        found.append(torch.cat([gradient.flatten() for gradient in gradients(network)]))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_a_batch_with_fewer_shares_leaves_helpers_idle(running: list[Helpers]) -> None:
    objective, step, network = Objective("softmax", 0.75), step_of(shares=3), network_of()
    running.append(Helpers(network, objective, 2))
    take_step(running[0], network, objective, step)
    network.zero_grad()
    fewer = step._replace(shares=step.shares[:2])
    found_loss = take_step(running[0], network, objective, fewer)
    found = gradients(network)
    loss = objective(network, fewer.parts, None)
    loss.backward()  # type: ignore[no-untyped-call]
    assert found_loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for one, other in zip(found, gradients(network), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_threads_are_divided_only_while_all_work(running: list[Helpers], monkeypatch: pytest.MonkeyPatch) -> None:
    objective, step, network = Objective("softmax", 0.75), step_of(), network_of()
    torch.set_num_threads(3)
    try:
        running.append(Helpers(network, objective, 1))
        running[0].start(step.shares[1:], None, 9)
        assert torch.get_num_threads() == 1
        objective(network, step.shares[0], None).backward()  # type: ignore[no-untyped-call]
        running[0].finish()
        assert torch.get_num_threads() == 3
        running[0].start(step.shares[1:], None, 9)
        running[0].close()
        assert torch.get_num_threads() == 3
        torch.set_num_threads(2)
        running[0].close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_an_error_in_a_helper_is_raised_here(running: list[Helpers]) -> None:
    objective, network = Objective("softmax", 0.75), network_of()
    running.append(Helpers(network, objective, 1))
    inputs = torch.ones(1, MAX_LEN + 1, dtype=torch.long)
    bad = TrainBatch(inputs, torch.tensor([[MAX_LEN]]), torch.tensor([0]), torch.tensor([1]))
    running[0].start([[bad]], None, 1)
    with pytest.raises(ValueError, match="longer than max_len"):
        running[0].finish()


def test_a_helper_that_was_killed_is_one_line(running: list[Helpers]) -> None:
    objective, step, network = Objective("softmax", 0.75), step_of(), network_of()
    running.append(Helpers(network, objective, 1))
    pid = running[0].processes[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a helper process of training has ended.*training\.cpu_processes=1"):
        take_step(running[0], network, objective, step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_order_to_stop_is_the_main_processs_affair(number: int, running: list[Helpers]) -> None:
    """Ctrl-C, and SLURM, send it to all processes; the step under way still has to end."""
    objective, step, network = Objective("softmax", 0.75), step_of(), network_of()
    running.append(Helpers(network, objective, 1))
    loss = take_step(running[0], network, objective, step)
    pid = running[0].processes[0].pid
    assert pid is not None
    os.kill(pid, number)
    network.zero_grad()
    assert take_step(running[0], network, objective, step) == loss


def test_closing_ends_the_processes(running: list[Helpers]) -> None:
    objective, step, network = Objective("softmax", 0.75), step_of(), network_of()
    running.append(Helpers(network, objective, 1))
    take_step(running[0], network, objective, step)
    processes = list(running[0].processes)
    running[0].close()
    running[0].close()
    assert [process.exitcode for process in processes] == [0]


def test_too_little_shared_memory_is_said_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Any = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(helpers_module, "SHARED_MEMORY", helpers_module.SHARED_MEMORY.parent)
    with pytest.raises(UserError, match=r"/dev has 0 MiB free, and 2 processes need .* training\.cpu_processes=1"):
        Helpers(network_of(), Objective("softmax", 0.75), 1)


def test_negatives_reach_the_helpers(running: list[Helpers]) -> None:
    """With the same share there and here, twice the gradient of one, for these negatives and for others."""
    objective, step, network = Objective("sampled_softmax", 0.75), step_of(4), network_of()
    running.append(Helpers(network, objective, 1))
    assert step.negatives is not None
    other = Negatives(step.negatives.items % NUM_ITEMS + 1, step.negatives.log_counts)
    for negatives in (step.negatives, other):
        twice = step._replace(shares=[step.shares[0], step.shares[0]], negatives=negatives)
        loss = take_step(running[0], network, objective, twice)
        network.zero_grad()
        assert loss == pytest.approx(float(objective(network, step.shares[0], negatives).detach()), rel=1e-12)


def test_helpers_end_when_the_process_they_help_is_killed(tmp_path: Path) -> None:
    """No process is left over, even if nothing could be tidied up."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal\n"
        "if __name__ == '__main__':\n"
        "    from tests.models.test_helpers import Helpers, Objective, network_of, step_of, take_step\n"
        "    network, objective = network_of(), Objective('softmax', 0.75)\n"
        "    helpers = Helpers(network, objective, 1)\n"
        "    take_step(helpers, network, objective, step_of())\n"
        "    print(*[process.pid for process in helpers.processes], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": "."}
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 1, done.stderr
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def test_a_program_that_does_not_close_them_ends_all_the_same(tmp_path: Path) -> None:
    script = tmp_path / "forgetful.py"
    script.write_text(
        "if __name__ == '__main__':\n"
        "    from tests.models.test_helpers import Helpers, Objective, network_of, step_of, take_step\n"
        "    network, objective = network_of(), Objective('softmax', 0.75)\n"
        "    helpers = Helpers(network, objective, 1)\n"
        "    take_step(helpers, network, objective, step_of())\n"
    )
    command, environment = [sys.executable, str(script)], os.environ | {"PYTHONPATH": "."}
    assert subprocess.run(command, timeout=60, env=environment).returncode == 0


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
