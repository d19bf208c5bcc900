"""The output folder of a run: what stands where, who is in it, and how an earlier run makes room for a new one."""

import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UserError

# Variables by which launchers number the processes, or the machines, of one run.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK", "GROUP_RANK")
# How long the helper processes of a killed run may hold its lock after it.
SECONDS_AFTER_DEATH = 15.0
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


class RunFolder:
    """Paths below `output_dir`.

    Args:
        root: the folder itself.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"  # of the last epoch
        self.best = self.checkpoints / "best.ckpt"  # by `training.monitor_metric`; there is none without validation
        self.logs = root / "logs"
        self.metrics = root / "metrics.json"
        self.report = root / "report.html"  # what `metrics` says, for people, with plots
        self.evaluation = root / "evaluation.json"  # figures of `inference.evaluate=true`
        self.predictions = root / "predictions.csv"
        self.similar = root / "similar.csv"  # of `inference.similar`
        self.sweep = root / "sweep"  # with one output folder a run in it
        self.cache = root / "cache"  # prepared data of the last tables, which can be made again
        self._lock = root / ".lock"
        self._holder = root / ".running.json"  # which process is in the folder; what counts is the lock

    @classmethod
    def at(cls, output_dir: str) -> "RunFolder":
        return cls(Path(output_dir).expanduser())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have the folder alone for as long as this lasts, however the program ends.

        The system's own lock on a file, which ends with the process, `kill -9` included. All processes of one run are
        in the folder together, by the lock of the first. Reading, as prediction does, needs no lock. On a file system
        without locks the run says so and continues.

        Raises:
            UserError: if another run is in the folder, or nothing can be written to it.
        """
        if not is_first_process():
            yield
            return
        is_new = not self.root.exists()
        lock = FileLock(self._lock, fallback_to_soft=False)  # a mere file would outlive a killed run
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._acquire(lock)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
                raise UserError(
                    f"output_dir={self.root} cannot be written to ({error.strerror or error}): give another folder"
                ) from error
            print(f"warning: {self.root} is on a file system without locks: start no other run in it meanwhile")
        try:
            yield
        finally:
            if lock.is_locked:
                with suppress(OSError):
                    self._holder.unlink(missing_ok=True)
                    if is_new and list(self.root.iterdir()) == [self._lock]:  # nothing came of it
                        self._lock.unlink()
                        self.root.rmdir()
                lock.release()

    def _acquire(self, lock: FileLock) -> None:
        try:
            lock.acquire(SECONDS_AFTER_DEATH, poll_interval=0.1, cancel_check=lambda: _is_alive(self._read_holder()))
        except Timeout as error:
            raise UserError(self._in_use(self._read_holder())) from error
        holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "command": shlex.join(sys.argv),
        }
        with suppress(OSError):  # for the message alone
            self._holder.write_text(json.dumps(holder) + "\n")

    def _read_holder(self) -> dict[str, Any]:
        try:
            holder = json.loads(self._holder.read_text())
        except (OSError, ValueError):
            return {}
        return holder if isinstance(holder, dict) else {}

    def _in_use(self, holder: dict[str, Any]) -> str:
        number, host = holder.get("process"), holder.get("host")
        who = "another process"
        if number is not None:
            here = host == socket.gethostname()
            who = f"process {number}{'' if here else f' on {host}'}, since {holder.get('since')}"
        return (
            f"output_dir={self.root} is in use by another run ({who}): give this one another output_dir, wait for that"
            f" one to end, or stop it with kill {number or 'PROCESS'}"
        )

    def archive_sweep(self) -> Path | None:
        """As `archive`, for an earlier sweep."""
        return self._move_to_previous(self.sweep)

    def archive(self, results_only: bool = False) -> Path | None:
        """Move what an earlier run left to `previous/TIME/`, so that nothing of it is lost or mixed with the new run.

        Args:
            results_only: leave the checkpoints and logs for a run that resumes with them; figures and predictions are
                those of the model before.

        Returns:
            Where it went, or None if there was nothing.
        """
        kept = () if results_only else (self.checkpoints, self.logs)
        evaluation = self.evaluation, self.evaluation.with_suffix(".html")
        return self._move_to_previous(*kept, self.metrics, self.report, *evaluation, self.predictions, self.similar)

    def _move_to_previous(self, *paths: Path) -> Path | None:
        files = [path for path in paths if path.exists()]
        if not files:
            return None
        stamp = datetime.fromtimestamp(max(path.stat().st_mtime for path in files)).strftime("%Y-%m-%d_%H-%M-%S")
        place, copies = self.root / "previous" / stamp, 1
        while place.exists():
            copies += 1
            place = place.with_name(f"{stamp}_{copies}")
        place.mkdir(parents=True)
        for path in files:
            os.replace(path, place / path.name)
        return place


def is_first_process() -> bool:
    """Whether this process is alone or, as launchers number them, the first of its run."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the process still runs, as far as can be known from here."""
    number = holder.get("process")
    if holder.get("host") != socket.gethostname() or type(number) is not int or os.name == "nt":
        return True
    try:
        os.kill(number, 0)
    except OSError as error:  # another one: the process is somebody else's
        return not isinstance(error, ProcessLookupError)
    return True
