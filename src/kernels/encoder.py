"""Embeddings and blocks of `src.models.network.Network` by `encoder.c`, for sequences of any lengths at once.

T tokens of all sequences, B sequences, N hidden states asked for, D hidden_units, V tokens of the vocabulary.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ..batch import PAD
from ..models.dropout import keep_bytes
from ..models.network import Network
from . import structures

# Tokens of sequences that go through all layers together: what they need fits in a core's own cache of a megabyte.
GROUP_TOKENS = 192
# Sums of gradients that a thread has, each with its own groups: with more than one, a quick thread can take one more.
SLOTS_PER_THREAD = 2
# But all of them together take at most 256 MiB.
SUMS_ENTRIES = 2**26
TENSORS_OF_EMBEDDING, TENSORS_PER_BLOCK = 3, 14


class Sizes(NamedTuple):
    """What `encoder.c` has to know of a network."""

    width: int  # D
    heads: int
    layers: int
    max_len: int
    norm_first: bool  # LayerNorm of the embedding before its dropout
    kept: int  # of the 256 values of a byte, how many let an entry pass in dropout; 256: there is none
    kept_attention: int
    kept_ffn: int

    @classmethod
    def of(cls, network: Network) -> "Sizes":
        """Of a network, with dropout if it is in training."""
        of = network.architecture
        rates = (of.dropout_rate, of.dropout_in_attention, of.dropout_in_ffn)
        kept = (keep_bytes(rate) if network.training else 256 for rate in rates)
        return cls(of.hidden_units, of.num_heads, of.num_layers, of.max_len, of.embedding_norm_first, *kept)


class Sequences(NamedTuple):
    """Sequences one behind the other, without padding."""

    tokens: NDArray[np.int64]  # [T]
    starts: NDArray[np.int64]  # [B + 1], where each begins, and the end
    queries: NDArray[np.int64]  # [N], numbers of tokens, sequence by sequence
    query_starts: NDArray[np.int64]  # [B + 1], where those of each begin

    @classmethod
    def of(cls, inputs: Tensor, places: Tensor) -> "Sequences":
        """From inputs [B, L], padded on the left, and places [N] of the flattened inputs, ascending.

        Raises:
            ValueError: if a place is padding, or is not behind the one before.
        """
        tokens, asked = inputs.numpy(), places.numpy()
        is_token = tokens != PAD  # [B, L]
        lengths = np.count_nonzero(is_token, axis=1)
        ends = lengths.cumsum()
        rows, columns = np.divmod(asked, max(1, tokens.shape[1]))
        back = tokens.shape[1] - columns  # from the end of the sequence
        if (np.diff(asked) <= 0).any():
            raise ValueError("places have to ascend")
        if len(asked) and asked[-1] >= tokens.size:
            raise ValueError("a place that is asked for is beyond the batch")
        if len(asked) and (asked[0] < 0 or (back > lengths[rows]).any()):
            raise ValueError("a place that is asked for is padding")
        counts = np.bincount(rows, minlength=len(tokens))
        return cls(tokens[is_token], _starts(lengths), ends[rows] - back, _starts(counts))

    def groups(self) -> NDArray[np.int64]:
        """Where to cut them into groups of about `GROUP_TOKENS`: numbers of sequences, 0 and B included."""
        group = self.starts[:-1] // GROUP_TOKENS
        cuts = np.flatnonzero(group[1:] != group[:-1]) + 1
        return np.concatenate([[0], cuts, [len(group)]]) if len(group) else np.zeros(1, dtype=np.int64)


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], counts.cumsum()])


def tensors_of(network: Network) -> list[Tensor]:
    """The table of items and the parameters of the encoder, in the order of the network."""
    embedding = (network.position_embedding.weight, network.embedding_norm.weight, network.embedding_norm.bias)
    parameters = (parameter for block in network.blocks for parameter in block.parameters())
    return [tensor.contiguous() for tensor in (network.item_embedding.weight, *embedding, *parameters)]


def encode(
    library: ctypes.CDLL, network: Network, inputs: Tensor, places: Tensor, tensors: list[Tensor] | None = None
) -> Tensor:
    """Hidden states [N, D] of the last block at places [N] of the flattened inputs [B, L].

    Dropout follows from one number of torch's global generator, whatever the number of threads.

    Args:
        library: for the type of the parameters, from `src.kernels.compiler`.
        tensors: `tensors_of` the network, of one that does not change.

    Raises:
        IndexError: if a token is none of the vocabulary.
        ValueError: if a sequence is longer than max_len.
    """
    sizes, sequences, table = Sizes.of(network), Sequences.of(inputs, places), network.item_embedding.weight
    tokens, lengths = sequences.tokens, np.diff(sequences.starts)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < len(table):
        raise IndexError(f"a token is not among the {len(table)} of the vocabulary")
    if len(lengths) and lengths.max() > sizes.max_len:
        raise ValueError(f"a sequence of {lengths.max()} tokens is longer than max_len={sizes.max_len}")
    seed = int(torch.randint(2**62, ())) if min(sizes[-3:]) < 256 else 0
    tensors = tensors or tensors_of(network)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        hidden: Tensor = _Encode.apply(library, sizes, sequences, seed, network.output.weight is table, *tensors)  # type: ignore[no-untyped-call]
        return hidden
    return _Call(library, sizes, sequences, seed, tensors).forward(for_backward=False)


class _Call:
    """One batch in the hands of `encoder.c`: its arguments, and the memory that they point to."""

    def __init__(
        self, library: ctypes.CDLL, sizes: Sizes, sequences: Sequences, seed: int, tensors: Sequence[Tensor]
    ) -> None:
        self.library = library
        self.sequences = sequences
        self.tensors = tensors
        self.memory: dict[str, Any] = {"group_starts": sequences.groups(), **sequences._asdict()}
        threads, groups = torch.get_num_threads(), len(self.memory["group_starts"]) - 1
        self.arguments = structures.Encoder(
            **sizes._asdict(), seed=seed, sequences=len(sequences.starts) - 1, groups=groups, threads=threads
        )
        slots = min(groups, SLOTS_PER_THREAD * threads, SUMS_ENTRIES // library.sums_size(self.pointer))
        self.arguments.slots = max(1, slots if threads > 1 else 1)
        for name, array in self.memory.items():
            setattr(self.arguments, name, array.ctypes.data)
        self._lend("packed", library.packed_size(self.pointer))
        self.arguments.table = tensors[0].data_ptr()

    @property
    def pointer(self) -> Any:
        return ctypes.byref(self.arguments)

    def _lend(self, name: str, entries: int) -> Tensor:
        return self._point(name, self.tensors[0].new_empty(entries))

    def _point(self, name: str, tensor: Tensor) -> Tensor:
        self.memory[name] = tensor
        setattr(self.arguments, name, tensor.data_ptr())
        return tensor

    def forward(self, for_backward: bool) -> Tensor:
        if for_backward:
            starts = self.memory["saved_starts"] = np.empty(self.arguments.groups + 1, dtype=np.int64)
            self.arguments.saved_starts = starts.ctypes.data
            self.library.plan(self.pointer, ctypes.c_void_p(starts.ctypes.data))
            self._lend("saved", int(starts[-1]))
        count, width = len(self.sequences.queries), self.tensors[0].shape[1]
        hidden = self._lend("hidden", count * width).view(count, width)
        self._with_scratch(self.library.encode, "parameters", self.tensors[1:])
        del self.memory["hidden"]
        return hidden

    def backward(self, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From that of the hidden states to those of the rows that were looked up, [T, D], and of the parameters."""
        self._point("hidden_gradient", gradient)
        width = self.tensors[0].shape[1]
        rows = self._lend("token_gradient", len(self.sequences.tokens) * width).view(-1, width)
        self._lend("sums", self.arguments.slots * self.library.sums_size(self.pointer))
        gradients = [torch.empty_like(tensor) for tensor in self.tensors[1:]]
        self._with_scratch(self.library.encode_backward, "gradients", gradients)
        for name in ("hidden_gradient", "token_gradient", "sums"):
            del self.memory[name]
        return rows, gradients

    def _with_scratch(self, function: Any, name: str, tensors: Sequence[Tensor]) -> None:
        addresses = _pointers(tensors)
        self.memory[name] = (ctypes.c_void_p * len(addresses))(*addresses)
        setattr(self.arguments, name, ctypes.addressof(self.memory[name]))
        self.arguments.scratch_size = self.library.scratch_size(self.pointer)
        self._lend("scratch", self.arguments.threads * self.arguments.scratch_size)
        function(self.pointer)
        del self.memory["scratch"]


