"""The bar fits its terminal and leaves its line to what comes next; a file gets plain lines."""

import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from src.runs import progress
from src.runs.progress import Progress
from tests.scripts.conftest import ROOT, TINY, launch, make_rows, write_table

LONG = ("training.num_epochs=100000", "data.batch_size=1", "data.num_workers=0")


def trainer_at(batch: int, **changes: Any) -> mock.Mock:
    values = {"is_last_batch": False, "global_step": batch, "max_steps": -1, "num_training_batches": 10} | changes
    return mock.Mock(**values, current_epoch=3, progress_bar_metrics={"train_loss_epoch": 6.5, "val_mrr": 0.25})


@pytest.mark.parametrize("last", [{"is_last_batch": True}, {"global_step": 70, "max_steps": 70}])
def test_the_bar_is_drawn_at_intervals_and_for_the_last_step(monkeypatch: pytest.MonkeyPatch, last: dict) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    bar, drawn = Progress(), []
    bar._train_progress_bar = mock.Mock(disable=True)
    bar._trainer = mock.Mock(num_training_batches=10)
    for batch in range(10):
        bar.train_progress_bar.n = None
        bar.on_train_batch_end(trainer_at(batch, **(last if batch == 9 else {})), mock.Mock(), None, None, batch)
        drawn += [batch] if bar.train_progress_bar.n == batch + 1 else []
        now += 0.03
    assert drawn == [0, 4, 8, 9]


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_figures_give_way_before_the_bar_does(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = Progress("val_ndcg@10")
    metrics = {"train_loss": 6.54321, "val_ndcg@10": 0.0123, "val_hit@10": 0.5}
    monkeypatch.setattr(bar, "get_metrics", lambda *_: metrics)
    drawn = progress.Tqdm(total=12345, initial=1234, file=open(os.devnull, "w"), bar_format=bar.BAR_FORMAT)  # noqa: SIM115
    drawn.set_description_str("epoch 123")
    drawn.set_postfix_str(bar._figures(mock.Mock(), mock.Mock(), drawn))
    line = drawn.format_meter(**drawn.format_dict | {"ncols": columns, "ascii": False})
    assert len(line) <= columns
    assert len(line.split("|")[1]) >= min(progress.NARROWEST_BAR, columns - 36)
    assert ("loss 6.543" in line) == (columns > 60)
    assert ("val_ndcg@10 0.0123" in line) == (columns > 80)


def run_in_terminal(columns: int, cwd: Path, *words: str, seconds: float = 0.0) -> tuple[int, str]:
    """Exit code and output of training on a terminal so wide; with `seconds`, Ctrl-C comes so long after the bar."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment |= {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0", "TERM": "xterm"}
    command = [sys.executable, str(ROOT / "train_bert4rec.py"), *words]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    output, due = b"", None
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
            process.send_signal(signal.SIGINT)
            due = float("inf")
    os.close(ours)
    return process.wait(timeout=60), output.decode()


def screen(output: str) -> list[str]:
    """What stands on the lines in the end: what follows a carriage return is written over what was there."""
    lines = []
    for line in output.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_on_a_terminal_of_80_columns_and_after_ctrl_c(tmp_path: Path) -> None:
    table = write_table(tmp_path / "r.csv", make_rows())
    code, output = run_in_terminal(80, tmp_path, *table.overrides, "output_dir=run", *TINY, *LONG, seconds=2.0)
    assert code == 130
    drawn = [part for part in re.split(r"[\r\n]+", output) if "|" in part]
    assert drawn
    assert all(len(part) <= 80 for part in drawn)
    assert all(len(part.split("|")[1]) >= progress.NARROWEST_BAR for part in drawn)
    assert any("loss " in part and part.rstrip().endswith(tuple("0123456789")) for part in drawn)
    assert "\x1b[A" not in output
    (line,) = (line for line in screen(output) if "error: " in line)
    assert line.startswith("error: training was stopped by SIGINT after step ")
    resume = line.partition("; resume with ")[2]
    assert shlex.split(resume)[:2] == [sys.executable, str(ROOT / "train_bert4rec.py")]
    assert "data.batch_size=1" in shlex.split(resume)
    assert resume.endswith(" training.resume=true")


def test_a_file_gets_plain_lines(tmp_path: Path) -> None:
    table = write_table(tmp_path / "r.csv", make_rows())
    outcome = launch(
        "train_bert4rec.py", *table.overrides, "output_dir=run", *TINY, "training.num_epochs=3", cwd=tmp_path
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert not set("\r\x1b█") & set(outcome.out)
    told = [line for line in outcome.out.splitlines() if line.startswith("epoch ")]
    assert re.fullmatch(r"epoch 0, loss [\d.]+, val_ndcg@10 [\d.e-]+", told[0])
    assert re.fullmatch(r"epoch 2, loss [\d.]+, val_ndcg@10 [\d.e-]+", told[-1])
    assert 2 <= len(told) <= 3
    predicted = launch("predict_bert4rec.py", *table.overrides, "output_dir=run", *TINY, cwd=tmp_path)
    assert (predicted.code, predicted.err) == (0, "")
    assert not set("\r\x1b█") & set(predicted.out)


def test_long_epochs_tell_how_far_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    bar = Progress("val_mrr")
    bar._trainer = mock.Mock(num_training_batches=5000)
    bar._train_progress_bar = mock.Mock(disable=True)
    monkeypatch.setattr(bar, "get_metrics", lambda *_: {"train_loss": 6.5, "val_mrr": 0.25})
    for batch in range(13):
        bar.on_train_batch_end(trainer_at(batch), mock.Mock(), None, None, batch)
        now += 10.0
    assert capsys.readouterr().out.splitlines() == [
        "epoch 3, step 7 of 5,000, loss 6.5, val_mrr 0.25",
        "epoch 3, step 13 of 5,000, loss 6.5, val_mrr 0.25",
    ]
