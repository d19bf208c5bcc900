"""The queue before the model: requests that wait while it computes are joined into its next batch."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ..prediction.recommender import Id, Recommender
from .metrics import Metrics

HISTORIES_AT_ONCE = 64  # more would make a small request wait for long
MOST_WAITING = 1000  # requests; at a few milliseconds each, nobody waits for the next one's answer

Lists = list[list[tuple[str, float]]]


class BusyError(Exception):
    """More requests wait than are worth waiting for."""


@dataclass(frozen=True)
class Options:
    """What is the same for all histories of a call of the model; see `Recommender.recommend`."""

    exclude_seen: bool
    exclude: tuple[Id, ...] = ()
    candidates: tuple[Id, ...] | None = None


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request, and where its lists go."""

    histories: list[list[Id]]
    topk: int
    options: Options
    lists: asyncio.Future[Lists]


class Batches:
    """Answers requests by one thread that computes, so that the event loop always takes the next ones.

    An idle model gets a request at once. Requests with equal options share a call, for the largest of their topk.
    """

    def __init__(self, recommender: Recommender, metrics: Metrics) -> None:
        self.recommender = recommender
        self.metrics = metrics
        self.waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()

    async def recommend(self, histories: list[list[Id]], topk: int, options: Options) -> Lists:
        """One list of items and scores a history, best first.

        Raises:
            BusyError: if the queue is full.
            UserError: if the model knows none of the candidates.
        """
        if len(self.waiting) >= MOST_WAITING:
            raise BusyError
        request = Waiting(histories, topk, options, asyncio.get_running_loop().create_future())
        self.waiting.append(request)
        self._arrived.set()
        return await request.lists

    async def run(self) -> None:
        """Compute batch after batch until cancelled."""
        with ThreadPoolExecutor(1, "model") as thread:
            while True:
                while not self.waiting:
                    self._arrived.clear()
                    await self._arrived.wait()
                await self._answer(self._next_batch(), thread)

    def _next_batch(self) -> list[Waiting]:
        """Take the oldest request, and those behind it that the same call can answer."""
        batch = [self.waiting.popleft()]
        rows, left = len(batch[0].histories), deque[Waiting]()
        for request in self.waiting:
            if request.options == batch[0].options and rows + len(request.histories) <= HISTORIES_AT_ONCE:
                batch.append(request)
                rows += len(request.histories)
            else:
                left.append(request)
        self.waiting = left
        return batch

    async def _answer(self, batch: list[Waiting], thread: ThreadPoolExecutor) -> None:
        histories = [history for request in batch for history in request.histories]
        self.metrics.batch_histories.add(len(histories))
        call = partial(self.recommender.recommend_with_scores, **vars(batch[0].options))
        topk = max(request.topk for request in batch)
        try:
            lists = await asyncio.get_running_loop().run_in_executor(thread, call, histories, topk)
        except Exception as error:
            for request in batch:
                if not request.lists.done():
                    request.lists.set_exception(error)
            return
        start = 0
        for request in batch:
            stop = start + len(request.histories)
            if not request.lists.done():  # cancelled, when the service stops
                request.lists.set_result([row[: request.topk] for row in lists[start:stop]])
            start = stop
