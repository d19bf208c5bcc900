"""The losses and the optimiser of sparse gradients against plain formulas, gradients included.

With plain PyTorch here; kernels have tests of their own.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.batch import Negatives, TrainBatch
from src.kernels import compiler
from src.models import BERT4Rec, losses
from src.models.optimizer import RowwiseAdam


@pytest.fixture(autouse=True)
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiler.SWITCH, "0")


def tensors(count: int, width: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in ((count, width), (tokens, width), (tokens,))
    )
    return hidden, weight, bias, torch.randint(1, tokens, (count,), generator=generator)


def cut_up(patch: pytest.MonkeyPatch, logits: int) -> None:
    """Have little data computed in as many chunks as much data is."""
    patch.setattr(losses, "LOGITS_AT_A_TIME", logits)
    patch.setattr(losses, "LEAST_ROWS", 1)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 23),
    tokens=st.integers(2, 37),
    chunk=st.integers(1, 200),
    unused=st.integers(0, 5),
    has_bias=st.booleans(),
    factor=st.sampled_from([1.0, -2.5]),
)
def test_linear_cross_entropy_whatever_the_chunks(
    count: int, tokens: int, chunk: int, unused: int, has_bias: bool, factor: float
) -> None:
    hidden, weight, bias, targets = tensors(count, 5, tokens, seed=count * 100 + tokens)
    targets[:unused] = 0
    inputs = [hidden, weight, bias] if has_bias else [hidden, weight]
    with pytest.MonkeyPatch.context() as patch:
        cut_up(patch, chunk)
        got = losses.linear_cross_entropy(hidden, weight, bias if has_bias else None, targets)
        mine = torch.autograd.grad(factor * got, inputs)
    logits = F.linear(hidden, weight, bias if has_bias else None)
    expected = F.cross_entropy(logits, targets, ignore_index=0, reduction="sum") / max(1, (targets > 0).sum())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for one, other in zip(mine, torch.autograd.grad(factor * expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 23),
    tokens=st.integers(2, 37),
    chunk=st.integers(1, 200),
    has_bias=st.booleans(),
)
def test_linear_cross_entropy_in_bfloat16_is_as_near_as_its_digits_are(
    count: int, tokens: int, chunk: int, has_bias: bool
) -> None:
    """Eight binary digits: a number is off by up to 2 ** -8 of its size, a whole gradient by a few of these."""
    exact = tensors(count, 5, tokens, seed=count * 100 + tokens)
    hidden, weight, bias = (tensor.detach().float().requires_grad_() for tensor in exact[:3])
    inputs = [hidden, weight, bias] if has_bias else [hidden, weight]
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):
        cut_up(patch, chunk)
        got = losses.linear_cross_entropy(hidden, weight, bias if has_bias else None, exact[3])
    mine = torch.autograd.grad(got, inputs)
    expected = F.cross_entropy(F.linear(hidden, weight, bias if has_bias else None), exact[3])
    assert got.dtype == torch.float32
    assert abs(got - expected) < 0.05
    for one, other in zip(mine, torch.autograd.grad(expected, inputs), strict=True):
        assert one.dtype == torch.float32
        assert torch.linalg.vector_norm(one - other) < 0.03 * torch.linalg.vector_norm(other) + 0.02


@pytest.mark.parametrize("factor", [1.0, 10.0])
@pytest.mark.parametrize("offset", [-800.0, -60.0, 0.0, 60.0, 800.0])
def test_linear_cross_entropy_of_logits_whose_exponentials_are_out_of_range(
    factor: float, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_up(monkeypatch, 22)
    hidden, weight, bias, targets = tensors(5, 6, 11, seed=0)
    inputs = [hidden, weight, bias]
    hidden, weight, bias = factor * hidden, factor * weight, bias + offset
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets)
    expected_gradients = torch.autograd.grad(expected, inputs, retain_graph=True)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-3)):
        got = losses.linear_cross_entropy(hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets)
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
        for one, other in zip(torch.autograd.grad(got, inputs, retain_graph=True), expected_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_linear_cross_entropy_of_what_is_no_number_is_none() -> None:
    hidden, weight, _, targets = tensors(3, 5, 7, seed=0)
    with torch.no_grad():
        weight[2, 1] = math.nan
    assert losses.linear_cross_entropy(hidden, weight, None, targets).isnan()


def test_linear_cross_entropy_beside_float16_is_in_float32() -> None:
    hidden, weight, _, targets = (
        tensor.detach().float() if tensor.is_floating_point() else tensor for tensor in tensors(3, 5, 7, seed=0)
    )
    with torch.autocast("cpu", dtype=torch.float16):
        got = losses.linear_cross_entropy(10 * hidden, 10 * weight, None, targets)
    torch.testing.assert_close(
        got, losses.linear_cross_entropy(10 * hidden, 10 * weight, None, targets), rtol=0, atol=0
    )


def test_sampled_softmax_over_all_other_items_is_the_full_one() -> None:
    """Each other item once in the sample, as often as expected: the estimate of the sum is the sum."""
    scores = torch.randn(4, 9, dtype=torch.float64)
    targets = torch.tensor([0, 8, 3, 3])
    negatives = scores.masked_fill(F.one_hot(targets, 9).bool(), -math.inf)
    true = scores.gather(1, targets[:, None])[:, 0]
    expected = F.cross_entropy(scores, targets)
    torch.testing.assert_close(losses.sampled_softmax(true, negatives, torch.zeros(9)).mean(), expected)


def test_sampled_softmax_corrects_for_how_often_an_item_is_drawn() -> None:
    """In expectation over many draws the sum over the sample is the sum over all items, whatever the distribution."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, dtype=torch.float64, generator=generator)
    chances = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], dtype=torch.float64)
    size = 200_000
    drawn = torch.multinomial(chances, size, replacement=True, generator=generator)
    log_counts = (size * chances).log()[drawn]
    true = torch.tensor([0.3], dtype=torch.float64)
    got = losses.sampled_softmax(true, scores[drawn][None], log_counts)
    expected = (true.exp() + scores.exp().sum()).log() - true
    assert got.item() == pytest.approx(expected.item(), abs=0.01)


