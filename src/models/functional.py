"""Dropout and attention as the network uses them: fast on a CPU, equal to the plain formulas.

B batch, M queries, L keys, D hidden_units, H heads, d = D / H width of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Attention on a CPU takes so many (query, key) pairs at a time: 1 MiB, which stays in the cores' own caches.
PAIRS_AT_A_TIME = 2**18


def dropout(x: Tensor, rate: float, is_training: bool) -> Tensor:
    """Dropout (same shape as `x`). On a CPU one random byte decides each entry, which is several times faster.

    There the rate is rounded to a multiple of 1/256, and the kept entries are scaled by what that rate calls for, so
    that the expectation is exact. Follows torch's global generator.
    """
    if not is_training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate, training=True)
    kept = keep_bytes(rate)
    return x * _kept(x.shape, kept).to(x.dtype).mul_(256.0 / kept)


def keep_bytes(rate: float) -> int:
    """How many of the 256 values of a byte keep an entry: at least one, so that something is left."""
    return max(1, 256 - round(256 * rate))


def _kept(shape: torch.Size, kept_of_256: int) -> Tensor:
    """Which entries dropout keeps, 1 or 0 as uint8: one random byte decides each.

    To multiply by them it is faster to have them in its own type first than to leave that to the product.
    """
    count = shape.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[:count].view(shape).lt_(kept_of_256)  # in place


def apart(table: Tensor) -> tuple[Tensor, Tensor]:
    """A table [V, D] twice, for looking rows up, with a sparse gradient, and for products with all of it.

    The gradient of the few rows is added to the dense one in place; autograd would copy the dense one for it.
    """
    lookup, matrix = _Apart.apply(table)  # type: ignore[no-untyped-call]
    return lookup, matrix


class Reused:
    """Memory for a large product on a CPU, written to again each time: new memory is cleared first, page by page.

    It only takes effect in inference mode, and without autocast.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def __reduce__(self) -> tuple[type["Reused"], tuple[()]]:
        return Reused, ()  # a copy has memory of its own

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x` weight^T + bias: [B, D], [V, D], [V] -> [B, V], which the next call overwrites."""
        if x.device.type != "cpu" or not torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
            return F.linear(x, weight, bias)
        shape = (len(x), len(weight))
        if self._memory is None or self._memory.numel() < math.prod(shape) or self._memory.dtype != x.dtype:
            self._memory = x.new_empty(math.prod(shape))
        out = self._memory[: math.prod(shape)].view(shape)
        return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return table.view_as(table), table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, rows: Tensor | None, dense: Tensor | None) -> Tensor | None:
        if rows is None or dense is None:
            return rows if dense is None else dense
        return dense.add_(rows)


def attention(q: Tensor, key_value: Tensor, num_heads: int, is_visible: Tensor | None, dropout_rate: float) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in each head, with dropout on the softmax (paper equations 1 and 2).

    torch's own kernel does it, except on a CPU with dropout, where it is slow.

    Args:
        q: [B, M, D], the heads side by side.
        key_value: [B, L, 2 D], so k and so v, one behind the other.
        is_visible: [B, 1, 1, L] bool, False at padding, or None if there is none.
        dropout_rate: 0 outside training.

    Returns:
        [B, M, D].
    """
    if q.device.type != "cpu" or dropout_rate == 0.0:
        # [B, H, ., d] each
        queries, keys, values = (
            x.view(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (q, *key_value.chunk(2, dim=2))
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=is_visible, dropout_p=dropout_rate)
        return mixed.transpose(1, 2).flatten(2)
    kept = keep_bytes(dropout_rate)
    dropped: Tensor = _DropoutAttention.apply(q, key_value, num_heads, is_visible, kept)  # type: ignore[no-untyped-call]
    return dropped


class _DropoutAttention(torch.autograd.Function):
    """Attention some rows at a time, so that what stands between its products stays in cache.

    In here the heads of a row are rows of their own, side by side in memory: B H rows in all.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: FunctionCtx, q: Tensor, key_value: Tensor, num_heads: int, is_visible: Tensor | None, kept_of_256: int
    ) -> Tensor:
        q = _heads_apart(q, num_heads, 1.0 / math.sqrt(q.shape[2] // num_heads))  # [B H, M, d]
        apart = key_value.view(*key_value.shape[:2], 2, num_heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        k, v = apart.flatten(1, 2)  # [B H, L, d] each
        hides = None
        if is_visible is not None:
            hides = torch.where(is_visible[:, 0], 0.0, -math.inf).to(q.dtype).repeat_interleave(num_heads, dim=0)
        mixed = torch.empty_like(q)
        softmaxes, kepts = [], []
        for some in _pieces(q, k):
            scores = torch.bmm(q[some], k[some].mT)  # [some, M, L]
            if hides is not None:
                scores += hides[some]
            softmax = scores.softmax(dim=2)
            kept = _kept(softmax.shape, kept_of_256).to(softmax.dtype).mul_(softmax)
            torch.bmm(kept, v[some], out=mixed[some])
            softmaxes.append(softmax)
            kepts.append(kept)
        ctx.save_for_backward(q, k, v, mixed, *softmaxes, *kepts)
        ctx.num_heads, ctx.scale = num_heads, 256.0 / kept_of_256  # type: ignore[attr-defined]
        return _heads_together(mixed, num_heads, ctx.scale)  # type: ignore[attr-defined]

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, *pieces = ctx.saved_tensors  # type: ignore[attr-defined]
        num_heads: int = ctx.num_heads  # type: ignore[attr-defined]
        gradient = _heads_apart(gradient, num_heads, ctx.scale)  # type: ignore[attr-defined]
        # Summed over the keys, softmax times its gradient is mixed times its own, which is far smaller.
        sums = (gradient * mixed).sum(dim=2, keepdim=True)  # [B H, M, 1]
        q_gradient, apart = torch.empty_like(q), k.new_empty(2, *k.shape)
        k_gradient, v_gradient = apart
        half = len(pieces) // 2
        for some, softmax, kept in zip(_pieces(q, k), pieces[:half], pieces[half:], strict=True):
            torch.bmm(kept.mT, gradient[some], out=v_gradient[some])
            scores_gradient = torch.bmm(gradient[some], v[some].mT).mul_(kept)  # [some, M, L]
            scores_gradient.addcmul_(softmax, sums[some], value=-1.0)
            torch.bmm(scores_gradient, k[some], out=q_gradient[some])
            torch.bmm(scores_gradient.mT, q[some], out=k_gradient[some])
        together = apart.view(2, -1, num_heads, *k.shape[1:]).permute(1, 3, 0, 2, 4).flatten(2)  # [B, L, 2 D]
        return _heads_together(q_gradient, num_heads, 1.0 / math.sqrt(q.shape[2])), together, None, None, None


def _heads_apart(x: Tensor, num_heads: int, factor: float) -> Tensor:
    """`x` times a number: [B, M, D] -> [B H, M, d]."""
    heads = x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)
    return torch.mul(heads, factor, out=x.new_empty(heads.shape)).flatten(0, 1)


def _heads_together(x: Tensor, num_heads: int, factor: float) -> Tensor:
    """`x` times a number: [B H, M, d] -> [B, M, D]."""
    heads = x.view(-1, num_heads, *x.shape[1:]).transpose(1, 2)
    return torch.mul(heads, factor, out=x.new_empty(heads.shape)).flatten(2)


def _pieces(q: Tensor, k: Tensor) -> list[slice]:
    """Where to cut the rows of q [B H, M, d] and k [B H, L, d]."""
    rows = max(1, PAIRS_AT_A_TIME // (q.shape[1] * k.shape[1]))
    return [slice(row, row + rows) for row in range(0, len(q), rows)]
