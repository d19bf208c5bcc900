"""The one door to the compiled CPU kernels: what the package computes of a network in training, ranking and prediction.

Each function computes what the modules of `src.models.network` say. Kernels do so where they apply: on a CPU, in
float32 or float64, for a network that is exactly what `Network` builds, and after they agreed with the modules once in
this process. Otherwise plain PyTorch runs, and one warning says why.

N targets or places, B rows, L length, D hidden_units, S seen pairs.
"""

import ctypes
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .. import ranking
from ..batch import PAD, EvalBatch, PredictBatch
from ..models import losses
from ..models.network import Architecture, Network, last_places
from . import compiler, cross_entropy, encoder, ranks

# What somebody may have attached to a module, or to all modules of the process.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")
GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
# Attributes that change nothing that is computed: whether the table's gradient is sparse.
HARMLESS = {"sparse"}
# Of float32, kernels and modules differ by some units of the last place, more after several blocks.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}
ITEMS = 29  # of the network that is compared


def encode(network: Network, inputs: Tensor, places: Tensor) -> Tensor:
    """`network.encode(inputs, places)`: [B, L] int64, [N] places of the flattened inputs, none padding -> [N, D].

    Kernels take places that ascend, as those of a batch without unused slots do.
    """
    library = _library(network, "encoder")
    if library is None or bool((places.diff() <= 0).any()):
        return network.encode(inputs, places)
    return encoder.encode(library, network, inputs, places)


