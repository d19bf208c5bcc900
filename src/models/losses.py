"""The losses, from hidden states and the rows of the output matrix, each averaged over the targets.

N targets, D hidden_units, V tokens, K negatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Scores are made in tiles of so many rows and bytes of a row: 2 MB each, half of it for each of two cores. Round
# numbers rather than powers of two, since rows that lie a power of two apart compete for the same cache lines.
TILE_ROWS = 256
TILE_ROW_BYTES = 8000
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
        dtype = dtype or hidden.dtype
        hidden_factor, weight_factor = hidden.to(dtype), weight.to(dtype)
        width = TILE_ROW_BYTES // dtype.itemsize
        tiles = torch.split(weight_factor, width)  # [T, D] each
        bias_tiles = [None] * len(tiles) if bias is None else torch.split(bias, width)
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.empty_like(weight)
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        normalisers = hidden.new_empty(count)
        most_rows = -(-count // blocks)
        scores = hidden_factor.new_empty(most_rows * len(tiles[0]))
        # Piece by piece: the allocator gives a single large one back to the system, which clears it for every step.
        held = [hidden_factor.new_empty(most_rows * len(tile)) for tile in tiles]
        gradients = torch.split(weight_gradient, width)
        for start in range(0, count, most_rows):
            span = slice(start, start + most_rows)
            h = hidden_factor[span]  # [R, D]
            softmaxes = [_shaped(memory, len(h), len(tile)) for memory, tile in zip(held, tiles, strict=True)]
            logs = hidden.new_empty(len(tiles), len(h))  # log-normalisers of the tiles
            weighted = h.new_empty(len(tiles), *h.shape)
            for number, (tile, tile_bias, softmax) in enumerate(zip(tiles, bias_tiles, softmaxes, strict=True)):
                score = torch.mm(h, tile.t(), out=_shaped(scores, len(h), len(tile)))
                if tile_bias is not None:
                    score += tile_bias
                torch.softmax(score, dim=1, out=softmax)
                # The best score's probability is exp(best score - log-normaliser), and never too small to tell.
                torch.sub(score.amax(dim=1), softmax.amax(dim=1).to(hidden.dtype).log_(), out=logs[number])
                torch.mm(softmax, tile, out=weighted[number])
            normalisers[span] = logs.logsumexp(dim=0)
            shares = (logs - normalisers[span]).exp_().div_(count)[:, :, None]  # [tiles, R, 1]
            torch.sum(weighted * shares, dim=0, out=hidden_gradient[span])
            for softmax, share, gradient in zip(softmaxes, shares, gradients, strict=True):
                if dtype == gradient.dtype:
                    gradient.addmm_(softmax.t(), h * share, beta=0 if start == 0 else 1)
                else:
                    product = softmax.t() @ (h * share).to(dtype)
                    gradient.copy_(product) if start == 0 else gradient.add_(product)
            if bias_gradient is not None:
                bias_gradient += torch.cat(
                    [softmax.t() @ share[:, 0].to(dtype) for softmax, share in zip(softmaxes, shares, strict=True)]
                )
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


def _shaped(memory: Tensor, rows: int, columns: int) -> Tensor:
    """The beginning of flat memory as a matrix."""
    return memory[: rows * columns].view(rows, columns)
