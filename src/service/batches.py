"""The queue before the model: histories that have arrived while it computed are its next batch."""

import asyncio
from collections import deque
from dataclasses import dataclass

from ..prediction.recommender import Id, Recommender
from .metrics import Metrics

HISTORIES_AT_ONCE = 32  # more take long, and are hardly faster each
MOST_WAITING = 4096  # histories: some seconds of work

Best = list[tuple[str, float]]


class BusyError(Exception):
    """More histories wait than are worth waiting for."""


@dataclass(frozen=True)
class Options:
    """What is the same for all histories of a call of the model; see `Recommender.recommend`."""

    exclude_seen: bool
    exclude: tuple[Id, ...] = ()
    candidates: tuple[Id, ...] | None = None


@dataclass(frozen=True, eq=False)
class Waiting:
    """A history, and where its items go."""

    history: list[Id]
    topk: int
    options: Options
    best: asyncio.Future[Best]


class Batches:
    """Answers histories in order of arrival, those with equal options together. An idle model begins at once.

    The event loop itself computes, and between two batches takes what has arrived. A thread beside it was slower, since
    both need the interpreter's lock (docs/service.md).
    """

    def __init__(self, recommender: Recommender, metrics: Metrics) -> None:
        self.recommender = recommender
        self.metrics = metrics
        self.waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()

    async def recommend(self, histories: list[list[Id]], topk: int, options: Options) -> list[Best]:
        """Items and scores for each history, best first.

        Raises:
            BusyError: if the queue is full.
            UserError: if the model knows none of the candidates.
        """
        if len(self.waiting) + len(histories) > MOST_WAITING:
            raise BusyError
        loop = asyncio.get_running_loop()
        rows = [Waiting(history, topk, options, loop.create_future()) for history in histories]
        self.waiting += rows
        self._arrived.set()
        return await asyncio.gather(*(row.best for row in rows))

    async def run(self) -> None:
        """Compute batch after batch until cancelled."""
        while True:
            while not self.waiting:
                self._arrived.clear()
                await self._arrived.wait()
            # A turn of the loop sends answers and reads what has come, the next takes it to the queue, and then this.
            for _ in range(3):
                await asyncio.sleep(0)
            self._answer(self._next_batch())

    def _next_batch(self) -> list[Waiting]:
        """Take the oldest history, and those behind it that the same call can answer."""
        options = self.waiting[0].options
        batch: list[Waiting] = []
        left: deque[Waiting] = deque()
        for row in self.waiting:
            fits = len(batch) < HISTORIES_AT_ONCE and row.options == options
            (batch if fits else left).append(row)
        self.waiting = left
        return batch

    def _answer(self, batch: list[Waiting]) -> None:
        self.metrics.batch_histories.add(len(batch))
        try:
            lists = self.recommender.recommend_with_scores(
                [row.history for row in batch], max(row.topk for row in batch), **vars(batch[0].options)
            )
        except Exception as error:
            for row in batch:
                if not row.best.done():
                    row.best.set_exception(error)
            return
        for row, best in zip(batch, lists, strict=True):
            if not row.best.done():  # cancelled, when the service stops
                row.best.set_result(best[: row.topk])
