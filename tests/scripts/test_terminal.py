"""Training on a terminal and into a file, as a user sees it."""

import fcntl
import os
import pty
import re
import select
import shlex
import struct
import sys
import termios
import time
from pathlib import Path

from src.runs import progress
from tests.scripts.conftest import ROOT, TINY, Sessions, make_rows, write_table

LONG = ("training.num_epochs=100000", "data.batch_size=1", "data.num_workers=0")


def run_in_terminal(sessions: Sessions, columns: int, cwd: Path, *words: str, seconds: float = 0.0) -> tuple[int, str]:
    """Exit code and output of training on a terminal so wide; with `seconds`, Ctrl-C comes so long after the bar."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    call = {"called": str(ROOT / "train_bert4rec.py"), "environments": [{"TERM": "xterm"}]}
    sessions.start("train", *words, cwd=str(cwd), terminal=os.ttyname(theirs), **call)
    output, due = b"", None
    while not select.select([ours], [], [], 0.0)[0]:  # until it has opened the terminal
        time.sleep(0.05)
    os.close(theirs)
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the terminal is gone
            break
        if not piece:
            break
        output += piece
        if seconds and due is None and b"epoch " in output:
            due = time.monotonic() + seconds
        if due is not None and time.monotonic() > due:
            os.write(ours, b"\x03")
            due = float("inf")
    os.close(ours)
    return sessions.wait()["codes"][0], output.decode().replace("^C", "")  # the terminal shows what is typed


def screen(output: str) -> list[str]:
    """What stands on the lines in the end: what follows a carriage return is written over what was there."""
    lines = []
    for line in output.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_on_a_terminal_of_80_columns_and_after_ctrl_c(sessions: Sessions, tmp_path: Path) -> None:
    table = write_table(tmp_path / "r.csv", make_rows())
    code, output = run_in_terminal(
        sessions, 80, tmp_path, *table.overrides, "output_dir=run", *TINY, *LONG, seconds=2.0
    )
    assert code == 130
    drawn = [part for part in re.split(r"[\r\n]+", output) if "|" in part]
    assert drawn
    assert max(map(len, drawn)) <= 80, drawn
    assert all(len(part.split("|")[1]) >= progress.NARROWEST_BAR for part in drawn)
    assert any("loss " in part and part.rstrip().endswith(tuple("0123456789")) for part in drawn)
    assert "\x1b[A" not in output
    (line,) = (line for line in screen(output) if "error: " in line)
    assert line.startswith("error: training was stopped by SIGINT after step ")
    resume = line.partition("; resume with ")[2]
    assert shlex.split(resume)[:2] == [sys.executable, str(ROOT / "train_bert4rec.py")]
    assert "data.batch_size=1" in shlex.split(resume)
    assert resume.endswith(" training.resume=true")


def test_a_file_gets_plain_lines(sessions: Sessions, tmp_path: Path) -> None:
    table = write_table(tmp_path / "r.csv", make_rows())
    outcome = sessions.launch("train", *table.overrides, "output_dir=run", *TINY, "training.num_epochs=3", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert not set("\r\x1b█") & set(outcome.out)
    told = [line for line in outcome.out.splitlines() if line.startswith("epoch ")]
    assert re.fullmatch(r"epoch 0, loss [\d.]+, val_ndcg@10 [\d.e-]+", told[0])
    assert re.fullmatch(r"epoch 2, loss [\d.]+, val_ndcg@10 [\d.e-]+", told[-1])
    assert 2 <= len(told) <= 3
    predicted = sessions.launch("predict", *table.overrides, "output_dir=run", *TINY, cwd=tmp_path)
    assert (predicted.code, predicted.err) == (0, "")
    assert not set("\r\x1b█") & set(predicted.out)
