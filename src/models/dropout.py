"""Dropout, and attention with dropout, whose random draws cost little on a CPU too; elsewhere torch's own.

`F.dropout` draws a number of 64 bits for each entry there. Without compiled kernels that is a fifth of a step of
training, and with the weights of long sequences' attention two fifths (docs/performance.md).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`nn.Dropout`; see `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p if self.training else 0.0)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Dropout (same shape as `x`). On a CPU one random byte decides each entry.

    There the rate is rounded to a multiple of 1/256, and the kept entries are scaled by what that rate calls for, so
    that the expectation is exact. Follows torch's global generator.
    """
    if rate == 0.0 or x.device.type != "cpu":
        return F.dropout(x, rate)
    kept, count = keep_bytes(rate), x.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None)
    is_kept = words.view(torch.uint8)[:count].view(x.shape).lt_(kept)  # in place, 1 or 0
    return x * is_kept.to(x.dtype).mul_(256.0 / kept)  # cast first: faster than leaving it to the product


def keep_bytes(rate: float) -> int:
    """How many of the 256 values of a byte keep an entry: at least one, so that something is left."""
    return max(1, 256 - round(256 * rate))


def attention(q: Tensor, k: Tensor, v: Tensor, is_visible: Tensor, rate: float) -> Tensor:
    """`F.scaled_dot_product_attention`: [..., M, d], [..., L, d] twice, bool [..., 1, L] -> [..., M, d]."""
    if rate == 0.0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=is_visible, dropout_p=rate)
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)  # [..., M, L]
    return dropout(scores.masked_fill(~is_visible, -math.inf).softmax(dim=-1), rate) @ v
