"""Sessions of the scripts that cost no start: this program loads everything once and forks a process for each.

Reads one JSON object a line: {"script": "train" or "predict", "overrides": [...]} and what is to go wrong:
"kill_after": seconds, "kill_at": [stage, n] for the n-th write of a checkpoint, "largest_file": bytes, "term_after":
seconds, "refuses_sparse": true for a group of processes that, like NCCL, has no all-reduce of sparse tensors. With
"environments", a list of variables for each, so many processes start together, as a launcher would start
them. "cwd" is the folder they start in, "terminal" the terminal that controls them, "called" the script as they see it
called. Answers {"codes": [...], "outputs": [...], "errors": [...], "seconds": ...}; a negative code is the signal that
ended it. With "background" it answers {"processes": [...]} at once, and the rest to a line {"wait": true}.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytorch_lightning  # noqa: F401
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

from src import atomic_files
from src.command_line import cli
from src.prediction import writer  # noqa: F401
from src.prediction.predict import predict
from src.training.train import train

kept: list[torch.library.Library] = []  # what they register holds for as long as they are there
STAGES = ("before", "half", "written", "replaced")


def kill_at_write(stage: str, number: int) -> None:
    """Have this process killed at a stage of its n-th write of a file."""
    counted = 0
    fsync, replace = os.fsync, os.replace

    def die(at: str) -> None:
        if at == stage and counted == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting_fsync(descriptor: int) -> None:
        nonlocal counted
        counted += 1
        die("before")
        if stage == "half" and counted == number:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)
        die("written")

    def counting_replace(source: Any, target: Any) -> None:
        replace(source, target)
        die("replaced")

    atomic_files.os.fsync, atomic_files.os.replace = counting_fsync, counting_replace  # type: ignore[attr-defined]


def refuse_sparse() -> None:
    """Have all-reduces of sparse tensors fail in this process, from Python and from DDP's C++ alike."""

    def refused(*args: Any) -> None:
        raise RuntimeError("this backend has no all-reduce of sparse tensors")

    kept.append(torch.library.Library("c10d", "IMPL"))
    kept[-1].impl("allreduce_", refused, "SparseCPU")


def session(order: dict[str, Any], environment: dict[str, str], out: int, log: int) -> int:
    """What a child does; its exit code."""
    os.environ.update(environment)
    rank_zero_only.rank = int(environment.get("RANK", environment.get("SLURM_PROCID", "0")))  # what an import sets
    if "terminal" in order:
        os.setsid()
        out = log = os.open(order["terminal"], os.O_RDWR)  # the first that a leader of a session opens controls it
        os.dup2(out, 0)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # as Python has it on a terminal
    os.dup2(out, 1)
    os.dup2(log, 2)
    if "cwd" in order:
        os.chdir(order["cwd"])
    sys.argv = [order.get("called", f"{order['script']}_bert4rec.py"), *order["overrides"]]
    if "called" in order:
        sys.orig_argv = [sys.executable, *sys.argv]
    task: Callable[..., Any] = train if order["script"] == "train" else predict
    if "kill_at" in order:
        kill_at_write(*order["kill_at"])
    if "refuses_sparse" in order:
        refuse_sparse()
    if "largest_file" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], resource.RLIM_INFINITY))
    try:
        cli.run(task)
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def run(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Answer an order: at once and after the next line, with "background", else at the end."""
    started = time.perf_counter()
    children, outs, logs = [], [], []
    for environment in order.get("environments", [{}]):
        out, log = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        child = os.fork()
        if child == 0:
            code = 98
            try:
                code = session(order, environment, out.fileno(), log.fileno())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
        outs.append(out)
        logs.append(log)
    if order.get("background"):
        yield {"processes": children}
    for key, number in (("kill_after", signal.SIGKILL), ("term_after", signal.SIGTERM)):
        if key in order:
            time.sleep(order[key])
            for child in children:
                os.kill(child, number)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    outputs, errors = [[_read(file) for file in files] for files in (outs, logs)]
    yield {"codes": codes, "outputs": outputs, "errors": errors, "seconds": time.perf_counter() - started}


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    background: Iterator[dict[str, Any]] = iter(())
    for line in sys.stdin:
        given = json.loads(line)
        answers = background if "wait" in given else run(given)
        print(json.dumps(next(answers)), flush=True)
        if "background" in given:
            background = answers
