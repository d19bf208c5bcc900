"""The door to the kernels: they compute what the modules say, or they are off and one warning says why."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.kernels import compiler, cross_entropy, door, encoder, ranks
from src.models import losses
from src.models.network import Architecture, Network, last_places
from tests.kernels import needs_compiler

pytestmark = needs_compiler

INPUTS = torch.tensor([[0, 3, 7, 14], [5, 2, 9, 14]])
TARGETS = torch.tensor([4, 9])


def network_of(**options: Any) -> Network:
    torch.manual_seed(0)
    sizes = {
        "hidden_units": 12,
        "num_heads": 3,
        "num_layers": 2,
        "max_len": 6,
        "dropout_rate": 0.0,
        "output_bias": True,
    }
    network = Network(13, Architecture(**{**sizes, **options}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def outcome(network: Network) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, loss and ranks."""
    hidden = door.encode(network, INPUTS, last_places(INPUTS))
    none = torch.tensor([], dtype=torch.long)
    return hidden, door.softmax_loss(network, hidden, TARGETS), door.target_ranks(network, hidden, TARGETS, none, none)


def replace_gelu(network: Network) -> None:
    for block in network.blocks:
        block.ffn[1] = nn.ReLU()


def other_eps(network: Network) -> None:
    network.blocks[1].ffn_norm.eps = 0.5


def approximate_gelu(network: Network) -> None:
    network.blocks[0].ffn[1].approximate = "tanh"


def hook(network: Network) -> None:
    network.blocks[0].attention_norm.register_forward_hook(lambda module, inputs, output: output * 2)


def pre_hook(network: Network) -> None:
    network.blocks[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1, *inputs[1:]))


def hook_of_the_output(network: Network) -> None:
    network.output.register_forward_hook(lambda module, inputs, output: -output)


def weight_norm(network: Network) -> None:
    layer = nn.utils.parametrizations.weight_norm(network.blocks[0].attention_output)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2.0)  # the norms


def own_forward(network: Network) -> None:
    network.embedding_norm.forward = lambda x: x  # type: ignore[method-assign]


def fewer_blocks(network: Network) -> None:
    del network.blocks[1]


def other_subclass(network: Network) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    layer = Scaled(12, 12)
    layer.load_state_dict(network.blocks[0].attention_output.state_dict())
    network.blocks[0].attention_output = layer


def other_heads(network: Network) -> None:
    network.blocks[1].attention.num_heads = 2


def no_norm(network: Network) -> None:
    network.embedding_norm = nn.Identity()  # type: ignore[assignment]


def frozen_length(network: Network) -> None:
    network.item_embedding.max_norm = 0.1


EDITS = (
    replace_gelu,
    other_eps,
    approximate_gelu,
    hook,
    pre_hook,
    hook_of_the_output,
    weight_norm,
    own_forward,
    fewer_blocks,
    other_subclass,
    other_heads,
    no_norm,
    frozen_length,
)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_network_computes_what_it_says(
    edit: Callable[[Network], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, edited = network_of(), network_of()
    before = outcome(plain)
    edit(edited)
    door._warn.cache_clear()
    with pytest.warns(UserWarning, match="compiled kernels are not used: .*; plain PyTorch runs") as caught:
        after = outcome(edited)
    assert len({str(warning.message) for warning in caught}) == len(caught) <= 2
    monkeypatch.setenv(compiler.SWITCH, "0")
    for one, other in zip(after, outcome(edited), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert any(not torch.allclose(one.double(), other.double()) for one, other in zip(before, after, strict=True))


def test_a_hook_of_all_modules_is_called() -> None:
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    try:
        with warnings.catch_warnings(record=True):
            outcome(network_of())
    finally:
        handle.remove()
    assert nn.GELU in seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_embeddings": False},
        {"embedding_norm_first": True, "output_transform": True, "output_bias": False},
        {"num_layers": 3, "hidden_units": 20, "num_heads": 1, "dropout_rate": 0.4, "ffn_dropout_rate": 0.0},
    ],
)
def test_kernels_are_used_for_what_the_package_builds(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for module, name in (
        (encoder, "encode"),
        (cross_entropy, "linear_cross_entropy"),
        (ranks, "linear_target_ranks"),
    ):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, name=name, original=original: (calls.append(name), original(*a))[1]
        )
    network = network_of(**options)
    network.item_embedding.sparse = True  # as the sampled losses have it
    assert door.difference(network, "encoder") is door.difference(network, "output") is None
    door._agrees(network.architecture, torch.float32)
    calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome(network)
        outcome(copy.deepcopy(network))
    assert calls == ["encode", "linear_cross_entropy", "linear_target_ranks"] * 2
    calls.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome(network)
    assert calls == ["linear_target_ranks"]  # ranks are counted in float32 in any case


def test_kernels_that_compute_something_else_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    original = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda *arguments: original(*arguments) * 1.01)
    door._agrees.cache_clear()
    door._warn.cache_clear()
    network = network_of()
    try:
        with pytest.warns(UserWarning, match="they do not compute what the modules do here"):
            hidden, loss, _ = outcome(network)
    finally:
        door._agrees.cache_clear()
    assert torch.equal(hidden, network.encode(INPUTS, last_places(INPUTS)))
    assert torch.equal(loss, losses.linear_cross_entropy(hidden, network.output.weight, network.output.bias, TARGETS))


def test_the_comparison_leaves_random_numbers_alone() -> None:
    door._agrees.cache_clear()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    outcome(network_of_size := network_of())
    torch.manual_seed(7)
    door._agrees.cache_clear()
    assert door._agrees(network_of_size.architecture, torch.float32)
    assert torch.equal(torch.rand(3), expected)