def softmax_loss(network: Network, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of `network.logits(hidden)` [N, V] against the targets [N] in use; a scalar."""
    library = _library(network, "output")
    hidden, weight, bias = network.output_transform(hidden), network.output.weight, network.output.bias
    is_used = targets != PAD
    if not torch.compiler.is_compiling() and _edited_output(network) is not None:  # else looked at beforehand
        total = F.cross_entropy(network.output(hidden).float(), targets, ignore_index=PAD, reduction="sum")
        return total / is_used.sum().clamp(min=1)
    if library is None:
        return losses.linear_cross_entropy(hidden, weight, bias, targets)
    if not is_used.all():
        hidden, targets = hidden[is_used], targets[is_used]
        if len(targets) == 0:
            return hidden.sum() * 0.0
    return cross_entropy.linear_cross_entropy(library, hidden, weight, bias, targets)


def target_ranks(network: Network, hidden: Tensor, targets: Tensor, seen_rows: Tensor, seen_items: Tensor) -> Tensor:
    """0-based rank of each target [B] among all candidates, by `network.logits(hidden)`: [B] int64.

    Args:
        seen_rows, seen_items: [S] int64 each, as in `src.ranking.candidate_scores`.

    Raises:
        UserError: if a score is NaN or infinite.
    """
    with ranking.without_autocast(hidden.device):
        library = _library(network, "output")
        hidden, weight, bias = _to_rank(network, hidden)
    if library is not None:
        counted = ranks.linear_target_ranks(library, hidden, weight, bias, targets, seen_rows, seen_items)
        if counted is not None:
            is_excluded = (targets == PAD) | (targets == len(weight) - 1)
            is_excluded[seen_rows[seen_items == targets[seen_rows]]] = True
            return counted.masked_fill(is_excluded, ranking.UNRANKED)
    return ranking.linear_target_ranks(hidden, weight, bias, targets, seen_rows, seen_items, _edited_output(network))


def candidate_scores(
    network: Network, hidden: Tensor, seen_rows: Tensor, seen_items: Tensor, columns: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """`network.logits(hidden)` as `src.ranking.linear_candidate_scores` gives them, some rows at a time.

    Args:
        columns: [D, V], the output matrix transposed, in this order in memory, which for few rows is faster; or None.
    """
    with ranking.without_autocast(hidden.device):
        hidden, weight, bias = _to_rank(network, hidden)
    weight = weight if columns is None else columns.t()
    return ranking.linear_candidate_scores(hidden, weight, bias, seen_rows, seen_items, _edited_output(network))


def last_states(network: Network, inputs: Tensor, owners: Tensor | None = None) -> Tensor:
    """Hidden states where histories end in [MASK], of as much of them as there are positions for.

    Args:
        inputs: [B, L] int64, padded on the left; with owners, as in `src.batch.EvalBatch`.

    Returns:
        [B, D].
    """
    inputs = inputs[:, -network.max_len :]
    hidden = encode(network, inputs, last_places(inputs))
    return hidden if owners is None else hidden[torch.unique_consecutive(owners, return_inverse=True)[1]]


class Fixed:
    """A network on a CPU that nobody changes any more: what it consists of is looked at once, not in every call.

    Attributes:
        columns: [D, V], the output matrix in another order in memory; None if the output layer is more than it.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        weight = network.output.weight.detach()
        is_plain = weight.device.type == "cpu" and difference(network, "output") is None
        self.columns = (
            weight.to(torch.promote_types(weight.dtype, torch.float32)).t().contiguous() if is_plain else None
        )
        self._library = _library(network, "encoder")
        self._tensors = encoder.tensors_of(network) if self._library is not None else None

    def last_states(self, inputs: Tensor) -> Tensor:
        """As `last_states`."""
        if self._library is None:
            return last_states(self.network, inputs)
        inputs = inputs[:, -self.network.max_len :]
        return encoder.encode(self._library, self.network, inputs, last_places(inputs), self._tensors)


def next_item_scores(
    networks: Sequence[Network | Fixed], batch: PredictBatch | EvalBatch
) -> Iterator[tuple[slice, Tensor]]:
    """Scores for the item after each history, as `candidate_scores` gives them.

    Of several networks, an ensemble, the mean of their logits: it orders items as the mean of their log-softmax does,
    since a softmax takes the same from all logits of a row.

    Args:
        networks: of one catalogue.
    """
    owners = batch.owners if isinstance(batch, EvalBatch) else None
    states = [
        each.last_states(batch.inputs) if isinstance(each, Fixed) else last_states(each, batch.inputs, owners)
        for each in networks
    ]  # [B, D] each

    def scores_of(number: int, rows: slice, seen_rows: Tensor, seen_items: Tensor) -> Iterator[tuple[slice, Tensor]]:
        each, hidden = networks[number], states[number][rows]
        if isinstance(each, Fixed):
            return candidate_scores(each.network, hidden, seen_rows, seen_items, each.columns)
        return candidate_scores(each, hidden, seen_rows, seen_items)

    for rows, scores in scores_of(0, slice(None), batch.seen_rows, batch.seen_items):
        for number in range(1, len(networks)):
            seen = (batch.seen_rows >= rows.start) & (batch.seen_rows < rows.stop)
            [(_, more)] = scores_of(number, rows, batch.seen_rows[seen] - rows.start, batch.seen_items[seen])
            scores += more
        yield rows, scores.div_(len(networks)) if len(networks) > 1 else scores


def _edited_output(network: Network) -> Callable[[Tensor], Tensor] | None:
    """The output layer, scores in float32 at least, if it is more than a product with its matrix."""
    if difference(network, "output") is None:
        return None

    def linear(hidden: Tensor) -> Tensor:
        scores: Tensor = network.output(hidden.to(network.output.weight.dtype))
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    return linear


def _to_rank(network: Network, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the output layer multiplies when it ranks: [B, D], [V, D] and [V] or None, of one type."""
    transformed = network.output_transform(hidden.to(network.output.weight.dtype))
    return ranking.in_full_precision(transformed, network.output.weight, network.output.bias)


def _library(network: Network, used: str) -> ctypes.CDLL | None:
    """The kernels, where they apply to what is `used` of this network, "encoder" or "output"."""
    weight = network.output.weight
    if weight.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return None
    library = compiler.library(weight.dtype)
    if library is None:
        return None
    reason = difference(network, used)
    if reason is None and not _agrees(network.architecture, weight.dtype):
        reason = "they do not compute what the modules do here"
    if reason is not None:
        _warn(reason)
        return None
    return library


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"compiled kernels are not used: {reason}; plain PyTorch runs", stacklevel=4)


class _Expected(NamedTuple):
    """A module as `Network` builds it: its class's forward, its attributes, and the shapes of its parameters."""

    name: str
    parent: str
    forward: Any
    attributes: dict[str, Any]
    shapes: dict[str, torch.Size | None]
    children: tuple[str, ...]


def difference(network: Network, used: str = "encoder") -> str | None:
    """What makes a network another one than `Network` builds of its architecture, in a few words; None if nothing.

    Args:
        used: "encoder" looks at embeddings and blocks, "output" at the output layer; what stands between them is run
            as a module in any case.
    """
    if type(network) is not Network:
        return f"the network is a {type(network).__name__}"
    hook = next((name for name in GLOBAL_HOOKS if getattr(torch_module, name)), None)
    if hook is not None:
        return f"torch has {hook.lstrip('_').replace('_', ' ')}"
    is_training, dtype = network.training, network.output.weight.dtype
    found: dict[str, nn.Module] = {"": network}
    for expected in _expected(network.num_items, network.architecture)[used]:
        name = expected.name
        module = network if not name else found[expected.parent]._modules[name.rpartition(".")[2]]
        if module is None or type(module).forward is not expected.forward:
            return f"{name or 'the network'} is a {type(module).__name__}, or has another forward"
        found[name] = module
        state = vars(module)
        for attribute in HOOKS:
            if state.get(attribute):
                return f"{name or 'the network'} has hooks, or is compiled"
        if "forward" in state or tuple(module._modules) != expected.children or module._buffers:
            return f"{name or 'the network'} has another forward, other modules or buffers"
        if module.training is not is_training:
            return f"{name} is in another mode than the network"
        for attribute, value in expected.attributes.items():
            if not _same(state.get(attribute), value):
                return f"{name or 'the network'} has {attribute}={state.get(attribute)}, not {value}"
        if module._parameters.keys() != expected.shapes.keys():
            return f"{name} has other parameters"
        for key, parameter in module._parameters.items():
            shape = expected.shapes[key]
            if parameter is None or shape is None:
                if parameter is not None or shape is not None:
                    return f"{name}.{key} is missing, or too much"
            elif type(parameter) is not nn.Parameter or parameter.dtype != dtype or parameter.shape != shape:
                return f"{name}.{key} is no parameter of shape {tuple(shape)} and {dtype}"
    is_shared = network.output.weight is network.item_embedding.weight
    return None if is_shared == network.architecture.share_embeddings else "the output matrix is another one"


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and one == other)


@functools.lru_cache(maxsize=8)
def _expected(num_items: int, architecture: Architecture) -> dict[str, list[_Expected]]:
    with torch.random.fork_rng(devices=[]):
        built = Network(1, architecture)  # with a catalogue of one item: what else is the same in any network
    sizes = {"num_items": num_items, "num_embeddings": num_items + 2, "out_features": num_items + 2}
    parts: dict[str, list[_Expected]] = {"encoder": [], "output": []}
    for name, module in built.named_modules():
        if name.startswith("output_transform"):
            continue
        attributes = {k: v for k, v in vars(module).items() if k[0] != "_" and k != "training" and k not in HARMLESS}
        shapes = {k: None if p is None else p.shape for k, p in module._parameters.items()}
        if name in ("", "item_embedding", "output"):
            attributes |= {k: v for k, v in sizes.items() if k in attributes}
            shapes = {k: shape and torch.Size([num_items + 2, *shape[1:]]) for k, shape in shapes.items()}
        part = parts["output" if name == "output" else "encoder"]
        part.append(
            _Expected(name, name.rpartition(".")[0], type(module).forward, attributes, shapes, (*module._modules,))
        )
    return parts


@functools.cache
def _agrees(architecture: Architecture, dtype: torch.dtype) -> bool:
    """Whether kernels and modules give the same states, loss, gradients and ranks on two rows, without dropout."""
    library = compiler.library(dtype)
    assert library is not None
    architecture = replace(architecture, dropout_rate=0.0, attention_dropout_rate=0.0, ffn_dropout_rate=0.0)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        network = Network(ITEMS, architecture).to(dtype)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(0.0, 0.3, generator=generator)
            for module in network.modules():
                if isinstance(module, nn.LayerNorm):
                    module.weight.add_(1.0)
        length = min(5, architecture.max_len)
        inputs = torch.randint(1, ITEMS + 2, (2, length), generator=generator)
        inputs[0, : length - 1] = PAD
        places, targets, seen = last_places(inputs), torch.tensor([3, ITEMS]), torch.tensor([0, 1])

        def outcome(hidden: Tensor, loss: Tensor, ranked: Tensor) -> list[Tensor]:
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            return [hidden.detach(), loss.detach(), ranked, *(gradient.to_dense() for gradient in gradients)]

        def transformed(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            return network.output_transform(hidden), network.output.weight, network.output.bias

        def detached(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            with torch.no_grad():
                return transformed(hidden.detach())

        plain = network.encode(inputs, places)
        by_modules = outcome(
            plain,
            losses.linear_cross_entropy(*transformed(plain), targets),
            ranking.linear_target_ranks(*detached(plain), targets, seen, seen),
        )
        hidden = encoder.encode(library, network, inputs, places)
        counted = ranks.linear_target_ranks(library, *detached(hidden), targets, seen, seen)
        if counted is None:
            return False
        by_kernels = outcome(
            hidden, cross_entropy.linear_cross_entropy(library, *transformed(hidden), targets), counted
        )
    return all(
        torch.allclose(
            one.double(), other.double(), rtol=0, atol=TOLERANCES[dtype] * (1.0 + float(other.double().abs().max()))
        )
        for one, other in zip(by_kernels, by_modules, strict=True)
    )
