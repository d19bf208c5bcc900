"""What training minimises, apart from Lightning, so that a process that only computes gradients need not load it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.batch import Negatives, TrainBatch
from src.models import losses
from src.models.functional import apart
from src.models.network import Network


@dataclass(frozen=True)
class Objective:
    """The loss of a network on the parts of a batch.

    Attributes:
        loss: "softmax" over all tokens, or from a sample of negatives, "sampled_softmax" or "gbce".
        gbce_calibration: t of `src.models.losses.gbce`.
    """

    loss: str
    gbce_calibration: float

    def __call__(self, network: Network, parts: Sequence[TrainBatch], negatives: Negatives | None) -> Tensor:
        """Averaged over the chosen positions of all parts; a scalar.

        Cross entropy over all tokens (paper equation 8), or, given negatives, the sampled loss.
        """
        lookup = matrix = None
        if negatives is None and network.shares_embeddings:
            lookup, matrix = apart(network.item_embedding.weight)  # [V, D] each
        hidden = network.encode_parts([part[:3] for part in parts], lookup)  # [N, D]
        targets = torch.cat([part.targets for part in parts])  # [N]
        if negatives is None:
            return network.cross_entropy(hidden, targets, matrix)
        items, log_counts = negatives
        true_scores, negative_scores = network.sampled_scores(hidden, targets, items)  # [N], [N, K]
        if self.loss == "gbce":
            sampling_rate = min(1.0, len(items) / max(1, network.num_items - 1))
            return losses.gbce(true_scores, negative_scores, sampling_rate, self.gbce_calibration)
        return losses.sampled_softmax(true_scores, negative_scores, log_counts)
