"""A run that was stopped, however often, ends with the very bits of one that never was."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.models import BERT4Rec
from src.runs.progress import Progress
from src.training.callbacks import LastCheckpoint
from src.training.train import train
from tests.scripts.conftest import (
    ROOT,
    TINY,
    Outcome,
    Run,
    Table,
    call,
    checkpoint,
    files_below,
    same_weights,
    train_here,
    write_table,
)

FIVE = ("training.num_epochs=5", "training.lr=0.02", "data.batch_size=6")  # 4 steps an epoch, 20 in all
VARIANTS = {
    "dropout, validation within epochs": (
        "model.dropout_rate=0.3",
        "training.val_check_interval=0.5",
        "training.checkpoint_every_n_steps=1",
    ),
    "every second epoch, schedule": (
        "training.val_check_interval=2",
        "training.scheduler=linear",
        "training.warmup_steps=3",
    ),
    "sampled loss, windows": ("training.loss=gbce", "training.num_negatives=5", "data.window_stride=2"),
    "clipped, decayed, nothing held out": (
        "data.holdout=0",
        "training.optimizer=adamw",
        "training.weight_decay=0.1",
        "training.decay_norm_and_bias=false",
        "training.gradient_clip=0.5",
    ),
    "max_steps": ("training.max_steps=18",),
    "data on the device": ("data.on_device=true", "training.loss=gbce", "model.dropout_rate=0.3"),
    "early stopping": ("training.early_stopping=true", "training.early_stopping_patience=1", "training.lr=1e-12"),
}


def equal(one: Any, other: Any) -> bool:
    """Whether nested containers are equal, tensors and numbers to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def training_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds of the training; its folder and the time it took are not part of that."""
    content = checkpoint(path)
    callbacks = {}
    for name, state in content["callbacks"].items():
        callbacks[name] = {
            key: sorted(Path(path).name for path in value) if key == "best_k_models" else value
            for key, value in state.items()
            if "path" not in key and key not in ("dirpath", "current_score")  # Lightning does not take up the latter
        }
    parts = (
        "epoch",
        "global_step",
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "epoch_loss",
        "BERT4RecDataModule",
    )
    return {part: content[part] for part in parts} | {"callbacks": callbacks}


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve in TensorBoard, which reads the files of sessions in order of the seconds in their names."""
    ordered = folder / "ordered logs"
    ordered.mkdir()
    files = sorted((folder / "logs").glob("events*"), key=lambda path: path.stat().st_mtime_ns)
    for number, path in enumerate(files):  # of sessions in the same second, which only tests have
        shutil.copy(path, ordered / f"events.out.tfevents.{number:03d}")
    events = EventAccumulator(str(ordered), {"scalars": 0})
    events.Reload()
    shutil.rmtree(ordered)
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    # How fast a session was is nobody's promise, but it says so once an epoch at the most. Final figures are drawn by
    # each session that comes to its end.
    epochs = [step for step, _ in found.pop("sequences_per_second", [])]
    assert epochs == sorted(set(epochs) & {step for step, _ in found["train_loss"]})
    return {name: curve for name, curve in found.items() if not name.startswith("final/")}


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return {key: content[key] for key in ("epochs", "figures", "data")}


def assert_same(one: Run, other: Run, but: str = "") -> None:
    """The same run to the bit, `but` for a curve."""
    for path in (one.last, one.best):
        assert path.exists() == (other.folder / "checkpoints" / path.name).exists()
        if path.exists():
            there, here = training_state(path), training_state(other.folder / "checkpoints" / path.name)
            assert {part for part in there if not equal(there[part], here[part])} == set()
    assert results(one.folder) == results(other.folder)
    here, there = ({name: curve for name, curve in points(run.folder).items() if name != but} for run in (one, other))
    assert here == there


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int]]]:
    """(hook, steps, signal) to be sent in turn: when that hook is called with so many steps done."""
    plan: list[tuple[str, int, int]] = []
    for hook in ("on_train_batch_start", "on_train_batch_end", "on_validation_batch_start", "on_train_epoch_end"):
        original = getattr(LastCheckpoint, hook)

        def signalling(self: Any, trainer: Any, *args: Any, _hook: str = hook, _original: Any = original) -> None:
            if plan and plan[0][:2] == (_hook, trainer.global_step) and trainer.state.fn == "fit":
                os.kill(os.getpid(), plan.pop(0)[2])
            _original(self, trainer, *args)

        monkeypatch.setattr(LastCheckpoint, hook, signalling)
    yield plan
    assert plan == []


