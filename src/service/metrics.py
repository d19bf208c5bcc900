"""Counts of the service, as Prometheus reads them.

https://prometheus.io/docs/instrumenting/exposition_formats
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
HISTORIES = (1, 2, 4, 8, 16, 32)


class Histogram:
    """Counts of values up to some bounds, and their sum."""

    def __init__(self, name: str, meaning: str, bounds: tuple[float, ...]) -> None:
        self.name, self.meaning, self.bounds = name, meaning, bounds
        self.counts = [0] * (len(bounds) + 1)  # the last one for what is above all bounds
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, "histogram", self.meaning)
        for bound, count in zip([*self.bounds, "+Inf"], accumulate(self.counts), strict=True):
            yield f'{self.name}_bucket{{le="{bound}"}} {count}'
        yield f"{self.name}_sum {self.sum:.6g}"
        yield f"{self.name}_count {sum(self.counts)}"


class Metrics:
    """What the service has done since it started."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # of a path and a status
        self.seconds = Histogram("bert4rec_recommend_seconds", "Time from a request to its answer.", SECONDS)
        self.batch_histories = Histogram("bert4rec_batch_histories", "Histories in a call of the model.", HISTORIES)
        self.waiting: Callable[[], int] = lambda: 0

    def text(self) -> str:
        lines = [*_head("bert4rec_requests_total", "counter", "Requests answered, by path and status.")]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'bert4rec_requests_total{{path="{path}",status="{status}"}} {count}')
        lines += [*self.seconds.lines(), *self.batch_histories.lines()]
        lines += [*_head("bert4rec_waiting_histories", "gauge", "Histories in the queue before the model.")]
        return "\n".join([*lines, f"bert4rec_waiting_histories {self.waiting()}", ""])


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


class Measured:
    """Middleware that counts requests and times those for recommendations."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def noting_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"  # anybody may ask for anything
            self.metrics.requests[path, status] += 1
            if path == "/recommend":
                self.metrics.seconds.add(time.perf_counter() - started)
