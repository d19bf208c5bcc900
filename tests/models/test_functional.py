"""Dropout and attention against the plain formulas; shapes B=2, M=5, L=7, H=3, d=11."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.models import functional
from src.models.functional import Reused, apart, attention, dropout, keep_bytes

VISIBLE = torch.tensor([[False, False, True, True, True, True, True], [True] * 7])[:, None, None, :]


def states(length: int) -> Tensor:
    return torch.randn(2, length, 3 * 11, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_dropout_keeps_its_share_and_its_expectation(rate: float) -> None:
    torch.manual_seed(1)
    count = 300_007  # no multiple of 8
    x = torch.ones(count, dtype=torch.float64)
    kept = dropout(x, rate, is_training=True)
    share = keep_bytes(rate) / 256
    assert abs(share - (1 - rate)) <= 1 / 512
    assert set(kept.unique().tolist()) == {0.0, 1 / share}
    assert abs((kept > 0).double().mean().item() - share) < 4 * math.sqrt(share * (1 - share) / count)


def test_every_byte_of_a_word_is_a_fair_draw() -> None:
    torch.manual_seed(2)
    kept = dropout(torch.ones(40_000, 8), 0.25, is_training=True) > 0
    assert ((kept.double().mean(dim=0) - 0.75).abs() < 4 * math.sqrt(0.75 * 0.25 / 40_000)).all()


def test_dropout_follows_the_generator_and_is_off_outside_training() -> None:
    x = torch.randn(13, 17)
    torch.manual_seed(3)
    first = dropout(x, 0.4, is_training=True)
    second = dropout(x, 0.4, is_training=True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.4, is_training=True), first)
    assert not torch.equal(first, second)
    assert dropout(x, 0.4, is_training=False) is x
    assert dropout(x, 0.0, is_training=True) is x


def test_gradient_of_dropout_passes_where_the_entry_was_kept() -> None:
    torch.manual_seed(4)
    x = torch.randn(6, 31, dtype=torch.float64, requires_grad=True)
    out = dropout(x, 0.3, is_training=True)
    (gradient,) = torch.autograd.grad((out * torch.arange(31)).sum(), x)
    scale = 256 / keep_bytes(0.3)
    torch.testing.assert_close(gradient, (out != 0) * torch.arange(31).double() * scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_in_reused_memory_is_the_plain_one_whatever_the_sizes_before_it(has_bias: bool) -> None:
    reused = Reused()
    for rows, columns, dtype in (
        (3, 5, torch.float64),
        (2, 4, torch.float64),
        (7, 6, torch.float64),
        (3, 5, torch.float32),
    ):
        x, weight = torch.randn(rows, 11, dtype=dtype), torch.randn(columns, 11, dtype=dtype)
        bias = torch.randn(columns, dtype=dtype) if has_bias else None
        with torch.inference_mode():
            got = reused.linear(x, weight, bias)
            torch.testing.assert_close(got, F.linear(x, weight, bias))


def test_reused_memory_is_overwritten_by_the_next_product_in_inference_mode_alone() -> None:
    x, weight, reused = torch.randn(2, 3), torch.randn(5, 3, requires_grad=True), Reused()
    with torch.inference_mode():
        first = reused.linear(x, weight, None)
        assert reused.linear(x + 1.0, weight, None).data_ptr() == first.data_ptr()
        assert copy.deepcopy(reused).linear(x, weight, None).data_ptr() != first.data_ptr()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert reused.linear(x, weight, None).dtype == torch.bfloat16
    kept = reused.linear(x, weight, None)
    assert reused.linear(x + 1.0, weight, None).data_ptr() != kept.data_ptr()
    kept.sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(dim=0).expand(5, 3))


@pytest.mark.parametrize("is_visible", [None, VISIBLE])
@pytest.mark.parametrize(("dropout_rate", "rows_at_a_time"), [(0.0, 2), (0.35, 4), (0.35, 1)])
def test_attention_is_the_plain_formula(
    is_visible: Tensor | None, dropout_rate: float, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "PAIRS_AT_A_TIME", rows_at_a_time * 5 * 7)
    torch.manual_seed(5)
    q, k, v = states(5), states(7), states(7)
    torch.manual_seed(6)
    got = attention(q, torch.cat([k, v], dim=2), 3, is_visible, dropout_rate)
    heads = [x.view(2, -1, 3, 11) for x in (q, k, v)]
    scores = torch.einsum("bmhd,blhd->bhml", heads[0], heads[1]) / math.sqrt(11)
    if is_visible is not None:
        scores = scores.masked_fill(~is_visible, -math.inf)
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    torch.manual_seed(6)  # the same draws, in the same order
    pieces = weights.flatten(0, 1).split(rows_at_a_time)
    weights = torch.cat([dropout(piece, dropout_rate, is_training=True) for piece in pieces]).view(2, 3, 5, 7)
    expected = torch.einsum("bhml,blhd->bmhd", weights, heads[2]).flatten(2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    direction = torch.randn_like(got)
    for mine, plain in zip(
        torch.autograd.grad((got * direction).sum(), [q, k, v]),
        torch.autograd.grad((expected * direction).sum(), [q, k, v]),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_backward_inside", [True, False])
def test_attention_with_dropout_is_in_float32_under_autocast(is_backward_inside: bool) -> None:
    torch.manual_seed(5)
    q, key_value, direction = torch.randn(2, 5, 6), torch.randn(2, 7, 12), torch.randn(2, 5, 6)
    gradients = []
    for is_cast in (True, False):
        leaves = [
            x.bfloat16().to(torch.bfloat16 if is_cast else torch.float32).requires_grad_() for x in (q, key_value)
        ]
        torch.manual_seed(6)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_cast):
            got = attention(*leaves, 3, None, 0.35)
            assert got.dtype == torch.float32
            if is_backward_inside:
                (got * direction).sum().backward()
        if not is_backward_inside:
            (got * direction).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for mine, plain in zip(*gradients, strict=True):
        assert torch.equal(mine, plain.bfloat16())


@pytest.mark.parametrize("uses", ["both", "lookup", "matrix"])
def test_a_table_used_apart_has_the_gradient_of_the_table(uses: str) -> None:
    torch.manual_seed(7)
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    ids, factor = torch.tensor([3, 5, 3, 8]), torch.randn(6, 4, dtype=torch.float64)

    def result(lookup: Tensor, matrix: Tensor) -> Tensor:
        looked_up = torch.nn.functional.embedding(ids, lookup, sparse=True).pow(3).sum()
        product = (factor @ matrix.t()).pow(2).sum()
        return {"both": looked_up * product, "lookup": looked_up, "matrix": product}[uses]

    (mine,) = torch.autograd.grad(result(*apart(table)), table)
    (plain,) = torch.autograd.grad(result(table, table), table)
    assert mine.is_sparse == (uses == "lookup")
    torch.testing.assert_close(mine.to_dense(), plain.to_dense(), rtol=0, atol=1e-12)
