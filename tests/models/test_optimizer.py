"""Row-wise Adam, and every optimiser with gradients that a scaler has scaled."""

import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.batch import Negatives
from src.models import BERT4Rec
from src.models.optimizer import RowwiseAdam, can_fuse
from tests.models.test_bert4rec import BATCH, make_model, quiet_trainer

NEGATIVES = Negatives(torch.tensor([5, 2, 11, 5]), torch.zeros(4))
PAIRS = [("softmax", "adam"), ("softmax", "adamw"), ("sampled_softmax", "adam"), ("gbce", "adam")]


class Overflow(pl.Callback):
    """Makes the gradient of the table infinite in some steps, and notes what every step starts from."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = steps
        self.tables: list[Tensor] = []
        self.norms: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, step: int) -> None:
        self.step = step
        self.tables.append(pl_module.network.output.weight.detach().clone())

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gradient = pl_module.network.output.weight.grad
        if self.step in self.steps:
            (gradient._values() if gradient.is_sparse else gradient).view(-1)[0] = math.inf

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad.to_dense().flatten() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.cat(gradients).norm().item())


def train(
    model: BERT4Rec, steps: int, scale: float | None, overflows: tuple[int, ...] = (), clip: float | None = None
) -> tuple[torch.optim.Optimizer, Overflow]:
    """Some steps on the same batch, in float32, with gradients scaled by a `GradScaler` unless `scale` is None."""
    plugins = []
    if scale is not None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
        plugins[0].autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)  # the scaler alone
    watch = Overflow(overflows)
    trainer = quiet_trainer(max_epochs=1, callbacks=[watch], plugins=plugins, gradient_clip_val=clip)
    negatives = None if model.loss_name == "softmax" else NEGATIVES
    batches: Any = DataLoader([BATCH._replace(negatives=negatives)] * steps, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(model, batches)
    return trainer.optimizers[0], watch


def same(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    """All parameters and moments, which powers of two as scale do not round."""
    pairs = zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True)
    for number, (parameter, twin) in enumerate(pairs):
        torch.testing.assert_close(parameter, twin, rtol=1e-6, atol=1e-7, msg=f"parameter {number}")
        for name, value in one.state[parameter].items():
            torch.testing.assert_close(value, other.state[twin][name], rtol=1e-5, atol=1e-9, msg=f"{name} of {number}")


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize(("loss", "optimizer"), PAIRS)
def test_scaled_gradients_train_as_unscaled_ones(loss: str, optimizer: str, clip: float | None) -> None:
    models = [make_model(dropout_rate=0.0, loss=loss, optimizer=optimizer, lr=0.01).float() for _ in range(2)]
    (plain, seen), (scaled, seen_scaled) = (
        train(model, 4, scale, clip=clip) for model, scale in zip(models, (None, 2.0**16), strict=True)
    )
    same(plain, scaled)
    if loss != "softmax" or clip is not None:  # where a hook before the step sees what the step will take
        assert seen_scaled.norms == pytest.approx(seen.norms, rel=1e-4)
    if clip is not None:
        assert min(seen.norms) > clip


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize(("loss", "optimizer"), PAIRS)
def test_a_step_whose_gradients_overflow_is_skipped_for_all_parameters_and_then_training_goes_on(
    loss: str, optimizer: str, clip: float | None
) -> None:
    options = {"dropout_rate": 0.0, "loss": loss, "optimizer": optimizer, "lr": 0.01}
    model, twin = (make_model(**options).float() for _ in range(2))
    scaled, seen = train(model, 4, 2.0**16, overflows=(1, 2), clip=clip)
    plain, _ = train(twin, 2, None, clip=clip)
    assert torch.equal(seen.tables[1], seen.tables[3])
    assert not torch.equal(seen.tables[0], seen.tables[1])
    same(plain, scaled)
    steps = {float(state["step"]) for state in scaled.state.values()}
    assert steps == {2.0}


def test_a_real_float16_run_of_a_sampled_loss_stays_near_the_full_one() -> None:
    models = [make_model(dropout_rate=0.0, loss="gbce", lr=0.002).float() for _ in range(2)]
    batches: Any = DataLoader([BATCH._replace(negatives=NEGATIVES)] * 6, batch_size=None)  # type: ignore[arg-type]
    for model, precision in zip(models, ("32-true", "16-mixed"), strict=True):
        plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))] if precision == "16-mixed" else []
        quiet_trainer(max_epochs=1, plugins=plugins).fit(model, batches)
    one, other = (model.network.output.weight for model in models)
    torch.testing.assert_close(one, other, rtol=0, atol=6 * 2 * 0.002)  # Adam moves no entry further a step
    assert (one - other).abs().mean() < 0.002


def lookup(table: Tensor, sparse: bool) -> Tensor:
    rows = torch.tensor([1, 4, 4, 2])
    return (nn.functional.embedding(rows, table, sparse=sparse) * torch.arange(1.0, 5.0)[:, None]).square().sum()


@pytest.mark.parametrize("fused", [True, False])
def test_a_dense_gradient_of_a_table_is_taken_row_by_row_like_a_sparse_one(fused: bool) -> None:
    """For devices without sparse tensors: rows that a step does not touch stay as they are, moments included."""
    torch.manual_seed(0)
    start, kept = torch.randn(6, 3), torch.randn(2)
    tables, others = ([nn.Parameter(x.clone()) for _ in range(2)] for x in (start, kept))
    for sparse, table, other in zip((True, False), tables, others, strict=True):
        optimizer = RowwiseAdam([table, other], tables=[table], lr=0.1, fused=fused)
        for step in range(3):
            optimizer.zero_grad()
            (lookup(table, sparse) if step != 1 else table[3].sum()).backward()
            if step == 1 and sparse:
                assert table.grad is not None
                table.grad = table.grad.to_sparse(1)
            other.sum().backward()
            optimizer.step()
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(others[0], others[1])
    assert torch.equal(tables[0][[0, 5]], start[[0, 5]])
    assert not torch.isclose(tables[0][[1, 2, 3, 4]], start[[1, 2, 3, 4]]).any()


def test_fused_kernels_are_for_devices_where_they_were_tried() -> None:
    assert can_fuse([torch.zeros(1)])
    assert not can_fuse([torch.zeros(1), torch.zeros(1, device="meta")])


def test_a_sampled_loss_takes_no_other_optimizer() -> None:
    with pytest.raises(ValueError, match="loss=gbce needs optimizer=adam, not adamw"):
        make_model(loss="gbce", optimizer="adamw").configure_optimizers()


@pytest.mark.parametrize("wants", ["compiles", "is_recorded"])
def test_what_is_compiled_or_recorded_has_no_sparse_gradients(wants: str) -> None:
    model = make_model(loss="gbce")
    assert model.network.item_embedding.sparse
    setattr(model, wants, True)
    model.configure_optimizers()
    assert (model.has_sparse_gradients, model.network.item_embedding.sparse) == (False, False)