def stopped(table: Table, folder: Path, *settings: str) -> Outcome:
    """A session that a signal ends, well."""
    outcome = call(train, *table.overrides, f"output_dir={folder}", *TINY, *settings)
    assert outcome.code in (130, 143)
    assert outcome.err.count("\n") == 1
    assert "; resume with python train_bert4rec.py " in outcome.err
    assert outcome.err.endswith("training.resume=true\n")
    return outcome


@pytest.fixture(scope="module")
def five(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of five epochs that nothing stopped; not to be written to."""
    return train_here(table, tmp_path_factory.mktemp("five"), *FIVE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_again_and_again(variant: str, table: Table, tmp_path: Path, send: list[tuple[str, int, int]]) -> None:
    settings = (*FIVE, *VARIANTS[variant])
    whole = train_here(table, tmp_path / "whole", *settings)
    stops: Sequence[tuple[str, int, int]] = (
        ("on_train_batch_start", 0, signal.SIGTERM),
        ("on_train_batch_end", 3, signal.SIGINT),
        ("on_train_epoch_end" if "holdout" in str(settings) else "on_validation_batch_start", 8, signal.SIGTERM),
        ("on_train_batch_end", 11, signal.SIGTERM),
        ("on_train_epoch_end", 12, signal.SIGTERM),
        ("on_train_batch_end", 14, signal.SIGINT),
    )
    if variant == "early stopping":
        stops = stops[:3]
    elif variant != "dropout, validation within epochs":  # which has all stops; the others have half of them in turn
        stops = stops[1 + list(VARIANTS).index(variant) % 2 :: 2]
    for number, stop in enumerate(stops):
        send.append(stop)
        outcome = stopped(table, tmp_path / "parts", *settings, *(["training.resume=true"] if number else []))
        assert signal.Signals(stop[2]).name in outcome.err
    parts = train_here(table, tmp_path / "parts", *settings, "training.resume=true")
    assert_same(whole, parts)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2)])
def test_a_run_resumes_in_mid_epoch_with_lists_of_another_length(
    before: int, after: int, five: Run, table: Table, tmp_path: Path, send: list[tuple[str, int, int]]
) -> None:
    lengths = [f"training.steps_per_execution={length}" for length in (before, after)]
    send.append(("on_train_batch_end", 6, signal.SIGTERM))
    stopped(table, tmp_path / "parts", *FIVE, lengths[0])
    assert_same(five, train_here(table, tmp_path / "parts", *FIVE, lengths[1], "training.resume=true"))


def test_checkpoints_every_n_steps_are_as_good(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stood on the disk after each step of two epochs of four, of which every second step writes one."""
    settings = ("training.num_epochs=2", *FIVE[1:], "training.checkpoint_every_n_steps=2")
    original = LastCheckpoint.on_train_batch_end

    def copying(self: Any, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if self.path.exists():
            shutil.copy(self.path, tmp_path / f"{trainer.global_step}.ckpt")

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_end", copying)
        whole = train_here(table, tmp_path / "whole", *settings)
    kept = {int(path.stem): checkpoint(path)["global_step"] for path in tmp_path.glob("*.ckpt")}
    assert kept == {2: 2, 3: 2, 4: 2, 5: 4, 6: 6, 7: 6, 8: 6}  # the fourth is written at the end of its epoch
    for steps in (2, 5, 6):
        if steps == 6:  # as on a terminal, where there is a bar
            monkeypatch.setattr(Progress, "is_plain", property(lambda *_: False, lambda *_: None), raising=False)
        parts = train_here(table, tmp_path / f"{steps}", *settings, f"training.resume={tmp_path}/{steps}.ckpt")
        assert equal(training_state(whole.last)["state_dict"], training_state(parts.last)["state_dict"])
    assert "3/4" in parts.out  # the progress bar knows how long the epoch is


def test_a_second_interrupt_stops_at_once(table: Table, tmp_path: Path, send: list[tuple[str, int, int]]) -> None:
    send += [("on_train_batch_start", 5, signal.SIGINT), ("on_train_batch_end", 6, signal.SIGINT)]
    with pytest.MonkeyPatch.context() as patch:  # a step that takes long
        patch.setattr(LastCheckpoint, "_must_stop", lambda *_: False)
        patch.setattr(LastCheckpoint, "_stop_if_asked", lambda *_: None)
        outcome = stopped(table, tmp_path, *FIVE)
    assert "at once by SIGINT in epoch 1" in outcome.err
    assert checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_a_stop_before_training_keeps_the_handlers_of_the_system(table: Table, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train_here(table, tmp_path, "training.num_epochs=1")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_finished_run_resumed_is_evaluated_again_and_keeps_its_predictions(
    five: Run, table: Table, tmp_path: Path
) -> None:
    folder = shutil.copytree(five.folder, tmp_path / "run")
    (folder / "metrics.json").write_text(json.dumps(json.loads((folder / "metrics.json").read_text()) | {"figures": 0}))
    (folder / "predictions.csv").write_text("of this very model\n")
    run = train_here(table, folder, *FIVE, "training.resume=true")
    assert run.last.read_bytes() == five.last.read_bytes()
    assert results(folder) == results(five.folder)
    assert not (folder / "previous").exists()
    assert (folder / "predictions.csv").exists()


def test_a_run_that_stopped_early_does_not_go_on_when_resumed(table: Table, tmp_path: Path) -> None:
    settings = (*FIVE, *VARIANTS["early stopping"])
    run = train_here(table, tmp_path, *settings)
    before, figures = run.last.read_bytes(), results(tmp_path)
    assert figures["epochs"] == 2
    train_here(table, tmp_path, *settings, "training.resume=true")
    assert run.last.read_bytes() == before
    assert results(tmp_path) == figures
    train_here(table, tmp_path, *settings, "training.resume=true", "training.early_stopping_patience=2")
    assert results(tmp_path)["epochs"] == 3


def test_the_best_checkpoint_goes_on_as_well(trained: Run, table: Table, tmp_path: Path) -> None:
    settings = ("training.num_epochs=6", "training.lr=0.02", "data.batch_size=6", f"seed={seed_of(trained)}")
    run = train_here(table, tmp_path, *settings, f"training.resume={trained.best}")
    assert same_weights(run.last, trained.last)
    assert (
        points(tmp_path)["train_loss"] == points(trained.folder)["train_loss"][-len(points(tmp_path)["train_loss"]) :]
    )


def test_auto_resumes_where_there_is_something_adds_up_seconds_and_moves_predictions_of_the_model_before(
    table: Table, tmp_path: Path
) -> None:
    first = train_here(table, tmp_path, "training.num_epochs=1", "training.resume=auto")
    assert "resuming" not in first.out
    (tmp_path / "predictions.csv").write_text("old\n")
    content = checkpoint(first.last)
    content["run"]["seconds"] = 1000.0
    torch.save(content, first.last)
    again = train_here(table, tmp_path, "training.num_epochs=2", "training.resume=auto")
    assert "epoch 1, step 1" in again.out
    assert checkpoint(again.last)["epoch"] == 1
    assert 1000.0 <= json.loads((tmp_path / "metrics.json").read_text())["seconds"] < 1100.0
    assert not (tmp_path / "predictions.csv").exists()
    (place,) = (tmp_path / "previous").iterdir()
    assert sorted(path.name for path in place.iterdir()) == ["metrics.json", "predictions.csv"]
    assert f"the earlier results went to {place}" in again.out


def test_a_run_that_was_moved_still_knows_its_best_epoch(trained: Run, table: Table, tmp_path: Path) -> None:
    """By a much too high learning rate, so that no later epoch is better."""
    settings = ("data.batch_size=6", "training.num_epochs=7", "training.lr=5", f"seed={seed_of(trained)}")
    shutil.copytree(trained.folder, tmp_path / "moved")
    before = checkpoint(trained.best)
    run = train_here(table, tmp_path / "moved", *settings, "training.resume=true")
    assert checkpoint(run.best)["epoch"] == before["epoch"]
    assert run.best.read_bytes() == trained.best.read_bytes()


def seed_of(run: Run) -> int:
    return int(checkpoint(run.last)["run"]["settings"]["seed"])


def last_group(path: Path) -> dict[str, Any]:
    group: dict[str, Any] = checkpoint(path)["optimizer_states"][0]["param_groups"][0]
    return group


def test_what_may_change_takes_effect_and_is_said(table: Table, tmp_path: Path) -> None:
    train_here(table, tmp_path, *FIVE[1:], "training.num_epochs=1")
    settings = ("training.num_epochs=2", "training.lr=0.005", "training.weight_decay=0.25", "data.batch_size=23")
    run = train_here(table, tmp_path, *settings, "training.resume=true")
    assert (
        "changed     data.batch_size=23 (was 6), training.num_epochs=2 (was 1), training.lr=0.005 (was 0.02),"
        " training.weight_decay=0.25 (was 0.0)\n"
    ) in run.out
    assert "resuming" in run.out
    assert "restarts" not in run.out
    assert checkpoint(run.last)["global_step"] == 4 + 1
    assert (last_group(run.last)["lr"], last_group(run.last)["weight_decay"]) == (0.005, 0.25)


@pytest.mark.parametrize("schedules", [("none", "linear"), ("linear", "none"), ("linear", "linear")])
def test_another_schedule_takes_effect(schedules: tuple[str, str], table: Table, tmp_path: Path) -> None:
    train_here(table, tmp_path, *FIVE[1:], "training.num_epochs=2", f"training.scheduler={schedules[0]}")
    settings = (*FIVE, "training.lr=0.04", f"training.scheduler={schedules[1]}")
    run = train_here(table, tmp_path, *settings, "training.resume=true")
    assert last_group(run.last)["lr"] == pytest.approx(0.04 if schedules[1] == "none" else 0.0)
    if schedules[1] == "linear":  # 20 steps, of which 8 were behind it
        rates = points(tmp_path)["lr-Adam"]
        assert dict(rates)[19] == pytest.approx(0.04 * (1 - 19 / 20))


def test_another_batch_size_in_the_middle_of_an_epoch_begins_it_anew(
    table: Table, tmp_path: Path, send: list[tuple[str, int, int]]
) -> None:
    send.append(("on_train_batch_end", 6, signal.SIGTERM))
    stopped(table, tmp_path, *FIVE)
    run = train_here(table, tmp_path, *FIVE, "data.batch_size=12", "training.resume=true")
    assert "epoch 1 restarts, its first 2 steps are repeated" in run.out
    assert checkpoint(run.last)["global_step"] == 6 + 4 * 2
    assert [step for step, _ in points(tmp_path)["train_loss"]] == [3, 7, 9, 11, 13]
    assert all(0.0 < loss < 10.0 for _, loss in points(tmp_path)["train_loss"])


@pytest.mark.parametrize(
    "override",
    [
        "model.num_heads=1",
        "model.max_len=5",
        "model.embedding_norm_first=true",
        "model.output_bias=true",
        "model.share_embeddings=false",
        "data.holdout=1",
        "data.min_interactions=2",
        "training.optimizer=adamw",
        "training.decay_norm_and_bias=false",
    ],
)
def test_what_cannot_change_is_named(override: str, trained: Run, table: Table, tmp_path: Path) -> None:
    before = files_below(trained.folder)
    settings = ("data.batch_size=6", "training.num_epochs=8", override, f"training.resume={trained.last}")
    outcome = call(train, *table.overrides, f"output_dir={tmp_path}", *TINY, *settings)
    key, _, value = override.partition("=")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert f"{trained.last} was trained with {key}=" in outcome.err
    assert f"here it is {value.capitalize() if value in ('true', 'false') else value}" in outcome.err
    assert files_below(tmp_path) == {}
    assert files_below(trained.folder) == before


def test_fewer_epochs_than_there_are_is_one_line(trained: Run, table: Table, tmp_path: Path) -> None:
    for override in ("training.num_epochs=3", "training.max_steps=5"):
        overrides = (*table.overrides, f"output_dir={tmp_path}", *TINY, override, f"training.resume={trained.last}")
        outcome = call(train, *overrides)
        assert outcome.code == 1
        assert outcome.err.count("\n") == 1
        assert f"more than {override}: give a larger number" in outcome.err


def test_a_checkpoint_with_weights_alone_is_refused(trained: Run, table: Table, tmp_path: Path) -> None:
    content = checkpoint(trained.last)
    for missing in ("loops", "optimizer_states", "callbacks"):
        torch.save({key: value for key, value in content.items() if key != missing}, tmp_path / "weights.ckpt")
        overrides = ("data.batch_size=6", "training.num_epochs=8", f"training.resume={tmp_path}/weights.ckpt")
        outcome = call(train, *table.overrides, f"output_dir={tmp_path / 'run'}", *TINY, *overrides)
        assert outcome.code == 1
        assert outcome.err.count("\n") == 1
        assert "has no state of training to resume from" in outcome.err


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint_before(
    five: Run, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BERT4Rec.loss

    def diverging(model: BERT4Rec, *parts: Any, **options: Any) -> torch.Tensor:
        loss = original(model, *parts, **options)
        return loss * float("nan") if model.global_step == 9 else loss

    with monkeypatch.context() as patch:
        patch.setattr(BERT4Rec, "loss", diverging)
        outcome = call(train, *table.overrides, f"output_dir={tmp_path}", *TINY, *FIVE)
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "training diverged at step 10, epoch 2" in outcome.err
    assert f"{tmp_path}/checkpoints/last.ckpt is the last good checkpoint" in outcome.err
    assert checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 8
    parts = train_here(table, tmp_path, *FIVE, "training.resume=true")
    assert same_weights(parts.last, five.last)


@pytest.mark.parametrize("number", [1, 2])
def test_a_checkpoint_of_each_format_goes_on(number: int, tmp_path: Path) -> None:
    users = {"a": "xyzw", "b": "yzwx", "c": "zwxv"}
    rows = [(user, item, time) for user, items in users.items() for time, item in enumerate(items)]
    small = ("model.hidden_units=2", "model.num_heads=1", "model.max_len=4")
    path = ROOT / "tests" / "checkpoints" / f"format-{number}.ckpt"
    table = write_table(tmp_path / "ratings.csv", rows)
    run = train_here(table, tmp_path / "run", *small, "training.num_epochs=3", f"training.resume={path}")
    assert (checkpoint(run.last)["epoch"], checkpoint(run.last)["global_step"]) == (2, 3)


def resumed_with(table: Table, tmp_path: Path, trained: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Any:
    """A resumed run whose first step raises an error; how it ends."""

    def failing(*args: Any, **options: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(BERT4Rec, "loss", failing)
    settings = (*TINY, "training.num_epochs=8", "data.batch_size=6", f"training.resume={trained.last}")
    return call(train, *table.overrides, f"output_dir={tmp_path}", *settings, f"seed={seed_of(trained)}")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:2, unhandled cuda error"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        ValueError("something about a batch"),
    ],
)
def test_an_error_of_a_step_after_a_resume_is_reported_as_itself(
    error: Exception, table: Table, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(error), match=re.escape(str(error))):
        resumed_with(table, tmp_path, trained, monkeypatch, error)


def test_memory_that_runs_out_after_a_resume_is_reported_as_that(
    table: Table, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
    outcome = resumed_with(table, tmp_path, trained, monkeypatch, error)
    assert outcome.code == 1
    assert "the memory does not suffice (CUDA out of memory" in outcome.err
    assert "training.resume=false" not in outcome.err


def spoil_shape(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)


def spoil_moments(content: dict[str, Any]) -> None:
    del content["optimizer_states"][0]["state"][0]["exp_avg_sq"]


def spoil_groups(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["param_groups"][0]["params"] = [0]


def spoil_callback(content: dict[str, Any]) -> None:
    (key,) = (name for name in content["callbacks"] if name.startswith("ModelCheckpoint"))
    content["callbacks"][key] = {"dirpath": 3}


def spoil_loop(content: dict[str, Any]) -> None:
    progress = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    progress["optimizer"]["step"]["total"]["completed"] = "two"


@pytest.mark.parametrize("spoil", [spoil_shape, spoil_moments, spoil_groups, spoil_callback, spoil_loop])
def test_a_broken_state_of_training_is_reported_as_that(
    spoil: Callable[[dict[str, Any]], None], table: Table, trained: Run, tmp_path: Path
) -> None:
    content = checkpoint(trained.last)
    spoil(content)
    torch.save(content, tmp_path / "spoilt.ckpt")
    settings = (*TINY, "training.num_epochs=8", "data.batch_size=6", f"training.resume={tmp_path}/spoilt.ckpt")
    outcome = call(train, *table.overrides, f"output_dir={tmp_path / 'run'}", *settings, f"seed={seed_of(trained)}")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "state of training" in outcome.err
    assert outcome.err.endswith("start anew with training.resume=false\n")
