"""What the service bears: python -m tests.benchmarks.service --items 50000

Starts it on a model with random weights. A second process sends requests of one history each over connections that
stay open: first at random moments, so many a second on average, whether or not earlier ones are answered. Then as fast
as they are answered, so many at a time.
"""

import argparse
import asyncio
import gc
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks.common import ROOT, print_table

HEAD = "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "


def write_checkpoint(path: Path, items: int, length: int, width: int, layers: int) -> None:
    """A model with random weights, and items item-0, item-1, ..."""
    import numpy as np
    import pyarrow as pa
    import torch

    from src.data.vocabulary import Vocabulary
    from src.models import BERT4Rec

    model = BERT4Rec(items, width, 2, layers, length)
    vocabulary = Vocabulary(pa.array([f"item-{number}" for number in range(items)]), np.arange(items))
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "BERT4RecDataModule": {"vocabulary": vocabulary.state_dict()}}, path)


@contextmanager
def service(checkpoint: Path, settings: list[str]) -> Iterator[int]:
    """Its port, while it runs."""
    command = [sys.executable, str(ROOT / "predict_bert4rec.py"), f"inference.checkpoint_path={checkpoint}"]
    command += ["inference.serve=true", "inference.port=0", *settings]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if address := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                print(f"ready after {time.perf_counter() - started:.1f} s")
                yield int(address[1])
                process.terminate()


class Connection(asyncio.Protocol):
    """A connection with one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.answer: asyncio.Future[bytes] | None = None
        self.received = b""

    def ask(self, request: bytes) -> "asyncio.Future[bytes]":
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if end and len(body) == int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            self.received = b""
            self.answer.set_result(head)

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error or ConnectionError("closed"))


class Client:
    """Sends requests, each over a connection that is free or else a new one, to each service in turn."""

    def __init__(self, ports: list[int], requests: list[bytes]) -> None:
        self.ports, self.requests = itertools.cycle(ports), requests
        self.free: deque[Connection] = deque()  # the next is the one that was idle longest, so that none is closed
        self.milliseconds: list[float] = []

    async def ask(self) -> None:
        started = time.perf_counter()
        if self.free:
            connection = self.free.popleft()
        else:
            port = next(self.ports)
            _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        head = await connection.ask(random.choice(self.requests))
        assert head.startswith(b"HTTP/1.1 200"), head
        self.free.append(connection)
        self.milliseconds.append(1000 * (time.perf_counter() - started))

    async def at_random(self, rate: float, seconds: float) -> None:
        """Requests at the moments of a Poisson process."""
        due = time.perf_counter()
        ends = due + seconds
        async with asyncio.TaskGroup() as group:
            while due < ends:
                due += random.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self.ask())

    async def as_fast_as_answered(self, at_a_time: int, seconds: float) -> None:
        ends = time.perf_counter() + seconds

        async def one_after_the_other() -> None:
            while time.perf_counter() < ends:
                await self.ask()

        await asyncio.gather(*(one_after_the_other() for _ in range(at_a_time)))


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each request at the rate, and of each when they come as fast as they are answered."""
    gc.disable()  # the client's pauses are no latency of the service
    random.seed(1)
    requests = []
    for _ in range(2000):
        history = [f"item-{random.randrange(options.items)}" for _ in range(options.length - 1)]
        body = json.dumps({"histories": [history], "topk": 10})
        requests.append(f"{HEAD}{len(body)}\r\n\r\n{body}".encode())

    async def both() -> dict[str, list[float]]:
        client = Client(options.port, requests)
        await client.at_random(options.rate, 2.0)  # to warm up
        client.milliseconds = at_rate = []
        await client.at_random(options.rate, options.seconds)
        client.milliseconds = most = []
        await client.as_fast_as_answered(options.at_a_time, options.seconds / 4)
        return {"at_rate": at_rate, "most": most}

    return asyncio.run(both())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--at-a-time", type=int, default=32, help="requests in flight when throughput is measured")
    parser.add_argument("--services", type=int, default=1, help="on as many ports, as behind a proxy")
    parser.add_argument("--port", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="of the service, such as native=false")
    options = parser.parse_args()
    if options.client:
        return print(json.dumps(measure(options)))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "last.ckpt"
        write_checkpoint(checkpoint, options.items, options.length, options.width, options.layers)
        with ExitStack() as stack:
            ports = [stack.enter_context(service(checkpoint, options.settings)) for _ in range(options.services)]
            command = [sys.executable, "-m", "tests.benchmarks.service", *sys.argv[1:], "--client"]
            command += ["--port", *map(str, ports)]
            taken = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    rows = []
    for name, seconds in (("at_rate", options.seconds), ("most", options.seconds / 4)):
        cuts = statistics.quantiles(taken[name], n=100)
        kind = f"{options.rate:g} a second" if name == "at_rate" else f"{options.at_a_time} at a time"
        figures = [cuts[49], cuts[94], cuts[98], max(taken[name])]
        rows.append([kind, f"{len(taken[name]) / seconds:.0f}", *(f"{figure:.1f}" for figure in figures)])
    print_table(["requests", "answered per second", "p50 ms", "p95 ms", "p99 ms", "slowest ms"], rows)


if __name__ == "__main__":
    main()
