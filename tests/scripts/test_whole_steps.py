"""Several steps in one call of Lightning's: the same training to the bit. What CUDA adds to it is in `tests/gpu`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from torch import Tensor

from src.batch import RowBatch
from src.errors import UserError
from src.models import BERT4Rec
from src.training import build, whole_steps
from src.training.train import train
from src.training.whole_steps import WholeSteps
from tests.scripts.conftest import TINY, Table, call, same_weights, train_here
from tests.scripts.test_resume import FIVE, VARIANTS, assert_same

SHORT = ("training.num_epochs=2", *FIVE[1:])  # 4 steps an epoch
ON_DEVICE = ("data.on_device=true", "model.dropout_rate=0.3")


# The others are parts of these.
@pytest.mark.parametrize(
    "variant",
    ["dropout, validation within epochs", "every second epoch, schedule", "data on the device", "early stopping"],
)
def test_lists_of_steps_train_as_steps_one_by_one(variant: str, table: Table, tmp_path: Path) -> None:
    settings = (*FIVE, *VARIANTS[variant])
    one = train_here(table, tmp_path / "one", *settings)
    together = train_here(table, tmp_path / "together", *settings, "training.steps_per_execution=3")
    assert_same(one, together, but="lr-Adam")  # which is drawn once for each list, not every tenth step


def test_no_step_sees_weights_of_an_earlier_one(table: Table, tmp_path: Path) -> None:
    """Autocast keeps weights in 16 bits for as long as it is on."""
    settings = (*SHORT, "training.precision=bf16-mixed")
    one = train_here(table, tmp_path / "one", *settings)
    together = train_here(table, tmp_path / "together", *settings, "training.steps_per_execution=4")
    assert same_weights(one.last, together.last)


class Recorder:
    """What a graph does, on a CPU: steps on memory of its own, always the same; notes the lengths."""

    def __init__(self, spoil: float = 0.0, error: str = "") -> None:
        self.spoil, self.error = spoil, error
        self.recorded: list[int] = []
        self.repeated: list[int] = []

    def __call__(self, step: Callable[[RowBatch], Tensor], batch: RowBatch) -> Callable[[RowBatch], Tensor]:
        if self.error:
            raise RuntimeError(self.error)
        order = batch.order.clone()
        self.recorded.append(batch.length)

        def repeat(batch: RowBatch) -> Tensor:
            order.copy_(batch.order)
            self.repeated.append(batch.length)
            order[0] += int(self.spoil)
            return step(batch._replace(order=order, num_rows=0))

        return repeat


def with_recorder(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    monkeypatch.setattr(build, "_records", lambda config: True)
    monkeypatch.setattr(build, "CudaGraphs", lambda: recorder)


@pytest.mark.parametrize("loss", ["softmax", "gbce"])
def test_recorded_steps_train_as_computed_ones(
    loss: str, table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*FIVE, *ON_DEVICE, f"training.loss={loss}", "training.scheduler=linear", "training.gradient_clip=0.5")
    one = train_here(table, tmp_path / "one", *settings)
    with monkeypatch.context() as patch:
        with_recorder(patch, recorder := Recorder())
        recorded = train_here(table, tmp_path / "recorded", *settings)
    assert same_weights(one.last, recorded.last)
    assert recorder.recorded == sorted(set(recorder.recorded))
    # Twenty steps, of which the first ones of each length are computed; one more is repeated to see that it is right.
    lengths = len(recorder.recorded)
    assert len(recorder.repeated) == 20 - whole_steps.WARM_UP * lengths + lengths


@pytest.mark.parametrize("fault", [{"spoil": 1.0}, {"error": "operation not permitted\nwhen stream is capturing"}])
def test_steps_that_cannot_be_recorded_or_come_out_otherwise_are_computed(
    fault: dict[str, Any], table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*FIVE, *ON_DEVICE)
    one = train_here(table, tmp_path / "one", *settings)
    with_recorder(monkeypatch, Recorder(**fault))
    other = train_here(table, tmp_path / "other", *settings)
    assert same_weights(one.last, other.last)
    assert other.out.count("note: training.cuda_graph does not work here (") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.cuda_graph=true"], "training.cuda_graph=true needs an NVIDIA GPU, which is not used here"),
        (["training.cuda_graph=true", "data.on_device=false"], "training.cuda_graph=true is not possible: data.on_"),
        (["training.steps_per_execution=4", "training.precision=16-mixed"], "use bf16-mixed"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: list[str], message: str, table: Table, tmp_path: Path) -> None:
    ended = call(train, *table.overrides, f"output_dir={tmp_path / 'out'}", *TINY, *settings)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert message in ended.err
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_several_processes_are_refused() -> None:
    with pytest.raises(UserError, match="are for one device, and this run has 2"):
        WholeSteps(4, None, lambda *_: None).setup(mock.Mock(world_size=2), BERT4Rec(5), "fit")


def test_lists_end_where_something_happens() -> None:
    class Loop:
        batch_idx = -1

    class Trainer:
        fit_loop, global_step, max_steps, val_check_batch = Loop(), 0, 21, 10

    steps = WholeSteps(4, None, lambda *_: None, every_n_steps=7)
    steps._trainer = Trainer()  # type: ignore[assignment]
    ends = []
    while Trainer.global_step < 21:
        Trainer.global_step += steps.room()
        Trainer.fit_loop.batch_idx = Trainer.global_step - 1
        ends.append(Trainer.global_step)
    assert ends == [4, 7, 8, 10, 12, 14, 16, 20, 21]
