"""Dropout and attention as the network uses them: fast on a CPU, equal to the plain formulas.

B batch, H heads, M queries, L keys, d head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def dropout(x: Tensor, rate: float, is_training: bool) -> Tensor:
    """Dropout (same shape as `x`). On a CPU one random byte decides each entry, which is several times faster.

    There the rate is rounded to a multiple of 1/256, and the kept entries are scaled by what that rate calls for, so
    that the expectation is exact. Follows torch's global generator.
    """
    if not is_training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate, training=True)
    dropped: Tensor = _ByteDropout.apply(x, keep_bytes(rate))  # type: ignore[no-untyped-call]
    return dropped


def keep_bytes(rate: float) -> int:
    """How many of the 256 values of a byte keep an entry: at least one, so that something is left."""
    return max(1, 256 - round(256 * rate))


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, kept_of_256: int) -> Tensor:
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        is_kept = words.view(torch.uint8)[: x.numel()].view(x.shape).lt_(kept_of_256)  # 0 or 1, in place
        ctx.save_for_backward(is_kept)
        ctx.scale = 256.0 / kept_of_256  # type: ignore[attr-defined]
        return (x * is_kept).mul_(ctx.scale)  # type: ignore[attr-defined]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (is_kept,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return (gradient * is_kept).mul_(ctx.scale), None  # type: ignore[attr-defined]


def attention(q: Tensor, k: Tensor, v: Tensor, is_visible: Tensor | None, dropout_rate: float) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with dropout on the softmax (paper equation 2).

    torch's own kernel does it, except on a CPU with dropout, where it is slow: there it is written out.

    Args:
        q: [B, H, M, d].
        k, v: [B, H, L, d].
        is_visible: [B, 1, 1, L] bool, False at padding, or None if there is none.
        dropout_rate: 0 outside training.

    Returns:
        [B, H, M, d].
    """
    if q.device.type != "cpu" or dropout_rate == 0.0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=is_visible, dropout_p=dropout_rate)
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)  # [B, H, M, L]
    if is_visible is not None:
        scores += torch.where(is_visible, 0.0, -math.inf)
    return dropout(scores.softmax(dim=-1), dropout_rate, is_training=True) @ v
