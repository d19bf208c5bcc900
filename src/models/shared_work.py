"""Work on a CPU that a second thread of Python shares with the one that has it to do.

torch cuts up each single operation among its threads, and all of them wait for the slowest at its end. Two threads that
take piece after piece of a long row, each with half of torch's threads, wait for each other once, and the second one
goes on while the first has something to do that cannot well be cut up.
"""

import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

# Up to here a second thread pays, measured with 1,000 to 20,000; with the default of 300,000 it does not.
MOST_SPINS = 20_000


def can_be_shared() -> bool:
    """Whether there is a core for a second thread: torch has more than one, and its threads do not spin for long.

    GNU OpenMP has them spin for a millisecond and more after each operation, on the core that the second thread would
    have, unless the environment said otherwise when torch was imported, as `src.cli` sees to.
    """
    spins = os.environ.get("GOMP_SPINCOUNT", "")
    return torch.get_num_threads() > 1 and sys.platform == "linux" and spins.isdecimal() and int(spins) <= MOST_SPINS


class SharedWork:
    """Pieces of work, each done once, by this thread or by the second one.

    They must not depend on each other, nor on who does them: who does which is chance.

    Args:
        pieces: called without gradients and without autocast.
        is_shared: False leaves all of them to this thread; so does a torch that has only one.
        afterwards: called by this thread when all of them are done.
    """

    def __init__(
        self,
        pieces: Iterable[Callable[[], object]],
        is_shared: bool = True,
        afterwards: Callable[[], object] | None = None,
    ) -> None:
        self._left = deque(pieces)
        self._is_shared = is_shared
        self._afterwards = afterwards
        self._threads = 1  # of torch, while it is shared
        self._second: Future[None] | None = None

    def begin(self) -> None:
        """Have the second thread set about it; this one has half of torch's threads for other things until `finish`."""
        threads = torch.get_num_threads()
        if self._is_shared and threads > 1 and self._left and self._second is None:
            self._threads = threads
            self._second = _second_thread(os.getpid()).submit(self._take_with, threads // 2)
            torch.set_num_threads(threads - threads // 2)

    def finish(self) -> None:
        """Take part until all is done; when it is, do nothing.

        Raises:
            Exception: what a piece raised, in whichever thread. The rest is left undone.
        """
        self.begin()
        try:
            self._take()
        finally:
            self._left.clear()
            if self._second is not None:
                second, self._second = self._second, None
                torch.set_num_threads(self._threads)
                second.result()
        afterwards, self._afterwards = self._afterwards, None
        if afterwards is not None:
            afterwards()

    def _take(self) -> None:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # either is a thread's own
            while self._left:
                try:
                    piece = self._left.popleft()
                except IndexError:  # the other one was quicker
                    return
                piece()

    def _take_with(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._take()


@functools.cache
def _second_thread(process: int) -> ThreadPoolExecutor:
    """That of a process: a forked one has a copy of its parent's, but not the thread itself."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="shared-work")
