"""The losses, from hidden states and the rows of the output matrix, each averaged over the targets.

N targets, D hidden_units, V tokens, K negatives.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Scores are made in tiles of at most so many rows and bytes of a row, 2 MB each, some for each thread at a time. Round
# numbers rather than powers of two, since rows that lie a power of two apart compete for the same cache lines.
TILE_ROWS = 256
TILE_ROW_BYTES = 8000
TILES_PER_THREAD = 2
# At most so many probabilities (64 MiB) are held between the two passes over the tiles.
HELD_ENTRIES = 2**24


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

    On a CPU the logits are made block by block and turned into the gradient in place, so that they stay in cache. Under
    autocast the products are in its type there, and what is summed over tokens or rows in float32.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [N] int64.
    """
    if hidden.device.type != "cpu":
        return F.cross_entropy(F.linear(hidden, weight, bias), targets)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets, dtype)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Forms the gradients in the forward pass: the loss is a scalar, so that they only have to be scaled later.

    A block of rows takes each tile of the vocabulary twice. First comes the softmax within the tile, which needs no
    other tile; the tiles' log-normalisers then give the row's, and with it the weight that each tile's softmax has in
    the whole one: softmax = softmax within the tile * exp(log-normaliser of the tile - that of the row).
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
        blocks = -(-count // max(1, min(TILE_ROWS, HELD_ENTRIES // tokens)))
        most_rows = -(-count // blocks)
        dtype = dtype or hidden.dtype
        hidden_factor, weight_factor = hidden.to(dtype), weight.to(dtype)
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.empty_like(weight)
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        normalisers = hidden.new_empty(count)
        groups = _groups_of_tiles(tokens, TILE_ROW_BYTES // dtype.itemsize, torch.get_num_threads())
        scores = hidden_factor.new_empty(most_rows * max(group.tokens for group in groups))
        # Piece by piece: the allocator gives a single large one back to the system, which clears it for every step.
        held = [hidden_factor.new_empty(most_rows * group.tokens) for group in groups]
        tiles_in_all = groups[-1].stop
        for start in range(0, count, most_rows):
            h = hidden_factor[start : start + most_rows]  # [R, D]
            rows = len(h)
            logs = hidden.new_empty(tiles_in_all, rows)  # log-normalisers of the tiles
            weighted = h.new_empty(tiles_in_all, *h.shape)
            for group, memory in zip(groups, held, strict=True):
                tiles = group.of(weight_factor)  # [T, W, D]
                score = torch.bmm(h.expand(group.number, -1, -1), tiles.mT, out=group.shaped(scores, rows))  # [T, R, W]
                if bias is not None:
                    score += group.of(bias[:, None]).mT
                softmax = torch.softmax(score, dim=2, out=group.shaped(memory, rows))
                # The best score's probability is exp(best score - log-normaliser), and never too small to tell.
                best = softmax.amax(dim=2).to(hidden.dtype)
                torch.sub(score.amax(dim=2), best.log_(), out=logs[group.start : group.stop])
                torch.bmm(softmax, tiles, out=weighted[group.start : group.stop])
            normalisers[start : start + rows] = total = logs.logsumexp(dim=0)
            shares = (logs - total).exp_().div_(count)[:, :, None]  # [tiles in all, R, 1]
            torch.sum(weighted * shares, dim=0, out=hidden_gradient[start : start + rows])
            for group, memory in zip(groups, held, strict=True):
                transposed = group.shaped(memory, rows).mT  # [T, W, R]
                share, gradient = shares[group.start : group.stop], group.of(weight_gradient)
                if dtype == gradient.dtype:
                    gradient.baddbmm_(transposed, h * share, beta=0 if start == 0 else 1)
                else:
                    product = transposed @ (h * share).to(dtype)
                    gradient.copy_(product) if start == 0 else gradient.add_(product)
                if bias_gradient is not None:
                    group.of(bias_gradient[:, None]).add_(transposed @ share.to(dtype))
        true_rows = weight[targets]  # [N, D]
        true_logits = (hidden * true_rows).sum(dim=1)
        hidden_gradient.sub_(true_rows, alpha=1.0 / count)
        weight_gradient.index_add_(0, targets, hidden, alpha=-1.0 / count)
        if bias is not None and bias_gradient is not None:
            true_logits += bias[targets]
            bias_gradient.index_add_(0, targets, bias.new_ones(count), alpha=-1.0 / count)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)  # type: ignore[arg-type]
        return (normalisers - true_logits).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
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


def _groups_of_tiles(tokens: int, most_width: int, threads: int) -> list[_Tiles]:
    """Cut the vocabulary into tiles, some for each thread at a time, and what is left over by itself.

    A batch of products is shared out whole product by whole product, so that a thread goes on with what it has in its
    own cache and seldom waits; a single product is cut up among the threads, and they wait for each other in each.
    """
    width, together = min(tokens, most_width), TILES_PER_THREAD * threads
    if threads > 1:
        count = -(-tokens // most_width)
        width = max(1, tokens // (-(-count // threads) * threads))  # as many tiles for each thread
    count = tokens // width
    groups = [_Tiles(start * width, width, start, min(together, count - start)) for start in range(0, count, together)]
    left = tokens - count * width
    return [*groups, _Tiles(count * width, left, count, 1)] if left else groups