@pytest.mark.parametrize(("calibration", "beta"), [(0.0, 1.0), (1.0, 0.2), (0.75, 0.4)])
def test_gbce_by_hand(calibration: float, beta: float) -> None:
    true = torch.tensor([0.5, -1.0], dtype=torch.float64)
    negative = torch.tensor([[1.0, -2.0], [0.0, -math.inf]], dtype=torch.float64)  # the last one is the target itself

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = -(
        beta * math.log(sigmoid(0.5))
        + math.log(1 - sigmoid(1.0))
        + math.log(1 - sigmoid(-2.0))
        + beta * math.log(sigmoid(-1.0))
        + math.log(0.5)
    ) / (2 * 3)
    assert losses.gbce(true, negative, 0.2, calibration).mean().item() == pytest.approx(expected, abs=1e-12)


BATCH = TrainBatch(
    inputs=torch.tensor([[0, 14, 3], [5, 2, 14]]),
    places=torch.tensor([1, 5]),
    targets=torch.tensor([4, 9]),
    negatives=None,
    num_rows=2,
)


@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce"])
@pytest.mark.parametrize("options", [{}, {"share_embeddings": False}, {"output_bias": True, "output_transform": True}])
def test_a_sampled_loss_of_the_model_is_that_of_its_logits(loss: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = BERT4Rec(13, 8, 2, 1, 5, 0.0, loss=loss, **options).double()
    negatives = Negatives(torch.tensor([1, 4, 7, 7, 13]), torch.tensor([0.1, -0.2, 0.3, 0.3, -1.0]).double())
    got = model.loss(BATCH._replace(negatives=negatives))
    logits = torch.stack([model(BATCH.inputs)[0, 1], model(BATCH.inputs)[1, 2]])
    true = logits.gather(1, BATCH.targets[:, None])[:, 0]
    sampled = logits[:, negatives.items]
    sampled[0, 1] = -math.inf  # item 4 is the first target
    if loss == "gbce":
        expected = losses.gbce(true, sampled, 5 / 12, 0.75).mean()
    else:
        expected = losses.sampled_softmax(true, sampled, negatives.log_counts).mean()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    parameters = list(model.parameters())
    mine = torch.autograd.grad(got, parameters, allow_unused=True, materialize_grads=False)
    plain = torch.autograd.grad(expected, parameters, allow_unused=True)
    for one, other in zip(mine, plain, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one.to_dense(), other.to_dense(), rtol=0, atol=1e-12)


def test_only_the_rows_of_a_step_get_a_gradient() -> None:
    model = BERT4Rec(13, 8, 2, 1, 5, 0.0, loss="gbce")
    model.loss(BATCH._replace(negatives=Negatives(torch.tensor([7]), torch.zeros(1)))).backward()
    gradient = model.network.item_embedding.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    assert set(gradient.coalesce().indices()[0].tolist()) <= {0, 2, 3, 4, 5, 7, 9, 14}


def test_full_softmax_gives_the_tied_table_one_dense_gradient() -> None:
    torch.manual_seed(0)
    model = BERT4Rec(13, 8, 2, 1, 5, 0.0).double()
    table = model.network.item_embedding.weight
    model.loss(BATCH).backward()
    assert table.grad is not None
    assert not table.grad.is_sparse
    logits = torch.stack([model(BATCH.inputs)[0, 1], model(BATCH.inputs)[1, 2]])
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, BATCH.targets), [table])
    torch.testing.assert_close(table.grad, expected.to_dense(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "gbce"])