def _pointers(tensors: Sequence[Tensor]) -> list[int]:
    """Addresses, in the order of `encoder.c`, which has key and value apart, and LayerNorms behind linear layers."""
    addresses = [tensor.data_ptr() for tensor in tensors]
    ordered = addresses[:TENSORS_OF_EMBEDDING]
    for first in range(TENSORS_OF_EMBEDDING, len(tensors), TENSORS_PER_BLOCK):
        query, query_bias, both, both_bias, *others = addresses[first : first + TENSORS_PER_BLOCK]
        weight, bias = tensors[first + 2], tensors[first + 3]
        value = both + weight.numel() // 2 * weight.element_size()
        value_bias = both_bias + bias.numel() // 2 * bias.element_size()
        ordered += [query, query_bias, both, both_bias, value, value_bias]
        ordered += [*others[:2], *others[4:8], *others[2:4], *others[8:]]
    return ordered


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        library: ctypes.CDLL,
        sizes: Sizes,
        sequences: Sequences,
        seed: int,
        has_sparse_gradient: bool,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.call = call = _Call(library, sizes, sequences, seed, tensors)  # type: ignore[attr-defined]
        ctx.has_sparse_gradient = has_sparse_gradient  # type: ignore[attr-defined]
        ctx.save_for_backward(*tensors)  # an error if one of them is changed before the backward pass
        return call.forward(for_backward=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Any, ...]:
        table = ctx.saved_tensors[0]  # type: ignore[attr-defined]
        call: _Call = ctx.call  # type: ignore[attr-defined]
        rows, gradients = call.backward(gradient.contiguous())
        tokens = torch.from_numpy(call.sequences.tokens)
        if ctx.has_sparse_gradient:  # type: ignore[attr-defined]
            table_gradient = torch.sparse_coo_tensor(tokens[None], rows, table.shape, check_invariants=False)
        else:
            table_gradient = torch.zeros_like(table).index_add_(0, tokens, rows)
        return None, None, None, None, None, table_gradient, *gradients
