"""Several processes, run for real, give what one gives: the same figures, the same table, one output folder."""

import hashlib
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from src.prediction.predict import predict
from src.training.train import train
from tests.scripts.conftest import (
    TINY,
    Run,
    Sessions,
    Table,
    call,
    checkpoint,
    files_below,
    launch,
    make_rows,
    train_here,
    write_table,
)
from tests.scripts.test_resume import points, training_state

PLAIN = ("model.dropout_rate=0", "model.mask_last_share=1", "training.lr=0.02", "training.num_epochs=2")
PROTOCOLS = "evaluation.protocols=[full,uniform-100,popularity-100]"
TWO = ("training.devices=2", "training.strategy=ddp")
SIX_EPOCHS = ("training.lr=0.02", "training.num_epochs=6", "data.batch_size=6")


def torchrun(port: int) -> list[dict[str, str]]:
    """The variables that torchrun gives two processes."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def slurm(port: int) -> list[dict[str, str]]:
    """The variables that srun gives two tasks on one node."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
    }
    return [shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]


@pytest.fixture
def port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def figures(folder: Path) -> dict[str, Any]:
    """All that evaluation found, intervals and slices too."""
    content = json.loads((folder / "metrics.json").read_text())
    return {key: content[key] for key in ("figures", "sampled_figures", "details")}


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    a, b = checkpoint(one)["state_dict"], checkpoint(other)["state_dict"]
    assert a.keys() == b.keys()
    for name in a:
        if name.endswith("key_value.bias"):  # no score depends on the keys' half, whose gradient is rounding alone
            a[name], b[name] = a[name].chunk(2)[1], b[name].chunk(2)[1]
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "objective",
    [
        ("training.loss=softmax",),
        ("training.loss=gbce", "training.gradient_clip=0.05"),
        ("training.loss=sampled_softmax", "model.share_embeddings=false", "model.output_bias=true"),
    ],
)
def test_two_processes_train_as_one_with_the_same_global_batch(
    objective: tuple[str, ...], sessions: Sessions, table: Table, tmp_path: Path, port: int
) -> None:
    """23 users in batches of 4 and 2 times 2, so that the last one is of 3, of which one process has 1 and one 2.

    On a backend that, like NCCL, cannot reduce sparse tensors.
    """
    settings = (*PLAIN, *objective, "training.num_negatives=6")
    one = train_here(table, tmp_path / "one", *settings, "data.batch_size=4")
    overrides = (*table.overrides, f"output_dir={tmp_path / 'two'}", *TINY, *TWO, *settings, "data.batch_size=2")
    answer = sessions("train", *overrides, environments=torchrun(port), refuses_sparse=True)
    assert answer["codes"] == [0, 0], answer["errors"]
    two = Run(tmp_path / "two", "")
    assert_close(one.last, two.last, 2e-5)
    for (step, value), (same_step, same) in zip(
        points(one.folder)["train_loss"], points(two.folder)["train_loss"], strict=True
    ):
        assert step == same_step
        assert value == pytest.approx(same, abs=1e-5)
    assert {path.name for path in two.folder.iterdir()} == {".lock", "checkpoints", "logs", "metrics.json"}
    assert {path.name for path in (two.folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    for folder in (one.folder, two.folder):  # of training, of the test after it, and of the closing figures
        assert len(list((folder / "logs").glob("events*"))) == 3


@pytest.mark.slow
def test_two_processes_begin_with_the_weights_that_the_first_one_reads(
    sessions: Sessions, table: Table, tmp_path: Path, port: int
) -> None:
    """Of a checkpoint that the first process may move away before the second one has started."""
    later = write_table(tmp_path / "later.csv", [*table.rows, *[("007", "new one", 9999), ("7", "new one", 9999)]])
    earlier = train_here(table, tmp_path / "two", "training.num_epochs=1")
    words = (f"training.init_from={earlier.last}", "training.num_epochs=1", "data.holdout=0", "training.lr=1e-9")
    one = train_here(later, tmp_path / "one", *words)
    settings = (*later.overrides, f"output_dir={earlier.folder}", *TINY, *TWO, *words)
    answer = sessions("train", *settings, environments=torchrun(port))
    assert answer["codes"] == [0, 0], answer["errors"]
    assert_close(one.last, earlier.last, 1e-6)


@pytest.mark.parametrize("users", [1, 23])
def test_figures_are_those_of_one_process_whatever_the_count(
    users: int, sessions: Sessions, trained: Run, table: Table, tmp_path: Path, port: int
) -> None:
    """Users are evaluated in batches of 2: with one batch, a process has none."""
    kept = list(table.histories)[:users] if users < 23 else list(table.histories)
    rows = [row for row in table.rows if row[0] in kept or (row[2] >= 0 and len(table.histories[row[0]]) < 3)]
    # the others stay in the table, too short to be evaluated, so that the items are the same
    short = [
        (f"{user} {n}", item, 1)
        for user in table.histories
        if user not in kept
        for n, item in enumerate(table.histories[user])
    ]
    other = write_table(tmp_path / "ratings.csv", [*rows, *short]) if users < 23 else table
    settings = (*PLAIN, "data.min_interactions=1", "evaluation.batch_size=2", "data.batch_size=12", PROTOCOLS)
    one = train_here(other, tmp_path / "one", *settings)
    state = training_state(one.last)
    overrides = (*other.overrides, f"output_dir={tmp_path / 'one'}", *TINY, *TWO, *settings, "data.batch_size=6")
    before = figures(one.folder)
    (one.folder / "metrics.json").unlink()
    answer = sessions("train", *overrides, "training.resume=true", environments=torchrun(port))
    assert answer["codes"] == [0, 0], answer["errors"]
    assert figures(one.folder) == before  # exactly
    assert training_state(one.last)["global_step"] == state["global_step"]


@pytest.mark.parametrize(("launcher", "batch_size"), [(torchrun, 3), (slurm, 100)])
def test_prediction_by_two_processes_is_the_same_file(
    launcher: Any, batch_size: int, sessions: Sessions, trained: Run, table: Table, tmp_path: Path, port: int
) -> None:
    settings = (*table.overrides, f"output_dir={trained.folder}", *TINY, f"inference.batch_size={batch_size}")
    settings = (*settings, "inference.with_scores=true")
    assert call(predict, *settings, f"inference.output_path={tmp_path}/one.csv").code == 0
    (tmp_path / "two.csv.part1").write_text("of a run that was killed")
    overrides = (*settings, *TWO, f"inference.output_path={tmp_path}/two.csv")
    answer = sessions("predict", *overrides, environments=launcher(port))
    assert answer["codes"] == [0, 0], answer["errors"]
    assert {path.name for path in tmp_path.iterdir()} == {"one.csv", "two.csv"}
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_the_first_of_two_processes_evaluates(
    sessions: Sessions, trained: Run, table: Table, tmp_path: Path, port: int
) -> None:
    settings = (*table.overrides, f"output_dir={trained.folder}", *TINY, "inference.evaluate=true")
    settings = (*settings, f"inference.checkpoint_path={trained.best}")
    before = files_below(trained.folder)
    answer = sessions(
        "predict", *settings, *TWO, f"inference.output_path={tmp_path}/e.json", environments=torchrun(port)
    )
    assert answer["codes"] == [0, 0], answer["errors"]
    content = json.loads((tmp_path / "e.json").read_text())
    for name, row in figures(trained.folder)["figures"]["test"].items():
        assert content["figures"]["test"][name] == pytest.approx(row, abs=1e-6)
    assert files_below(trained.folder) == before


def test_slurm_trains(sessions: Sessions, table: Table, tmp_path: Path, port: int) -> None:
    overrides = (*table.overrides, f"output_dir={tmp_path}", *TINY, *TWO, *PLAIN)
    answer = sessions("train", *overrides, environments=slurm(port))
    assert answer["codes"] == [0, 0], answer["errors"]
    assert set(figures(tmp_path)["figures"]) == {"val", "test"}


def test_two_processes_stop_and_go_on_as_if_they_had_not(
    sessions: Sessions, table: Table, tmp_path: Path, port: int
) -> None:
    settings = (*TINY, *TWO, "training.num_epochs=10", "data.batch_size=3", "training.checkpoint_every_n_steps=1")
    whole = (*table.overrides, *settings, f"output_dir={tmp_path / 'whole'}")
    timed = sessions("train", *whole, environments=torchrun(port))
    assert timed["codes"] == [0, 0], timed["errors"]
    parts = (*table.overrides, *settings, f"output_dir={tmp_path / 'parts'}", "training.resume=auto")
    answer = sessions("train", *parts, environments=torchrun(port), term_after=0.6 * timed["seconds"])
    assert answer["codes"] == [143, 143], answer["errors"]
    lines = [line for error in answer["errors"] for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1  # one of them says it
    assert "stopped by SIGTERM" in lines[0]
    assert not any("recommended" in error for error in answer["errors"])
    answer = sessions("train", *parts, environments=torchrun(port))
    assert answer["codes"] == [0, 0], answer["errors"]
    one, other = (training_state(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, other["state_dict"][name])
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")


@pytest.mark.slow
def test_lightning_starts_the_second_process_itself(table: Table, tmp_path: Path) -> None:
    overrides = (*table.overrides, *TINY, *TWO, *PLAIN, "data.batch_size=2", "output_dir=run")
    outcome = launch("train_bert4rec.py", *overrides, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("interactions of 25 users") == 1
    assert outcome.out.count("trained 2 epochs") == 1
    assert set(files_below(tmp_path)) >= {"run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt", "run/metrics.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    one = train_here(table, tmp_path / "one", *PLAIN, "data.batch_size=4")
    assert_close(one.last, tmp_path / "run" / "checkpoints" / "last.ckpt", 2e-5)


@pytest.fixture(scope="module")
def full(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_here(table, tmp_path_factory.mktemp("full"), *SIX_EPOCHS)


@pytest.mark.parametrize(
    ("precision", "loss_within", "figures_within"),
    [("64-true", 1e-3, 1e-9), ("bf16-mixed", 0.05, 0.1), ("bf16-true", 0.1, 0.2)],
)
def test_lower_precision_has_no_nan_and_figures_nearby(
    precision: str, loss_within: float, figures_within: float, full: Run, table: Table, tmp_path: Path
) -> None:
    """Figures of 23 users: one who is found or missed makes 0.043 of HIT@10."""
    run = train_here(table, tmp_path, *SIX_EPOCHS, f"training.precision={precision}")
    assert all(torch.isfinite(weight).all() for weight in checkpoint(run.last)["state_dict"].values())
    for (_, loss), (_, other) in zip(points(full.folder)["train_loss"], points(run.folder)["train_loss"], strict=True):
        assert loss == pytest.approx(other, rel=loss_within)
    for stage, rows in figures(full.folder)["figures"].items():
        other_rows = figures(run.folder)["figures"][stage]
        assert rows.keys() == other_rows.keys()
        for name, row in rows.items():
            exactly = not name.startswith("BERT4Rec")  # a baseline has no precision
            assert other_rows[name] == pytest.approx(row, abs=0.0 if exactly else figures_within)


def test_make_rows_has_what_the_counts_above_rely_on(table: Table) -> None:
    assert len(table.histories) == 25
    assert len(make_rows()) == len(table.rows)


def prepare_sample(folder: str, together: Any) -> None:
    """Make the sample as a process that a launcher started does it; putting it in place takes a while."""
    from src.data import BERT4RecDataModule, sample

    replace = os.replace

    def slowly(source: Any, target: Any) -> None:
        time.sleep(0.5)
        replace(source, target)

    sample.os.replace = slowly  # type: ignore[attr-defined]
    data = BERT4RecDataModule(folder, "sample.csv", generate_sample=True)
    together.wait()
    data.prepare_data()


def test_two_processes_that_start_together_make_one_sample(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)
    processes = [context.Process(target=prepare_sample, args=(str(tmp_path), together)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    best = json.loads((tmp_path / "sample.csv.best.json").read_text())
    assert hashlib.sha256((tmp_path / "sample.csv").read_bytes()).hexdigest() == best["sha256"]
    assert not list(tmp_path.glob("*.part"))


def test_one_line_names_the_device_and_metrics_have_it(trained: Run, table: Table, tmp_path: Path) -> None:
    lines = [line for line in trained.out.splitlines() if line.startswith("device ")]
    assert len(lines) == 1
    content = json.loads((trained.folder / "metrics.json").read_text())
    assert lines[0] == f"device      {content['device']}, {content['precision']}"
    assert content["device"].startswith("CPU, ")
    assert content["precision"] == "32-true"
    settings = (*table.overrides, f"output_dir={trained.folder}", *TINY, f"inference.output_path={tmp_path}/p.csv")
    assert lines[0] in call(predict, *settings).out
    evaluated = (*settings, "inference.evaluate=true", f"inference.output_path={tmp_path}/e.json")
    assert lines[0] in call(predict, *evaluated).out
    assert json.loads((tmp_path / "e.json").read_text())["device"] == content["device"]


def test_a_sampled_loss_on_several_devices_names_the_strategy_it_needs(table: Table, tmp_path: Path) -> None:
    settings = (*TINY, f"output_dir={tmp_path}", "training.loss=gbce", "training.devices=2")
    with mock.patch("pytorch_lightning.Trainer.strategy", mock.Mock(root_device=torch.device("cpu"), world_size=2)):
        outcome = call(train, *table.overrides, *settings, "training.strategy=ddp")
    assert outcome.code == 1
    assert "training.loss=gbce on several devices needs training.strategy=ddp" in outcome.err
