"""The compiled encoder against the modules of the network, gradients included."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.kernels import compiler, door, encoder
from src.models.network import Architecture, Network, last_places
from tests.kernels import needs_compiler

pytestmark = needs_compiler

ITEMS, MAX_LEN = 23, 41
Batch = tuple[Tensor, Tensor]  # inputs [B, L] and places [N]


@pytest.fixture(autouse=True)
def _one_thread_afterwards() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def network_of(
    width: int,
    heads: int,
    layers: int,
    dropout: float = 0.0,
    items: int = ITEMS,
    max_len: int = MAX_LEN,
    **options: bool,
) -> Network:
    """In float64, every parameter random, biases and LayerNorm included."""
    generator = torch.Generator().manual_seed(width)
    sizes = {"hidden_units": width, "num_heads": heads, "num_layers": layers, "max_len": max_len}
    network = Network(items, Architecture(**sizes, dropout_rate=dropout, **options)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.1, 0.4, generator=generator)
    return network


def batch_of(lengths: Sequence[int], seed: int = 0, asked: float = 0.4, items: int = ITEMS) -> Batch:
    """Inputs padded on the left, and about so much of each row asked for, some rows without anything."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    is_asked = torch.zeros(inputs.shape, dtype=torch.bool)
    for row, length in enumerate(lengths):
        inputs[row, inputs.shape[1] - length :] = torch.randint(1, items + 2, (length,), generator=generator)
        is_asked[row, inputs.shape[1] - length :] = torch.rand(length, generator=generator) < asked
    is_asked[0, -1] = True
    return inputs, is_asked.flatten().nonzero()[:, 0]


