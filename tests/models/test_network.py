"""The network against the formulas of the paper, written out row by row, head by head, in float64."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from src.models.network import Architecture, Network, last_places

# Mutually distinct, so that no two axes can be swapped unnoticed.
ITEMS, WIDTH, HEADS, LAYERS, MAX_LEN = 13, 12, 3, 2, 9
MASK = ITEMS + 1
OPTIONS = ("share_embeddings", "embedding_norm_first", "output_transform", "output_bias")
ROWS = ([5, 1, MASK, 13, 2, 8, 1], [MASK], [7, 7, 3, MASK])


def make_network(seed: int = 0, **options: object) -> Network:
    """A float64 network in evaluation mode whose every parameter, biases and LayerNorm included, is random."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"hidden_units": WIDTH, "num_heads": HEADS, "num_layers": LAYERS, "max_len": MAX_LEN}
    network = Network(ITEMS, Architecture(**{**sizes, **options})).double().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.1, 0.5, generator=generator)
    return network


def pad(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """Rows padded on the left: [B, length]."""
    return torch.tensor([[0] * (length - len(row)) + list(row) for row in rows])


def erf_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def tanh_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def plain_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * norm.weight + norm.bias


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.einsum("li,oi->lo", x, weight)
    return product if bias is None else product + bias


def projections(attention: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of the query, the key and the value; the one place here that knows how they are stored."""
    yield attention.query.weight, attention.query.bias
    yield from zip(attention.key_value.weight.chunk(2), attention.key_value.bias.chunk(2), strict=True)


def plain_attention(x: Tensor, attention: nn.Module, heads: int) -> Tensor:
    q, k, v = (plain_linear(x, weight, bias) for weight, bias in projections(attention))
    size = x.shape[1] // heads
    joined = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = torch.exp(torch.einsum("id,jd->ij", q[:, part], k[:, part]) / math.sqrt(size))
        joined[:, part] = torch.einsum("ij,jd->id", weights / weights.sum(1, keepdim=True), v[:, part])
    return joined


def plain_hidden(
    network: Network, row: Sequence[int], heads: int = HEADS, gelu: Callable[[Tensor], Tensor] = erf_gelu
) -> Tensor:
    """Hidden states of one row without padding: [L, D]."""
    first = network.max_len - len(row)  # the last token has the last position
    x = torch.stack(
        [network.item_embedding.weight[t] + network.position_embedding.weight[first + i] for i, t in enumerate(row)]
    )
    x = plain_norm(x, network.embedding_norm)
    for block in network.blocks:
        mixed = plain_attention(x, block.attention, heads)
        x = plain_norm(
            x + plain_linear(mixed, block.attention_output.weight, block.attention_output.bias), block.attention_norm
        )
        inner, outer = (layer for layer in block.ffn if isinstance(layer, nn.Linear))
        fed = plain_linear(gelu(plain_linear(x, inner.weight, inner.bias)), outer.weight, outer.bias)
        x = plain_norm(x + fed, block.ffn_norm)
    return x


def plain_logits(
    network: Network, row: Sequence[int], heads: int = HEADS, gelu: Callable[[Tensor], Tensor] = erf_gelu
) -> Tensor:
    """Logits of one row without padding: [L, V]."""
    x = plain_hidden(network, row, heads, gelu)
    if not isinstance(network.output_transform, nn.Identity):
        linear, _, norm = network.output_transform
        x = plain_norm(gelu(plain_linear(x, linear.weight, linear.bias)), norm)
    return plain_linear(x, network.output.weight, network.output.bias)


def targets_of(is_chosen: np.ndarray) -> Tensor:
    """`places` of a training batch with these targets."""
    return torch.from_numpy(np.flatnonzero(is_chosen))


@pytest.mark.parametrize("values", list(itertools.product([False, True], repeat=len(OPTIONS))))
@torch.no_grad()
def test_logits_equal_the_plain_formula_with_and_without_padding(values: tuple[bool, ...]) -> None:
    network = make_network(**dict(zip(OPTIONS, values, strict=True)))
    logits = network(pad(ROWS, length=8))
    assert logits.shape == (3, 8, ITEMS + 2)
    for padded, row in zip(logits, ROWS, strict=True):
        torch.testing.assert_close(padded[8 - len(row) :], plain_logits(network, row), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("heads", "layers"), [(1, 1), (2, 3), (12, 1)])
@torch.no_grad()
def test_logits_equal_the_plain_formula_for_other_numbers_of_heads_and_layers(heads: int, layers: int) -> None:
    network = make_network(num_heads=heads, num_layers=layers)
    row = ROWS[0]
    torch.testing.assert_close(network(pad([row], 7))[0], plain_logits(network, row, heads), rtol=0, atol=1e-11)


@torch.no_grad()
def test_the_activation_is_gelu_in_its_erf_form() -> None:
    network = make_network(output_transform=True)
    logits = network(pad(ROWS[:1], 7))[0]
    assert (logits - plain_logits(network, ROWS[0], gelu=erf_gelu)).abs().max() < 1e-11
    assert (logits - plain_logits(network, ROWS[0], gelu=tanh_gelu)).abs().max() > 1e-6


@torch.no_grad()
def test_amount_of_padding_changes_nothing() -> None:
    network = make_network()
    row = ROWS[2]
    short, long = network(pad([row], 4)), network(pad([row], MAX_LEN))
    torch.testing.assert_close(long[:, -4:], short, rtol=0, atol=1e-12)


@given(flags=st.lists(st.booleans(), min_size=4 * 7, max_size=4 * 7))
@settings(max_examples=25, deadline=None)
def test_states_at_chosen_places_equal_those_of_the_whole_and_so_do_gradients(flags: list[bool]) -> None:
    lengths = [7, 3, 5, 1]
    chosen = np.array(flags).reshape(4, 7) & (np.arange(7) >= 7 - np.array(lengths)[:, None])
    chosen[~chosen.any(axis=1), -1] = True  # every row has a target, as the masking sees to
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, ITEMS + 2, (length,), generator=generator).tolist() for length in lengths]
    inputs = pad(rows, 7)
    weights = torch.randn(int(chosen.sum()), WIDTH, dtype=torch.float64, generator=generator)
    network = make_network()

    def gradients(states: Tensor) -> list[Tensor]:
        network.zero_grad()
        (states * weights).sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    whole = network.encode(inputs)[torch.from_numpy(chosen)]
    compact = network.encode(inputs, targets_of(chosen))
    torch.testing.assert_close(compact, whole, rtol=0, atol=1e-11)
    for got, expected in zip(gradients(compact), gradients(whole), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_state_of_the_last_column_equals_that_of_the_whole_and_so_do_gradients() -> None:
    network = make_network()
    inputs = pad(ROWS, 7)
    weights = torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    last, whole = network.encode(inputs, last_places(inputs)), network.encode(inputs)[:, -1]
    assert last.shape == (3, WIDTH)
    torch.testing.assert_close(last, whole, rtol=0, atol=1e-11)
    got = torch.autograd.grad((last * weights).sum(), network.item_embedding.weight)[0]
    expected = torch.autograd.grad((whole * weights).sum(), network.item_embedding.weight)[0]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("share_embeddings", [False, True])
@pytest.mark.parametrize("output_transform", [False, True])
@pytest.mark.parametrize("output_bias", [False, True])
def test_number_of_parameters(share_embeddings: bool, output_transform: bool, output_bias: bool) -> None:
    network = make_network(
        share_embeddings=share_embeddings, output_transform=output_transform, output_bias=output_bias
    )
    tokens, d = ITEMS + 2, WIDTH
    expected = tokens * d + MAX_LEN * d + 2 * d + LAYERS * (12 * d * d + 13 * d)
    expected += (not share_embeddings) * tokens * d + output_transform * (d * d + 3 * d) + output_bias * tokens
    assert sum(p.numel() for p in network.parameters()) == expected


def test_xavier_weights_of_linear_layers() -> None:
    """Standard deviation sqrt(2 / (inputs + outputs)); the embeddings, tied output layer included, stay as they are."""
    torch.manual_seed(3)
    network = Network(997, Architecture(hidden_units=64, output_transform=True, linear_init="xavier"))
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            spread = 0.02 if "embedding" in name else math.sqrt(2 / sum(parameter.shape))
            assert abs(parameter.std().item() - spread) < 4 * spread / math.sqrt(2 * parameter.numel()), name
    assert torch.equal(network.output.weight, network.item_embedding.weight)


def test_initial_weights() -> None:
    torch.manual_seed(3)
    network = Network(997, Architecture(share_embeddings=False, output_transform=True, output_bias=True))
    assert (network.item_embedding.weight[0] == 0).all()
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 + 2 * 3
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            weights = parameter[1:] if name == "item_embedding.weight" else parameter
            n = weights.numel()
            assert abs(weights.mean().item()) < 4 * 0.02 / math.sqrt(n), name
            assert abs(weights.std().item() - 0.02) < 4 * 0.02 / math.sqrt(2 * n), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name


def test_tied_output_matrix_is_the_item_embedding() -> None:
    tied, untied = (Network(ITEMS, Architecture(share_embeddings=share)) for share in (True, False))
    assert tied.output.weight is tied.item_embedding.weight
    assert not torch.equal(untied.output.weight, untied.item_embedding.weight)


def train_differs(network: Network) -> bool:
    """Whether training mode gives something else than evaluation mode, which must always give the same."""
    inputs = pad(ROWS, 8)
    with torch.no_grad():
        network.eval()
        plain = network(inputs)
        assert torch.equal(network(inputs), plain)
        torch.manual_seed(4)
        return not torch.allclose(network.train()(inputs), plain, rtol=0, atol=1e-9)


NO_DROPOUT = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0, "ffn_dropout_rate": 0.0}


def test_without_dropout_training_equals_evaluation() -> None:
    assert not train_differs(make_network(**NO_DROPOUT))


@pytest.mark.parametrize("key", NO_DROPOUT)
def test_each_dropout_rate_alone_is_active_in_training_only(key: str) -> None:
    assert train_differs(make_network(**{**NO_DROPOUT, key: 0.4}))


@pytest.mark.parametrize("key", ["attention_dropout_rate", "ffn_dropout_rate"])
def test_other_dropout_rates_follow_dropout_rate_unless_given(key: str) -> None:
    """With the embedding and the residual branches unaffected, only the rate in question can show."""
    for given_rate, expected in ((None, True), (0.0, False)):
        network = make_network(**{**NO_DROPOUT, "dropout_rate": 0.4, key: given_rate})
        for module in (network, *network.blocks):
            module.dropout.p = 0.0
        assert train_differs(network) is expected


def silence_residual_branches(network: Network) -> None:
    for block in network.blocks:
        for linear in (block.attention_output, block.ffn[-1]):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


@pytest.mark.parametrize("embedding_norm_first", [False, True])
def test_dropout_after_the_embedding(embedding_norm_first: bool) -> None:
    for rate, expected in ((0.0, False), (0.4, True)):
        network = make_network(**{**NO_DROPOUT, "dropout_rate": rate}, embedding_norm_first=embedding_norm_first)
        silence_residual_branches(network)
        assert train_differs(network) is expected


@pytest.mark.parametrize("branch", ["attention", "ffn"])
def test_dropout_on_each_residual_branch(branch: str) -> None:
    for rate, expected in ((0.0, False), (0.4, True)):
        network = make_network(**{**NO_DROPOUT, "dropout_rate": rate})
        nn.init.zeros_(network.item_embedding.weight)  # so that dropout after the embedding has nothing to drop
        nn.init.zeros_(network.position_embedding.weight)
        network.output.weight = nn.Parameter(torch.randn(ITEMS + 2, WIDTH, dtype=torch.float64))
        for block in network.blocks:
            silent = block.ffn[-1] if branch == "attention" else block.attention_output
            nn.init.zeros_(silent.weight)
            nn.init.zeros_(silent.bias)
        assert train_differs(network) is expected


@pytest.mark.parametrize("embedding_norm_first", [False, True])
def test_embedding_norm_comes_before_the_dropout_only_when_asked(embedding_norm_first: bool) -> None:
    """LayerNorm makes zeros of a constant vector: dropout then has nothing to drop, but before it, it has."""
    network = make_network(**{**NO_DROPOUT, "dropout_rate": 0.4}, embedding_norm_first=embedding_norm_first)
    silence_residual_branches(network)
    nn.init.constant_(network.item_embedding.weight, 0.7)
    nn.init.zeros_(network.position_embedding.weight)
    nn.init.zeros_(network.embedding_norm.bias)
    network.output.weight = nn.Parameter(torch.randn(ITEMS + 2, WIDTH, dtype=torch.float64))
    assert train_differs(network) is not embedding_norm_first


def test_longest_input() -> None:
    network = make_network()
    assert network(torch.ones(2, MAX_LEN, dtype=torch.long)).shape == (2, MAX_LEN, ITEMS + 2)
    with pytest.raises(ValueError, match="10 tokens is longer than max_len=9"):
        network(torch.ones(2, MAX_LEN + 1, dtype=torch.long))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_units=12 must be divisible by num_heads=5"):
        make_network(num_heads=5)
    with pytest.raises(ValueError, match="num_items=0"):
        Network(0, Architecture())
