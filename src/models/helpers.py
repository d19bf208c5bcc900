"""Helper processes that compute gradients on a CPU.

Threads that share every single operation of a step wait for each other at the end of each, thousands of times a
second, and every small operation in between leaves all but one of them idle. Processes that take a share of the batch
each meet once a step, when the gradients are added up.
"""

import atexit
import itertools
import math
import shutil
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from src import memory
from src.batch import Negatives, TrainBatch
from src.errors import UserError
from src.models.network import Network
from src.models.objective import Objective

SHARED_MEMORY = Path("/dev/shm")


class Helpers:
    """Processes that work on a share of each training step, beside this one.

    They see the weights through shared memory, so that an update here is one there, and leave their gradients in shared
    memory too, apart from sparse ones, which are sent. All randomness in them follows from a seed sent with each step.
    The threads of this process are divided among all of them while they work together, and are this one's otherwise.

    Args:
        network: its weights are moved to shared memory.
        objective: the loss.
        count: how many there are beside this process.

    Raises:
        UserError: if there is too little shared memory; from `finish`, if one of them has ended.
    """

    def __init__(self, network: Network, objective: Objective, count: int) -> None:
        if not has_shared_memory(network, objective, count):
            free, needed = _free_bytes(), _needed_bytes(network, objective, count)
            raise UserError(
                f"{SHARED_MEMORY} has {free / 2**20:,.0f} MiB free, and {count + 1} processes need"
                f" {needed / 2**20:,.0f} MiB there: use training.cpu_processes=1 or give it more (docker --shm-size)"
            )
        self.network = network
        self.threads = torch.get_num_threads()
        self.threads_each = max(1, self.threads // (count + 1))
        network.share_memory()
        self.dense = _with_dense_gradient(network, objective)
        self.sizes = [parameter.numel() for parameter in self.dense]
        context = torch.multiprocessing.get_context("spawn")
        self.gradients: list[Tensor] = []
        self.connections: list[Connection] = []
        self.processes = []
        for _ in range(count):
            gradient = next(network.parameters()).new_zeros(sum(self.sizes))
            gradient.share_memory_()  # type: ignore[no-untyped-call]
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, network, objective, gradient, self.threads_each), daemon=True
            )
            process.start()
            there.close()
            self.gradients.append(gradient)
            self.connections.append(here)
            self.processes.append(process)
        self.busy = 0
        atexit.register(self.close)

    def start(self, shares: Sequence[Sequence[TrainBatch]], negatives: Negatives | None, targets: int) -> None:
        """Have at most `count` shares worked on, of a batch with so many targets in all."""
        self.busy = len(shares)
        seeds = torch.randint(2**62, (self.busy,)).tolist()  # of the seed of this step, if it has one
        cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        sampled = None if negatives is None else tuple(tensor.numpy() for tensor in negatives)
        for connection, share, seed in zip(self.connections, shares, seeds, strict=False):
            parts = [tuple(tensor.numpy() for tensor in part) for part in share]
            self._send(connection, (parts, sampled, targets, seed, cast))
        torch.set_num_threads(self.threads_each)

    def finish(self) -> float:
        """Add their gradients to those of the parameters here.

        Returns:
            What their shares add to the loss of the whole batch.
        """
        answers = [self._receive(connection) for connection in self.connections[: self.busy]]
        torch.set_num_threads(self.threads)  # all others have nothing to do now
        for (_, sparse), gradient in zip(answers, self.gradients, strict=False):
            for parameter, view in zip(self.dense, torch.split(gradient, self.sizes), strict=True):
                _add(parameter, view.view_as(parameter))
            if sparse is not None:
                rows, values = (torch.from_numpy(array) for array in sparse)
                weight = self.network.output.weight
                _add(weight, torch.sparse_coo_tensor(rows, values, weight.shape, check_invariants=False))
        self.busy = 0
        return math.fsum(loss for loss, _ in answers)

    def close(self) -> None:
        """End them; more than one call does no harm."""
        if not self.processes:
            return
        atexit.unregister(self.close)
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(timeout=5.0)
            if process.is_alive():  # one that has not even begun
                process.kill()
                process.join()
        self.connections, self.processes = [], []
        torch.set_num_threads(self.threads)

    def _send(self, connection: Connection, message: Any) -> None:
        try:
            connection.send(message)
        except OSError as error:
            raise _ended() from error

    def _receive(self, connection: Connection) -> Any:
        try:
            answer = connection.recv()
        except (EOFError, OSError) as error:
            raise _ended() from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def _ended() -> UserError:
    return UserError(
        "a helper process of training has ended, perhaps for lack of memory: go on with training.resume=true, and with"
        " training.cpu_processes=1 if it happens again"
    )


def _with_dense_gradient(network: Network, objective: Objective) -> list[torch.nn.Parameter]:
    sparse = None if objective.loss == "softmax" else network.output.weight
    return [parameter for parameter in network.parameters() if parameter is not sparse]


def has_shared_memory(network: Network, objective: Objective, count: int) -> bool:
    """Whether the weights and the gradients of helpers fit: what does not would end the process by a signal."""
    return _needed_bytes(network, objective, count) <= 0.9 * _free_bytes()


def _needed_bytes(network: Network, objective: Objective, count: int) -> int:
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return weights + count * sum(p.numel() * p.element_size() for p in _with_dense_gradient(network, objective))


def _free_bytes() -> float:
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else math.inf


def _add(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient.clone()
    elif parameter.grad.is_sparse:
        parameter.grad = parameter.grad + gradient
    else:
        parameter.grad += gradient


def _serve(connection: Connection, network: Network, objective: Objective, gradient: Tensor, threads: int) -> None:
    """Answer each share with its loss and its gradients, until the other side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach all; the main process decides what comes of it
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    memory.keep()
    network.train()
    dense = _with_dense_gradient(network, objective)
    for step in itertools.count(1):
        if step % memory.STEPS_BETWEEN == 0:
            memory.give_back()
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: Any = _answer(message, network, objective, dense, gradient)
        except Exception as error:
            answer = error
        try:
            connection.send(answer)
        except OSError:
            return


def _answer(
    message: Any, network: Network, objective: Objective, dense: list[torch.nn.Parameter], gradient: Tensor
) -> tuple[float, Any]:
    arrays, sampled, targets, seed, cast = message
    parts = [TrainBatch(*(torch.from_numpy(array) for array in part)) for part in arrays]
    negatives = None if sampled is None else Negatives(*(torch.from_numpy(array) for array in sampled))
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` first looks for devices that are not there
    network.zero_grad()
    with torch.autocast("cpu", dtype=cast, enabled=cast is not None):
        loss = objective(network, parts, negatives) * (sum(len(part.targets) for part in parts) / targets)
    loss.backward()
    views = torch.split(gradient, [parameter.numel() for parameter in dense])
    for parameter, view in zip(dense, views, strict=True):
        assert parameter.grad is not None
        view.view_as(parameter).copy_(parameter.grad)
    sparse = None
    if len(dense) < len(list(network.parameters())):
        rows = network.output.weight.grad
        assert rows is not None
        rows = rows.coalesce()
        sparse = rows.indices().numpy(), rows.values().numpy()
    return float(loss.detach()), sparse
