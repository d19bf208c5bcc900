"""The compiled cross entropy against torch's, gradients included."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.kernels import cross_entropy
from tests.kernels import library, needs_compiler

pytestmark = needs_compiler


def tensors(
    count: int, width: int, tokens: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count * 100 + tokens)
    hidden, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
        for shape in ((count, width), (tokens, width), (tokens,))
    )
    return hidden, weight, bias, torch.randint(0, tokens, (count,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 47),
    width=st.sampled_from([1, 5, 16, 40]),
    tokens=st.integers(1, 61),
    most_rows=st.integers(1, 60),
    threads=st.integers(1, 3),
    has_bias=st.booleans(),
    factor=st.sampled_from([1.0, -2.5]),
)
def test_it_is_that_of_torch_whatever_the_blocks(
    count: int, width: int, tokens: int, most_rows: int, threads: int, has_bias: bool, factor: float
) -> None:
    hidden, weight, bias, targets = tensors(count, width, tokens)
    inputs = [hidden, weight, bias] if has_bias else [hidden, weight]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "MOST_ROWS", most_rows)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        got = cross_entropy.linear_cross_entropy(library(), hidden, weight, bias if has_bias else None, targets)
    mine = torch.autograd.grad(factor * got, inputs)
    expected = F.cross_entropy(F.linear(hidden, weight, bias if has_bias else None), targets)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for one, other in zip(mine, torch.autograd.grad(factor * expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_large_catalogue_in_blocks_and_tiles_in_float32() -> None:
    hidden, weight, bias, targets = tensors(301, 64, 2_003, torch.float32)
    got = cross_entropy.linear_cross_entropy(library(torch.float32), hidden, weight, bias, targets)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    expected = F.cross_entropy(F.linear(*exact), targets)
    assert (got - expected).abs() < 1e-5 * expected
    for one, other in zip(
        torch.autograd.grad(got, [hidden, weight, bias]), torch.autograd.grad(expected, exact), strict=True
    ):
        assert (one.double() - other).abs().max() < 1e-5 * other.abs().max()


@pytest.mark.parametrize("factor", [1.0, 10.0])
@pytest.mark.parametrize("offset", [-800.0, -60.0, 0.0, 60.0, 800.0])
def test_logits_whose_exponentials_are_out_of_range(factor: float, offset: float) -> None:
    hidden, weight, bias, targets = tensors(5, 6, 11)
    inputs = [hidden, weight, bias]
    hidden, weight, bias = factor * hidden, factor * weight, bias + offset
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets)
    expected_gradients = torch.autograd.grad(expected, inputs, retain_graph=True)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-3)):
        got = cross_entropy.linear_cross_entropy(
            library(dtype), hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets
        )
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
        for one, other in zip(torch.autograd.grad(got, inputs, retain_graph=True), expected_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_gives_none(value: float, dtype: torch.dtype) -> None:
    hidden, weight, _, targets = tensors(3, 5, 7, dtype)
    with torch.no_grad():
        hidden[1, 2] = value
    assert not cross_entropy.linear_cross_entropy(library(dtype), hidden, weight, None, targets).isfinite()


def test_no_targets_and_targets_that_are_none() -> None:
    hidden, weight, _, targets = tensors(3, 5, 7)
    assert cross_entropy.linear_cross_entropy(library(), hidden[:0], weight, None, targets[:0]).isnan()
    for bad in (-1, 7):
        with pytest.raises(IndexError, match="not among the 7 tokens"):
            cross_entropy.linear_cross_entropy(library(), hidden, weight, None, torch.full((3,), bad))
