"""A compiled loss: the same as the plain one, or not used."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.batch import Negatives, TrainBatch
from src.compiled import Compiled
from src.models import BERT4Rec

BATCH = TrainBatch(
    torch.tensor([[0, 3, 7, 2], [5, 7, 1, 7]]), torch.tensor([2, 5, 7, 0]), torch.tensor([4, 6, 2, 0]), None, 0
)
NEGATIVES = Negatives(torch.tensor([5, 2, 1, 5]), torch.zeros(4))


def use(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))


def spoiled(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A compiler whose code computes something else."""
    return lambda graph, _: lambda *inputs: tuple(change(output) for output in graph(*inputs))


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "gbce"])
def test_every_loss_is_one_graph_and_gives_the_same(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "aot_eager")
    layers = 2 if loss == "softmax" else 1  # the network is the same for all, and reading it takes seconds
    model = BERT4Rec(6, hidden_units=8, num_heads=2, num_layers=layers, max_len=5, dropout_rate=0.0, loss=loss)
    model.compiles = True
    model.configure_optimizers()
    batch = BATCH._replace(negatives=None if loss == "softmax" else NEGATIVES)
    results = []
    for function in (model.loss, Compiled(model.loss, list(model.parameters()))):
        model.zero_grad()
        value = function(batch)
        value.backward()
        results.append([value.detach(), *(weight.grad for weight in model.parameters())])
    torch.testing.assert_close(results[0], results[1])
    assert not model.network.output.weight.grad.is_sparse


WEIGHT = nn.Parameter(torch.tensor([3.0]))


def squared(factor: Tensor) -> Tensor:
    return (WEIGHT * factor).square().sum()


def broken(*_: object) -> None:
    raise RuntimeError("no Triton here")


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (broken, "no Triton here"),
        (
            spoiled(lambda output: output * 1.3),
            "the loss is 46.8 and its gradient's norm 31.2, else 36 and 24",
        ),
        (
            spoiled(lambda output: output * 2 - output.detach()),
            "the loss is 36 and its gradient's norm 48, else 36",
        ),
        (spoiled(lambda output: output * float("nan")), "compiled, the loss is nan"),
    ],
)
def test_what_does_not_compile_or_computes_something_else_goes_on_plainly(
    backend: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, backend)
    function = Compiled(squared, [WEIGHT])
    with pytest.warns(UserWarning, match=f"torch.compile does not work here .*{why}.*training.compile=false"):
        assert function(torch.tensor(2.0)) == 36
    assert function(torch.tensor(4.0)) == 144


def test_the_check_leaves_random_draws_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "eager")

    def noisy(factor: Tensor) -> Tensor:
        return squared(factor) + torch.rand(1).sum() / 100

    torch.manual_seed(1)
    first = noisy(torch.tensor(2.0))
    torch.manual_seed(1)
    assert Compiled(noisy, [WEIGHT])(torch.tensor(2.0)) == first
