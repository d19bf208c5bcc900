"""The losses, from hidden states and the rows of the output matrix, each averaged over the targets in use.

N targets, of which those that are 0 are unused, D hidden_units, V tokens, K negatives, R rows of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ..batch import PAD, Negatives
from .network import Network

# So many logits are in memory at a time, 16 MiB on a CPU and 256 MiB elsewhere, where a chunk has to keep thousands of
# cores busy, but those of at least so many targets: for each chunk of rows the whole output matrix is read.
LOGITS_AT_A_TIME, LOGITS_ON_GPU, LEAST_ROWS = 2**22, 2**26, 128
# Where PyTorch has sparse gradients of embeddings; elsewhere, such as on MPS, they are dense.
HAVE_SPARSE = ("cpu", "cuda")


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Mean of cross_entropy(hidden weight^T + bias, targets) without the logits of all targets in memory; a scalar.

    Under autocast the products are in its type, what is summed over tokens or rows in float32.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [N] int64.
    """
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Forms the gradients in the forward pass: the loss is a scalar, so that they only have to be scaled later."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        device, dtype = hidden.device.type, hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if dtype == torch.float16 and device == "cpu":  # logits can be beyond its range, and it is no faster there
            dtype = torch.float32
        wide = torch.promote_types(hidden.dtype, torch.float32)
        is_used = targets != PAD
        share = is_used.to(wide) / is_used.sum().clamp(min=1)  # [N], what each target counts for
        matrix, loss = weight.to(dtype), hidden.new_zeros((), dtype=wide)
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight, dtype=wide)
        bias_gradient = None if bias is None else torch.zeros_like(bias)
        rows = max(LEAST_ROWS, (LOGITS_AT_A_TIME if device == "cpu" else LOGITS_ON_GPU) // len(weight))
        held = matrix.new_empty(min(rows, len(hidden)), len(weight))
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), rows):
                here = slice(start, start + rows)
                h, columns = hidden[here].to(dtype), targets[here, None]  # [R, D], [R, 1]
                logits = torch.mm(h, matrix.t(), out=held[: len(h)])  # [R, V]
                if bias is not None:
                    logits += bias
                if dtype == wide:
                    logarithms = torch.log_softmax(logits, dim=1, out=logits)
                else:
                    logarithms = torch.log_softmax(logits, dim=1, dtype=wide)
                loss -= (logarithms.gather(1, columns)[:, 0] * share[here]).sum()
                gradient = logarithms.exp_()  # of the logits: probabilities less one at the target
                gradient.scatter_add_(1, columns, gradient.new_full(columns.shape, -1.0))
                weighted = share[here, None]  # [R, 1]
                if bias_gradient is not None:
                    bias_gradient += gradient.t() @ weighted[:, 0]
                gradient = gradient.to(dtype)
                hidden_gradient[here] = (gradient @ matrix) * weighted
                weight_gradient += gradient.t() @ (h * weighted).to(dtype)
        gradients = (hidden_gradient, weight_gradient.to(weight.dtype), bias_gradient)
        ctx.save_for_backward(*gradients)  # type: ignore[arg-type]  # None is allowed
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if x is None else x * gradient for x in ctx.saved_tensors), None  # type: ignore[attr-defined]


def sampled_softmax(true_scores: Tensor, negative_scores: Tensor, log_counts: Tensor) -> Tensor:
    """Cross entropy with the sum over all other tokens estimated from a sample: [N].

    Each negative stands for as many tokens as it is drawn less often than once: its score is corrected by the log of
    how often it is expected in the sample (Bengio and Senecal 2008). The target is always there, so it is not.

    Args:
        true_scores: [N].
        negative_scores: [N, K], -inf where a negative is the target.
        log_counts: [K], log of the expected number of times that each negative is in the sample.
    """
    corrected = torch.cat([true_scores[:, None], negative_scores - log_counts], dim=1)  # [N, K + 1]
    return corrected.logsumexp(dim=1) - true_scores


def gbce(true_scores: Tensor, negative_scores: Tensor, sampling_rate: float, calibration: float) -> Tensor:
    """Generalised binary cross entropy (Petrov and Macdonald 2023, gSASRec, equations 9 and 11): [N].

    Args:
        true_scores: [N].
        negative_scores: [N, K], -inf where a negative is the target.
        sampling_rate: K over the number of other items, the paper's alpha.
        calibration: the paper's t: 0 is plain binary cross entropy, 1 predicts calibrated probabilities.
    """
    beta = sampling_rate * (calibration * (1.0 - 1.0 / sampling_rate) + 1.0 / sampling_rate)
    total = beta * F.logsigmoid(true_scores) + F.logsigmoid(-negative_scores).sum(dim=1)  # [N]
    return -total / (1 + negative_scores.shape[1])


def sampled_scores(
    network: Network, hidden: Tensor, targets: Tensor, negatives: Tensor, sparse: bool
) -> tuple[Tensor, Tensor]:
    """Logits of the targets [N] and of the same K negatives for each of them, -inf where they coincide: [N, K].

    Only these rows of the output matrix are read, and they alone get a gradient, which can be a sparse one.
    """
    hidden = network.output_transform(hidden)  # [N, D]
    weight, bias = network.output.weight, network.output.bias
    true_rows, negative_rows = (F.embedding(ids, weight, sparse=sparse) for ids in (targets, negatives))
    true_scores = (hidden * true_rows).sum(dim=1)
    negative_scores = hidden @ negative_rows.t()
    if bias is not None:
        true_scores = true_scores + bias[targets]
        negative_scores = negative_scores + bias[negatives]
    return true_scores, negative_scores.masked_fill(targets[:, None] == negatives, float("-inf"))


def sampled_loss(
    network: Network,
    hidden: Tensor,
    targets: Tensor,
    negatives: Negatives,
    loss: str,
    gbce_calibration: float,
    sparse: bool = False,
) -> Tensor:
    """Mean of `sampled_softmax` or `gbce` over the targets in use; a scalar. `sparse`: as the gradient is wanted."""
    true_scores, negative_scores = sampled_scores(network, hidden, targets, negatives.items, sparse)  # [N], [N, K]
    if loss == "gbce":
        sampling_rate = min(1.0, len(negatives.items) / max(1, network.num_items - 1))
        losses = gbce(true_scores, negative_scores, sampling_rate, gbce_calibration)
    else:
        losses = sampled_softmax(true_scores, negative_scores, negatives.log_counts)
    is_used = targets != PAD
    return torch.where(is_used, losses, 0.0).sum() / is_used.sum().clamp(min=1)
