"""The losses, from hidden states and the rows of the output matrix, each averaged over the targets.

N targets, D hidden_units, V tokens, K negatives.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from src.native import compiler, cross_entropy

# Scores are made in tiles of at most so many rows and bytes of a row, 2 MB each, some for each thread at a time. Round
# numbers rather than powers of two, since rows that lie a power of two apart compete for the same cache lines.
TILE_ROWS = 256
TILE_ROW_BYTES = 8000
TILES_PER_THREAD = 2
# Their rows begin where a line of cache does: products of rows that do not take up to a tenth longer.
CACHE_LINE = 64
# Rows are taken so many at a time that their scores of all tokens, held between the two passes over the tiles, are at
# most 64 MiB, but not fewer than so many: the whole output matrix is read for each block of rows.
HELD_ENTRIES = 2**24
LEAST_ROWS = 32
# Sums of exponentials up to here, and down to its inverse, are exact enough in float32 and bfloat16.
LARGEST_SUM = 1e30
LN_2 = math.log(2.0)


def sampled_softmax(true_scores: Tensor, negative_scores: Tensor, log_counts: Tensor) -> Tensor:
    """Cross entropy with the sum over all other tokens estimated from a sample; a scalar.

    Each negative stands for as many tokens as it is drawn less often than once: its score is corrected by the log of
    how often it is expected in the sample (Bengio and Senecal 2008). The target is always there, so it is not.

    Args:
        true_scores: [N].
        negative_scores: [N, K], -inf where a negative is the target.
        log_counts: [K], log of the expected number of times that each negative is in the sample.
    """
    corrected = torch.cat([true_scores[:, None], negative_scores - log_counts], dim=1)  # [N, K + 1]
    return (corrected.logsumexp(dim=1) - true_scores).mean()


def gbce(true_scores: Tensor, negative_scores: Tensor, sampling_rate: float, calibration: float) -> Tensor:
    """Generalised binary cross entropy (Petrov and Macdonald 2023, gSASRec, equations 9 and 11); a scalar.

    Args:
        true_scores: [N].
        negative_scores: [N, K], -inf where a negative is the target.
        sampling_rate: K over the number of other items, the paper's alpha.
        calibration: the paper's t: 0 is plain binary cross entropy, 1 predicts calibrated probabilities.
    """
    beta = sampling_rate * (calibration * (1.0 - 1.0 / sampling_rate) + 1.0 / sampling_rate)
    total = beta * F.logsigmoid(true_scores) + F.logsigmoid(-negative_scores).sum(dim=1)  # [N]
    return -total.mean() / (1 + negative_scores.shape[1])


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """cross_entropy(hidden weight^T + bias, targets), averaged over the targets; a scalar.

    On a CPU the logits are made block by block and turned into the gradient in place, so that they stay in cache, by
    compiled code where there is a compiler. Under autocast the products are in its type there, by torch, and what is
    summed over tokens or rows in float32.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [N] int64.
    """
    if hidden.device.type != "cpu":
        return F.cross_entropy(F.linear(hidden, weight, bias), targets)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    library = compiler.library(hidden.dtype) if dtype is None else None
    if library is not None:
        return cross_entropy.linear_cross_entropy(library, hidden, weight, bias, targets)
    if dtype == torch.float16:  # exponentials are beyond its range
        dtype = torch.float32
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, dtype)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Forms the gradients in the forward pass: the loss is a scalar, so that they only have to be scaled later.

    A block of rows takes each tile of the vocabulary twice. First come the exponentials of its logits, their sum, and
    the sum of the output rows that they weight; with the sums of all tiles, the gradient of the tile's own rows.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype | None,
    ) -> Tensor:
        count, tokens = len(hidden), len(weight)
        blocks = -(-count // min(TILE_ROWS, max(LEAST_ROWS, HELD_ENTRIES // tokens)))
        most_rows = -(-count // blocks)
        dtype = dtype or hidden.dtype
        hidden_factor, weight_factor = hidden.to(dtype), weight.to(dtype)
        # exp(x) is 2^(x / ln 2), which takes torch a third of the time.
        binary_hidden, binary_bias = (hidden / LN_2).to(dtype), None if bias is None else bias / LN_2
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.empty_like(weight)
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        normalisers = hidden.new_empty(count)
        groups = _groups_of_tiles(tokens, dtype.itemsize, torch.get_num_threads())
        # Piece by piece: the allocator gives a single large one back to the system, which clears it for every step.
        held = [hidden_factor.new_empty(most_rows * group.tokens) for group in groups]

        def add_gradient(group: _Tiles, exponentials: Tensor, scaled: Tensor, scale: Tensor, is_first: bool) -> None:
            transposed, gradient = exponentials.mT, group.of(weight_gradient)  # [T, W, R], [T, W, D]
            if dtype == gradient.dtype:
                gradient.baddbmm_(transposed, scaled.expand(group.number, -1, -1), beta=0 if is_first else 1)
            else:
                product = transposed @ scaled
                gradient.copy_(product) if is_first else gradient.add_(product)
            if bias_gradient is not None:
                group.of(bias_gradient[:, None]).add_(transposed @ scale.to(dtype))

        for start in range(0, count, most_rows):
            h = hidden_factor[start : start + most_rows]  # [R, D]
            rows = len(h)
            tiles = [
                (group, group.of(weight_factor), group.shaped(to, rows)) for group, to in zip(groups, held, strict=True)
            ]
            binary = binary_hidden[start : start + rows]
            total, weighted, shift = _powers_of_two(binary, binary_bias, tiles)
            normalisers[start : start + rows] = total.log() + shift * LN_2
            scale = (total * count).reciprocal_()[:, None]  # [R, 1]
            torch.mul(weighted, scale, out=hidden_gradient[start : start + rows])
            scaled = (h * scale).to(dtype)
            for group, _, exponentials in reversed(tiles):  # the last ones may still be in cache
                add_gradient(group, exponentials, scaled, scale, start == 0)
        weight_gradient.index_add_(0, targets, hidden, alpha=-1.0 / count)
        true_rows = weight[targets]  # [N, D]
        true_logits = (hidden * true_rows).sum(dim=1)
        hidden_gradient.sub_(true_rows, alpha=1.0 / count)
        if bias is not None and bias_gradient is not None:
            true_logits += bias[targets]
            bias_gradient.index_add_(0, targets, bias.new_ones(count), alpha=-1.0 / count)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)  # type: ignore[arg-type]
        return (normalisers - true_logits).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient, bias_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        if gradient != 1.0:  # nearly always 1: no pass over a large matrix for that
            hidden_gradient, weight_gradient = hidden_gradient * gradient, weight_gradient * gradient
            bias_gradient = None if bias_gradient is None else bias_gradient * gradient
        return hidden_gradient, weight_gradient, bias_gradient, None, None


class _Tiles(NamedTuple):
    """Neighbouring tiles of the vocabulary, all of the same width."""

    first_token: int
    width: int  # W
    start: int  # number of the first among all tiles
    number: int  # T

    @property
    def stop(self) -> int:
        return self.start + self.number

    @property
    def tokens(self) -> int:
        return self.width * self.number

    def of(self, matrix: Tensor) -> Tensor:
        """Their rows of a matrix [V, ...]: [T, W, ...]."""
        rows = matrix[self.first_token : self.first_token + self.tokens]
        return rows.view(self.number, self.width, *rows.shape[1:])

    def shaped(self, memory: Tensor, rows: int) -> Tensor:
        """The beginning of flat memory as [T, rows, W]."""
        return memory[: self.tokens * rows].view(self.number, rows, self.width)


def _powers_of_two(
    h: Tensor, bias: Tensor | None, tiles: Sequence[tuple[_Tiles, Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Fill the memory of all tiles with 2^(logits - shift).

    The shift is 0 as long as the sums are numbers that float32 can well tell: the largest logit of each row, which a
    softmax usually subtracts, costs two passes over all of them. Otherwise all is done again with it.

    Args:
        h: [R, D], over ln 2, so that the powers are the exponentials of the logits.
        bias: [V] or None, over ln 2 too.
        tiles: some neighbours at a time, with their rows of the matrix [T, W, D] and memory [T, R, W].

    Returns:
        Their sums [R], the sums of the matrix's rows that they weight [R, D], both float32 at least, and the
        shift, [R] or 0.
    """

    def logits(group: _Tiles, rows: Tensor, out: Tensor) -> Tensor:
        product = torch.bmm(h.expand(group.number, -1, -1), rows.mT, out=out)  # [T, R, W]
        return product if bias is None else product.add_(group.of(bias[:, None]).mT)

    def sums(shift: Tensor | None) -> tuple[Tensor, Tensor]:
        added = torch.promote_types(h.dtype, torch.float32)
        parts = h.new_empty(tiles[-1][0].stop, len(h), dtype=added)
        weighted = h.new_empty(tiles[-1][0].stop, *h.shape)

        for group, rows, memory in tiles:
            here = slice(group.start, group.stop)
            shifted = logits(group, rows, memory) if shift is None else logits(group, rows, memory).sub_(shift[:, None])
            torch.sum(shifted.exp2_(), dim=2, dtype=added, out=parts[here])
            torch.bmm(memory, rows, out=weighted[here])
        return parts.sum(dim=0), weighted.sum(dim=0, dtype=added)

    total, weighted = sums(None)
    if total.min() > 1.0 / LARGEST_SUM and total.max() < LARGEST_SUM:  # not so either if one is NaN
        return total, weighted, 0.0
    shift = torch.stack([logits(*tile).amax(dim=2).amax(dim=0) for tile in tiles]).amax(dim=0)
    return *sums(shift), shift


def _groups_of_tiles(tokens: int, itemsize: int, threads: int) -> list[_Tiles]:
    """Cut the vocabulary into tiles, some for each thread at a time, and what is left over by itself.

    A batch of products is shared out whole product by whole product, so that a thread goes on with what it has in its
    own cache and seldom waits; a single product is cut up among the threads, and they wait for each other in each.
    """
    count = -(-tokens // (TILE_ROW_BYTES // itemsize))
    width = max(1, tokens // (-(-count // threads) * threads))  # as many tiles for each thread
    width -= width % (CACHE_LINE // itemsize) if width > CACHE_LINE // itemsize else 0
    count, together = tokens // width, TILES_PER_THREAD * threads
    groups = [_Tiles(start * width, width, start, min(together, count - start)) for start in range(0, count, together)]
    left = tokens - count * width
    return [*groups, _Tiles(count * width, left, count, 1)] if left else groups
