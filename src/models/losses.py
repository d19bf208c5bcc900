"""The losses, from hidden states and the rows of the output matrix, each averaged over the targets.

N targets, D hidden_units, V tokens, K negatives.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Scores of so many (row, token) pairs are held at a time: 16 MiB, which stays in the last level of cache.
BLOCK_ENTRIES = 2**22
# Tokens in a tile: products of a few hundred rows with so many tokens run near the processor's peak.
TILE_TOKENS = 4096


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

    On a CPU the logits are made block by block and turned into the gradient in place, so that they stay in cache.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [N] int64.
    """
    if hidden.device.type != "cpu":
        return F.cross_entropy(F.linear(hidden, weight, bias), targets)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return loss


def _multiply_into(out: Tensor, left: Tensor, right: Tensor, adds: bool) -> None:
    """`out` = left @ right, or += with `adds`."""
    if adds:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)


class _LinearCrossEntropy(torch.autograd.Function):
    """Forms the gradients in the forward pass: the loss is a scalar, so that they only have to be scaled later.

    Rows are taken in blocks and the vocabulary in tiles, of sizes at which matrix products are fastest.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        count, tokens = len(hidden), len(weight)
        rows = max(1, min(count, BLOCK_ENTRIES // tokens))
        tiles = torch.split(weight, TILE_TOKENS)  # [T, D] each
        bias_tiles = None if bias is None else torch.split(bias, TILE_TOKENS)
        blocks = [hidden.new_empty(rows * len(tile)) for tile in tiles]
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.empty_like(weight)
        gradient_tiles = torch.split(weight_gradient, TILE_TOKENS)
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        losses = hidden.new_empty(count, 1)
        for start in range(0, count, rows):
            span = slice(start, min(start + rows, count))
            h = hidden[span]  # [R, D]
            scores = [
                block[: len(h) * len(tile)].view(len(h), len(tile)) for block, tile in zip(blocks, tiles, strict=True)
            ]
            largest = h.new_full((len(h), 1), -math.inf)
            for number, (score, tile) in enumerate(zip(scores, tiles, strict=True)):
                torch.mm(h, tile.t(), out=score)
                if bias_tiles is not None:
                    score += bias_tiles[number]
                largest = torch.maximum(largest, score.amax(dim=1, keepdim=True))
            normaliser = torch.zeros_like(largest)  # [R, 1]
            for score in scores:
                normaliser += score.sub_(largest).exp_().sum(dim=1, keepdim=True)
            losses[span] = normaliser.log() + largest
            share = 1.0 / (normaliser * count)  # turns what `scores` holds now into probabilities / count
            scaled = h * share
            h_gradient = hidden_gradient[span]
            for number, (score, tile, gradient) in enumerate(zip(scores, tiles, gradient_tiles, strict=True)):
                _multiply_into(h_gradient, score, tile, adds=number > 0)
                _multiply_into(gradient, score.t(), scaled, adds=start > 0)
            h_gradient *= share
            if bias_gradient is not None:
                bias_gradient += torch.cat([(score * share).sum(dim=0) for score in scores])
        true_rows = weight[targets]  # [N, D]
        true_logits = (hidden * true_rows).sum(dim=1, keepdim=True)
        hidden_gradient.sub_(true_rows, alpha=1.0 / count)
        weight_gradient.index_add_(0, targets, hidden, alpha=-1.0 / count)
        if bias is not None and bias_gradient is not None:
            true_logits += bias[targets, None]
            bias_gradient.index_add_(0, targets, bias.new_ones(count), alpha=-1.0 / count)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)  # type: ignore[arg-type]
        return (losses - true_logits).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        hidden_gradient, weight_gradient, bias_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        if gradient != 1.0:  # nearly always 1: no pass over a large matrix for that
            hidden_gradient, weight_gradient = hidden_gradient * gradient, weight_gradient * gradient
            bias_gradient = None if bias_gradient is None else bias_gradient * gradient
        return hidden_gradient, weight_gradient, bias_gradient, None
