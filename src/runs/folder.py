"""The output folder of a run: what stands where, who is in it, and how an earlier run makes room for a new one."""

import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RunFolder:
    """Paths below `output_dir`."""

    root: Path

    @classmethod
    def at(cls, output_dir: str) -> "RunFolder":
        return cls(Path(output_dir).expanduser())

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        """Checkpoint of the last epoch."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint with the best `training.monitor_metric`; there is none without validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """What `metrics` says, for people, with plots."""
        return self.root / "report.html"

    @property
    def evaluation(self) -> Path:
        """Figures of `inference.evaluate=true`."""
        return self.root / "evaluation.json"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.csv"

    @property
    def sweep(self) -> Path:
        """Folder of a sweep, with one output folder a run in it."""
        return self.root / "sweep"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have the folder alone for as long as this lasts, however the program ends.

        The system's own lock on a file, which ends with the process, `kill -9` included. All processes of one run are
        in the folder together, by the lock of the first. Reading, as prediction does, needs no lock. On a file system
        without locks the run says so and continues.

        Raises:
            UserError: if another run is in the folder, or nothing can be written to it.
        """
        if any(os.environ.get(name, "0") not in ("", "0") for name in RANKS):
            yield
            return
        is_new = not self.root.exists()
        # A lock that is a mere file, newer versions' way out, would outlive a killed run.
        options: dict[str, Any] = {"fallback_to_soft": False} if hasattr(FileLock, "fallback_to_soft") else {}
        lock = FileLock(self.root / ".lock", **options)
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
                    if is_new and [entry.name for entry in self.root.iterdir()] == [".lock"]:  # nothing came of it
                        (self.root / ".lock").unlink()
                        self.root.rmdir()
                lock.release()

    def _acquire(self, lock: FileLock) -> None:
        deadline = time.monotonic() + SECONDS_AFTER_DEATH
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout as error:
                holder = self._read_holder()
                if _is_alive(holder) or time.monotonic() > deadline:
                    raise UserError(self._in_use(holder)) from error
                time.sleep(0.1)
        holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "command": shlex.join(sys.argv),
        }
        with suppress(OSError):  # for the message alone
            self._holder.write_text(json.dumps(holder) + "\n")

    @property
    def _holder(self) -> Path:
        """Which process is in the folder; what counts is the lock."""
        return self.root / ".running.json"

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
        return self._move_to_previous([self.sweep]) if self.sweep.exists() else None

    @property
    def cache(self) -> Path:
        """Prepared data of the last tables, which can be made again."""
        return self.root / "cache"

    def archive(self, results_only: bool = False) -> Path | None:
        """Move what an earlier run left to `previous/TIME/`, so that nothing of it is lost or mixed with the new run.

        Args:
            results_only: leave the checkpoints and logs for a run that resumes with them; figures and predictions are
                those of the model before.

        Returns:
            Where it went, or None if there was nothing.
        """
        kept = () if results_only else (self.checkpoints, self.logs)
        results = (
            self.metrics,
            self.report,
            self.evaluation,
            self.evaluation.with_suffix(".html"),
            self.predictions,
        )
        files = [path for path in (*kept, *results) if path.exists()]
        return self._move_to_previous(files) if files else None

    def _move_to_previous(self, files: list[Path]) -> Path:
        stamp = datetime.fromtimestamp(max(path.stat().st_mtime for path in files)).strftime("%Y-%m-%d_%H-%M-%S")
        previous = self.root / "previous"
        place = previous / stamp
        copies = 1
        while place.exists():
            copies += 1
            place = previous / f"{stamp}_{copies}"
        place.mkdir(parents=True)
        for path in files:
            os.replace(path, place / path.name)
        return place


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the process still runs, as far as can be known from here."""
    number = holder.get("process")
    if holder.get("host") != socket.gethostname() or type(number) is not int or os.name == "nt":
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
