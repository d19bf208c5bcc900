"""What only a GPU can show. Without one all of it is skipped; on one, run

python -m pytest -m gpu tests/gpu
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.batch import PAD, RowBatch, TrainBatch
from src.data.batching import NegativeSampler, Plan
from src.data.fixed_shapes import FixedShapes, RowSet, shapes
from src.data.sequences import Spans
from src.models import BERT4Rec, losses
from src.prediction.predict import predict
from src.training.train import train
from tests.scripts.conftest import TINY, Table, call, checkpoint, files_below, make_rows, same_weights, write_table

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")]

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
ITEMS, LENGTH = 300, 24
LOSSES = ["softmax", "sampled_softmax", "gbce"]
ON_GPU = ("training.accelerator=gpu", "training.devices=1", "training.compile=false", "training.num_epochs=3")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return write_table(tmp_path_factory.mktemp("data") / "ratings.csv", make_rows())


def rows(count: int = 20) -> tuple[np.ndarray, Spans, RowBatch]:
    """Tokens, spans and one step of all of them."""
    generator = np.random.default_rng(3)
    lengths = generator.integers(2, LENGTH + 1, count)
    stops = lengths.cumsum()
    spans = Spans(stops - lengths, stops)
    tokens = generator.integers(1, ITEMS + 1, stops[-1])
    step = RowSet(lengths, count + 2, shapes(LENGTH))[Plan(np.arange(count), (1,), (2,))]
    return tokens, spans, step


def batch_on(device: torch.device, loss: str) -> TrainBatch:
    tokens, spans, step = rows()
    sampler = None if loss == "softmax" else NegativeSampler(np.arange(ITEMS), 16, 0.5)
    data = FixedShapes(tokens, spans, device, ITEMS, 0.3, 0.8, 0.1, 0.1, sampler)
    return data.batch(step._replace(order=step.order.to(device)))


def model_on(device: torch.device, loss: str, **changes: float) -> BERT4Rec:
    torch.manual_seed(1)
    settings = {"hidden_units": 32, "num_heads": 2, "num_layers": 2, "max_len": LENGTH, "dropout_rate": 0.0, **changes}
    return BERT4Rec(ITEMS, loss=loss, **settings).to(device).train()


def outcome(model: BERT4Rec, batch: TrainBatch) -> list[torch.Tensor]:
    """Loss and gradients, on the CPU in float64."""
    model.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    gradients = [weight.grad for weight in model.parameters()]
    return [loss.detach().cpu().double(), *(gradient.to_dense().cpu().double() for gradient in gradients)]


@pytest.mark.parametrize("loss", LOSSES)
def test_masks_and_negatives_are_those_of_a_cpu(loss: str) -> None:
    one, other = batch_on(CPU, loss), batch_on(CUDA, loss)
    for here, there in zip(one[:3], other[:3], strict=True):
        assert torch.equal(here, there.cpu())
    if one.negatives is not None and other.negatives is not None:
        assert torch.equal(one.negatives.items, other.negatives.items.cpu())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-10)])
def test_loss_and_gradients_are_those_of_a_cpu(loss: str, dtype: torch.dtype, tolerance: float) -> None:
    one = outcome(model_on(CPU, loss).to(dtype), batch_on(CPU, loss))
    other = outcome(model_on(CUDA, loss).to(dtype), batch_on(CUDA, loss))
    for here, there in zip(one, other, strict=True):
        torch.testing.assert_close(there, here, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_sixteen_bits_are_nearby(loss: str, dtype: torch.dtype, tolerance: float) -> None:
    full = outcome(model_on(CUDA, loss), batch_on(CUDA, loss))
    with torch.autocast("cuda", dtype=dtype):
        half = outcome(model_on(CUDA, loss), batch_on(CUDA, loss))
    for here, there in zip(full, half, strict=True):
        torch.testing.assert_close(there, here, rtol=tolerance, atol=tolerance * max(1e-3, float(here.abs().max())))


def test_a_compiled_loss_is_the_plain_one() -> None:
    model, batch = model_on(CUDA, "softmax"), batch_on(CUDA, "softmax")
    plain = outcome(model, batch)
    model.zero_grad()
    compiled = torch.compile(model.loss, dynamic=False)(batch._replace(num_rows=0))
    compiled.backward()
    torch.testing.assert_close(compiled.detach().cpu().double(), plain[0], rtol=1e-5, atol=1e-5)
    for weight, gradient in zip(model.parameters(), plain[1:], strict=True):
        torch.testing.assert_close(weight.grad.to_dense().cpu().double(), gradient, rtol=1e-4, atol=1e-5)


def test_no_step_waits_for_the_host() -> None:
    batch, model = batch_on(CUDA, "softmax"), model_on(CUDA, "softmax", dropout_rate=0.1)
    outcome(model, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.loss(batch).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_all_logits_are_never_in_memory() -> None:
    targets, tokens, width = 32_768, 54_544, 64
    hidden = torch.randn(targets, width, device=CUDA, requires_grad=True)
    weight = torch.randn(tokens, width, device=CUDA, requires_grad=True)
    aims = torch.randint(1, tokens, (targets,), device=CUDA)
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        losses.linear_cross_entropy(hidden, weight, None, aims).backward()
    assert torch.cuda.max_memory_allocated() < 1.5e9 < targets * tokens * 2


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_every_loss_trains_in_every_precision(loss: str, precision: str, table: Table, tmp_path: Path) -> None:
    settings = (f"training.loss={loss}", f"training.precision={precision}", "training.gradient_clip=1.0")
    ended = call(train, *table.overrides, f"output_dir={tmp_path}", *TINY, *ON_GPU, *settings)
    assert (ended.code, ended.err) == (0, "")
    weights = checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("loss", LOSSES)
def test_repeats_and_resumed_runs_are_the_same_to_the_bit(loss: str, table: Table, tmp_path: Path) -> None:
    settings = (*TINY, *ON_GPU, f"training.loss={loss}", "training.deterministic=true", "data.batch_size=5")
    last = [tmp_path / name / "checkpoints" / "last.ckpt" for name in ("one", "two", "parts")]
    for name in ("one", "two"):
        assert call(train, *table.overrides, f"output_dir={tmp_path / name}", *settings).code == 0
    parts = (*table.overrides, f"output_dir={tmp_path / 'parts'}", *settings)
    assert call(train, *parts, "training.max_steps=7").code == 0
    assert call(train, *parts, "training.resume=true").code == 0
    assert same_weights(last[0], last[1])
    assert same_weights(last[0], last[2])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_graphs_train_as_computed_steps(loss: str, precision: str, table: Table, tmp_path: Path) -> None:
    settings = (*TINY, *ON_GPU, f"training.loss={loss}", f"training.precision={precision}", "data.batch_size=5")
    settings += ("training.num_epochs=6", "training.scheduler=linear", "training.gradient_clip=1.0")
    ended = [
        call(train, *table.overrides, f"output_dir={tmp_path / name}", *settings, f"training.cuda_graph={name}")
        for name in ("false", "true")
    ]
    assert [(one.code, one.err) for one in ended] == [(0, "")] * 2
    assert "training.cuda_graph does not work here" not in ended[1].out
    computed, recorded = (checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("false", "true"))
    assert recorded["global_step"] == computed["global_step"]
    weights = (content["state_dict"]["network.item_embedding.weight"] for content in (recorded, computed))
    torch.testing.assert_close(*weights, rtol=0.02, atol=1e-3)


def test_graphs_resume_to_the_same_bits(table: Table, tmp_path: Path) -> None:
    settings = (*TINY, *ON_GPU, "training.cuda_graph=true", "training.deterministic=true", "data.batch_size=5")
    assert call(train, *table.overrides, f"output_dir={tmp_path / 'whole'}", *settings).code == 0
    parts = (*table.overrides, f"output_dir={tmp_path / 'parts'}", *settings)
    assert call(train, *parts, "training.num_epochs=2").code == 0
    assert call(train, *parts, "training.resume=true").code == 0
    last = [tmp_path / name / "checkpoints" / "last.ckpt" for name in ("whole", "parts")]
    assert same_weights(*last)


def test_a_checkpoint_goes_from_the_gpu_to_a_cpu_and_back(table: Table, tmp_path: Path) -> None:
    settings = (*table.overrides, f"output_dir={tmp_path}", *TINY)
    assert call(train, *settings, *ON_GPU).code == 0
    lists = []
    for accelerator in ("gpu", "cpu"):
        path = tmp_path / f"{accelerator}.csv"
        ended = call(predict, *settings, f"training.accelerator={accelerator}", f"inference.output_path={path}")
        assert ended.code == 0, ended.err
        lists.append(path.read_text())
    assert lists[0] == lists[1]
    longer = (*settings, "training.resume=true", "training.num_epochs=4", "training.accelerator=cpu")
    assert call(train, *longer).code == 0
    assert call(train, *settings, *ON_GPU, "training.resume=true", "training.num_epochs=5").code == 0


def test_too_little_memory_is_one_line_and_loses_nothing(table: Table, tmp_path: Path) -> None:
    settings = (*table.overrides, f"output_dir={tmp_path}", *TINY, *ON_GPU)
    assert call(train, *settings).code == 0
    before = files_below(tmp_path / "checkpoints")
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        ended = call(train, *settings, "training.resume=true", "training.num_epochs=9", "model.hidden_units=8")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert "memory" in ended.err
    assert files_below(tmp_path / "checkpoints") == before


def test_a_step_by_the_scripts_is_compiled_and_trains(table: Table, tmp_path: Path) -> None:
    settings = (*TINY, *ON_GPU[:2], "training.num_epochs=4", "training.precision=bf16-mixed")
    settings += ("training.cuda_graph=true", "data.batch_size=5")
    ended = call(train, *table.overrides, f"output_dir={tmp_path}", *settings)
    assert (ended.code, ended.err) == (0, "")
    assert "does not work here" not in ended.out


def test_unused_slots_and_rows_change_nothing() -> None:
    batch, model = batch_on(CUDA, "softmax"), model_on(CUDA, "softmax")
    is_used = batch.targets != PAD
    trimmed = batch._replace(inputs=batch.inputs[:20], places=batch.places[is_used], targets=batch.targets[is_used])
    for one, other in zip(outcome(model, batch), outcome(model, trimmed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