def test_unused_slots_count_for_nothing(loss: str) -> None:
    """So shapes can be fixed, and a process without a row of its own can take part in a step."""
    torch.manual_seed(0)
    model = BERT4Rec(13, 8, 2, 2, 5, 0.0, loss=loss).double()
    negatives = None if loss == "softmax" else Negatives(torch.tensor([1, 7]), torch.zeros(2).double())
    whole = BATCH._replace(negatives=negatives)
    padded = whole._replace(places=torch.tensor([1, 5, 0]), targets=torch.tensor([4, 9, 0]))
    parameters = list(model.parameters())
    one, other = (torch.autograd.grad(model.loss(batch), parameters, allow_unused=True) for batch in (whole, padded))
    torch.testing.assert_close(model.loss(padded), model.loss(whole), rtol=0, atol=1e-12)
    for mine, theirs in zip(one, other, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine.to_dense(), theirs.to_dense(), rtol=0, atol=1e-12)
    nothing = model.loss(whole._replace(targets=torch.zeros(2, dtype=torch.long)))
    nothing.backward()
    assert nothing == 0
    assert all((p.grad is None) or (p.grad.to_dense() == 0).all() for p in parameters)


def test_rowwise_adam_is_adam_where_every_step_touches_every_row() -> None:
    start = torch.randn(5, 3)
    gradients = [torch.randn(5, 3) for _ in range(4)]
    sparse, dense = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizers = (RowwiseAdam([sparse], lr=0.1), torch.optim.Adam([dense], lr=0.1))
    for gradient in gradients:
        sparse.grad, dense.grad = gradient.to_sparse(1), gradient
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(sparse, dense)


def test_rowwise_adam_is_torchs_sparse_adam_beside_dense_parameters() -> None:
    start = torch.randn(6, 3)
    mine, theirs, other = (start.clone().requires_grad_() for _ in range(3))
    optimizers = (RowwiseAdam([mine, other], lr=0.1), torch.optim.SparseAdam([theirs], lr=0.1))
    for rows in ([0, 2, 2], [5], [2, 4]):
        values = torch.randn(len(rows), 3)
        mine.grad, theirs.grad = (torch.sparse_coo_tensor(torch.tensor([rows]), values, (6, 3)) for _ in range(2))
        other.grad = torch.ones_like(other)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(mine, theirs)
    assert torch.equal(mine[[1, 3]], start[[1, 3]])  # no step touched them
    assert (other < start).all()


def test_rowwise_adam_goes_on_from_its_state() -> None:
    start = torch.randn(4, 2)
    gradients = [torch.randn(4, 2).to_sparse(1) for _ in range(3)]
    weights = []
    for is_interrupted in (False, True):
        parameter = start.clone().requires_grad_()
        optimizer = RowwiseAdam([parameter], lr=0.1)
        for previous, gradient in pairwise([None, *gradients]):
            if is_interrupted and previous is not None:
                state = optimizer.state_dict()
                optimizer = RowwiseAdam([parameter], lr=0.1)
                optimizer.load_state_dict(state)
            parameter.grad = gradient
            optimizer.step()
        weights.append(parameter.detach())
    assert torch.equal(*weights)