def outcome(network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch, switch: str) -> list[Tensor]:
    """Hidden states, and the gradients of all that they depend on."""
    monkeypatch.setenv(compiler.SWITCH, switch)
    assert (door._library(network, "encoder") is not None) == (switch == "1")
    parameters = [parameter for name, parameter in network.named_parameters() if not name.startswith("output")]
    torch.manual_seed(3)
    hidden = door.encode(network, *batch)
    direction = torch.randn(hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(hidden)
    return [hidden.detach(), *(g.to_dense() for g in torch.autograd.grad(hidden, parameters, direction))]


SIZES = [(16, 1, 1), (64, 2, 2), (36, 3, 3), (24, 4, 2), (7, 1, 2), (160, 2, 1), (1, 1, 2)]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize(("width", "heads", "layers"), SIZES)
def test_it_computes_what_the_modules_do(
    width: int, heads: int, layers: int, shares: bool, norm_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(width, heads, layers, share_embeddings=shares, embedding_norm_first=norm_first)
    batch = batch_of([3, 1, 17, 40, 41, 33, 5, 9, 9])
    for got, expected in zip(
        outcome(network, batch, monkeypatch, "1"), outcome(network, batch, monkeypatch, "0"), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, MAX_LEN), min_size=1, max_size=9),
    asked=st.sampled_from([0.0, 0.3, 1.0]),
    group=st.integers(1, 90),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_it_does_so_whatever_the_lengths_and_groups(
    lengths: list[int], asked: float, group: int, threads: int, seed: int
) -> None:
    network = network_of(12, 2, 2)
    batch = batch_of(lengths, seed, asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "GROUP_TOKENS", group)
        torch.set_num_threads(threads)
        got = outcome(network, batch, patch, "1")
        torch.set_num_threads(1)
        expected = outcome(network, batch, patch, "0")
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_float32_is_as_near_as_its_digits_are(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(64, 2, 2)
    batch = batch_of([3, 1, 17, 40, 41, 33])
    expected = outcome(network, batch, monkeypatch, "0")
    for got, exact in zip(outcome(network.float(), batch, monkeypatch, "1"), expected, strict=True):
        assert (got.double() - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize("rates", [(0.3, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.3), (0.2, 0.4, 0.1)])
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_backward_pass_drops_what_the_forward_pass_did(rates: tuple[float, float, float], norm_first: bool) -> None:
    """Where all of them drop, each derivative of each entry; elsewhere sums of them, which takes no time."""
    dropout, attention, ffn = rates
    options = {"attention_dropout_rate": attention, "ffn_dropout_rate": ffn, "embedding_norm_first": norm_first}
    options["share_embeddings"] = False  # a dense gradient, which is what the check can compare
    network = network_of(4 if all(rates) else 6, 2, 2, dropout, items=5, max_len=5, **options)  # type: ignore[arg-type]
    assert door._library(network, "encoder") is not None
    batch = batch_of([3, 1, 4], items=5)
    parameters = [parameter for name, parameter in network.named_parameters() if not name.startswith("output")]

    def hidden(*values: Tensor) -> Tensor:
        torch.manual_seed(3)
        return door.encode(network, *batch)

    fast = norm_first or not all(rates)
    assert torch.autograd.gradcheck(hidden, parameters, eps=1e-6, atol=1e-6, fast_mode=fast)
    torch.manual_seed(4)
    assert not torch.equal(door.encode(network, *batch), hidden())


def test_dropout_follows_from_the_seed_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = network_of(12, 2, 2, 0.5), batch_of([30, 41, 20, 35, 41, 41, 28, 33])
    monkeypatch.setattr(encoder, "GROUP_TOKENS", 40)
    one = outcome(network, batch, monkeypatch, "1")
    torch.set_num_threads(3)
    three = outcome(network, batch, monkeypatch, "1")
    assert torch.equal(one[0], three[0])
    for summed, other in zip(one, three, strict=True):
        torch.testing.assert_close(summed, other, rtol=0, atol=1e-11)
    for again, before in zip(outcome(network, batch, monkeypatch, "1"), three, strict=True):
        assert torch.equal(again, before)


def alike(**rates: float) -> tuple[Network, Batch]:
    """A network to which all tokens at all positions are one, so that only dropout tells hidden states apart."""
    network = network_of(16, 2, 1, rates.pop("dropout", 0.0), embedding_norm_first=True, **rates)  # type: ignore[arg-type]
    with torch.no_grad():
        network.position_embedding.weight.zero_()
        network.item_embedding.weight.copy_(network.item_embedding.weight[1].expand(ITEMS + 2, -1))
    return network, batch_of([MAX_LEN] * 200, asked=1.0)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_hides_as_many_entries_as_it_says(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the embedding: when blocks do nothing but normalise, entries that it hid are all the same number."""
    monkeypatch.setenv(compiler.SWITCH, "1")
    network, batch = alike(dropout=rate)
    with torch.no_grad():
        for name, parameter in network.blocks.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    hidden = door.encode(network, *batch)  # [8,200, 16]
    same = torch.isclose(hidden[:, :, None], hidden[:, None, :], rtol=0, atol=1e-9).sum(dim=2).amax(dim=1)
    hidden_entries = same.where(same > 1, 0)
    assert abs(float(hidden_entries.double().mean()) / 16 - rate) < 0.01


@pytest.mark.parametrize("place", ["attention", "ffn"])
def test_dropout_changes_nothing_on_average(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what it is done to is small beside the residual, all that follows is linear but for a little."""
    monkeypatch.setenv(compiler.SWITCH, "1")
    network, batch = alike(**{f"{place}_dropout_rate": 0.25})
    block = network.blocks[0]
    with torch.no_grad():
        block.attention_output.weight.mul_(0.05)
        block.ffn[3].weight.mul_(0.02)
    expected = door.encode(network.eval(), *batch)[0]
    hidden = door.encode(network.train(), *batch)
    spread = hidden.std(dim=0)
    assert (spread > 1e-5).all()
    assert ((hidden.mean(dim=0) - expected).abs() < 0.1 * spread).all()


def test_it_goes_without_memory_for_the_backward_pass_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = network_of(24, 4, 2), batch_of([3, 1, 17, 40, 41, 33])
    expected = outcome(network, batch, monkeypatch, "0")[0]
    monkeypatch.setenv(compiler.SWITCH, "1")
    with torch.inference_mode():
        torch.testing.assert_close(door.encode(network, *batch), expected, rtol=0, atol=1e-11)


def test_the_last_column_is_encoded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(24, 4, 2).eval()
    inputs = batch_of([3, 1, 17, 40])[0]
    monkeypatch.setenv(compiler.SWITCH, "0")
    expected = door.encode(network, inputs, last_places(inputs))
    monkeypatch.setenv(compiler.SWITCH, "1")
    torch.testing.assert_close(door.encode(network, inputs, last_places(inputs)), expected, rtol=0, atol=1e-11)
    assert door.encode(network, inputs[:0], last_places(inputs[:0])).shape == (0, 24)


def test_a_parameter_changed_before_the_backward_pass_is_an_error() -> None:
    network = network_of(12, 2, 1)
    hidden = door.encode(network, *batch_of([3, 5]))
    with torch.no_grad():
        network.position_embedding.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hidden.sum().backward()


def test_what_would_read_other_memory_is_an_error() -> None:
    network = network_of(12, 2, 1)
    inputs, _ = batch_of([3, 5])
    for places in ([1, 4], [-1, 4]):
        with pytest.raises(ValueError, match="is padding"):
            door.encode(network, inputs, torch.tensor(places))
    library = compiler.library(torch.float64)
    with pytest.raises(ValueError, match="have to ascend"):
        encoder.encode(library, network, inputs, torch.tensor([4, 4]))  # type: ignore[arg-type]
    twice = door.encode(network, inputs, torch.tensor([4, 4]))  # by the modules
    assert torch.equal(twice[0], twice[1])
    with pytest.raises(ValueError, match="beyond the batch"):
        door.encode(network, inputs, torch.tensor([4, 10]))
    for token in (ITEMS + 2, -1):
        with pytest.raises(IndexError, match="not among the 25 of the vocabulary"):
            door.encode(network, inputs.where(inputs == 0, token), torch.tensor([4]))
    longer = torch.ones(1, MAX_LEN + 1, dtype=torch.long)
    with pytest.raises(ValueError, match="42 tokens is longer than max_len=41"):
        door.encode(network, longer, torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_it_to_the_modules(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "encode", None)
    with torch.autocast("cpu", dtype=dtype):
        assert door.encode(network_of(12, 2, 1).float(), *batch_of([3, 5])).isfinite().all()
