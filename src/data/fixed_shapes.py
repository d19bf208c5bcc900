"""Training batches of few fixed shapes, made where the model is from data that stays there.

A GPU is fast where nothing waits for the host and every step looks like one before it. So the tokens lie on the device,
a step is told its rows and a seed, and masks are drawn there, with the chances of `src.data.masking`. A batch has one
of a few lengths, and for each of them a fixed number of slots for targets, of which those without a target hold PAD.

R tokens of the data, W rows of it, B batch, L length of the batch, K negatives.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..batch import PAD, Negatives, RowBatch, TrainBatch, mask_token
from . import random_bits
from .batching import NegativeSampler, Plan
from .sequences import Indices, Spans

LENGTHS = 4  # so many shapes, each of which is compiled
OVERFLOW = 1e-9  # chance that a batch has more chosen items than slots; those beyond stay as they are
MULTIPLE = 8  # what sizes of products are rounded up to
CHOICE, LAST_ONLY, CHANGE, ITEM, NEGATIVE = range(5)  # streams of random draws
NO_ROW = -1


@dataclass(frozen=True)
class RowSet(Dataset[RowBatch]):
    """Which rows a step trains on, and the seeds of its draws."""

    lengths: Indices  # [W]
    batch_size: int
    shapes: tuple[int, ...]  # the lengths that a batch may have, ascending

    def __getitem__(self, plan: Plan) -> RowBatch:
        rows = np.full(self.batch_size, NO_ROW)
        if plan.counts:
            rows[: len(plan.rows)] = plan.rows
        seeds = [np.random.SeedSequence(e).generate_state(1, np.uint64) for e in (plan.entropy, plan.shared_entropy)]
        longest = int(self.lengths[plan.rows].max())
        length = next(length for length in self.shapes if length >= longest)
        return RowBatch(
            torch.from_numpy(np.concatenate([rows, *(seed.astype(np.int64) for seed in seeds)])),
            length,
            len(plan.rows) if plan.counts else 0,
        )


def shapes(longest: int) -> tuple[int, ...]:
    """The lengths that batches are padded to, ascending, the last of them the longest row's."""
    quarters = (math.ceil(longest * part / LENGTHS / MULTIPLE) * MULTIPLE for part in range(1, LENGTHS))
    return (*sorted({length for length in quarters if length < longest}), longest)


def slots(rows: int, length: int, mask_prob: float) -> int:
    """Targets that a batch of so many rows has room for: more are chosen with a chance below `OVERFLOW`.

    By Chernoff's bound for the sum of rows that are all of this length: shorter ones have fewer.
    """
    rates = np.geomspace(1e-3, 10.0, 200)  # any rate gives a bound
    chosen = length * np.log1p(mask_prob * np.expm1(rates))
    if mask_prob < 1.0:  # where none is, one is chosen all the same
        chosen = np.logaddexp(chosen, length * math.log1p(-mask_prob) + np.log(np.expm1(rates)))
    bound = ((rows * chosen - math.log(OVERFLOW)) / rates).min()
    return min(rows * length, math.ceil(float(bound) / MULTIPLE) * MULTIPLE)


class FixedShapes:
    """The data on a device, and what makes a batch of some rows there.

    Args:
        tokens: [R].
        spans: W rows of it, at most `max_len` long.
        device: where all that is to be.
        others: as in `src.data.batching.TrainingSet`.
    """

    def __init__(
        self,
        tokens: Any,
        spans: Spans,
        device: torch.device,
        num_items: int,
        mask_prob: float,
        mask_token_share: float,
        random_token_share: float,
        mask_last_share: float,
        negative_sampler: NegativeSampler | None = None,
    ) -> None:
        # Copies: what comes from the cache cannot be written to, of which torch.from_numpy warns.
        self.tokens, self.starts, self.stops = (
            torch.tensor(np.asarray(values), device=device) for values in (tokens, spans.starts, spans.stops)
        )
        self.num_items = num_items
        self.mask_prob = mask_prob
        self.is_chosen_below = random_bits.threshold(mask_prob)
        self.is_mask_below = random_bits.threshold(mask_token_share)
        self.is_random_below = random_bits.threshold(mask_token_share + random_token_share)
        self.is_last_below = random_bits.threshold(mask_last_share)
        self.num_negatives = 0
        if negative_sampler is not None:
            self.num_negatives = negative_sampler.size
            self.cumulative = torch.from_numpy(negative_sampler.cumulative).to(device)
            self.log_counts = torch.from_numpy(negative_sampler.log_counts).to(device)

    def batch(self, rows: RowBatch) -> TrainBatch:
        """Look the rows up and mask them; what it gives follows from `rows` alone, whatever the device."""
        which, seed, shared_seed = rows.order[:-2], rows.order[-2], rows.order[-1]
        sequences = self._sequences(which, rows.length)  # [B, L]
        is_target, inputs = self._mask(sequences, seed)
        place = torch.arange(is_target.numel(), device=seed.device)
        room = slots(len(which), rows.length, self.mask_prob)
        slot = is_target.flatten().cumsum(0) - 1
        is_target &= (slot < room).view_as(is_target)
        slot = torch.where(is_target.flatten(), slot, room)  # all others go where nobody looks
        places, targets = (
            torch.zeros(room + 1, dtype=torch.long, device=seed.device).scatter(0, slot, values)[:room]
            for values in (place, sequences.flatten())
        )
        inputs = torch.where(is_target, inputs, sequences)
        # A row for nothing still has something to look at: attention to nothing is NaN.
        inputs[:, -1] = torch.where(which == NO_ROW, mask_token(self.num_items), inputs[:, -1])
        negatives = self._negatives(shared_seed) if self.num_negatives else None
        return TrainBatch(inputs, places, targets, negatives, rows.num_rows)

    def _sequences(self, which: Tensor, length: int) -> Tensor:
        """[B] -> [B, L], padded on the left."""
        places = self.stops[which][:, None] - length + torch.arange(length, device=which.device)  # [B, L]
        is_item = (places >= self.starts[which][:, None]) & (which != NO_ROW)[:, None]
        return torch.where(is_item, self.tokens[places.clamp(min=0)].long(), PAD)

    def _mask(self, sequences: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """The draws of `src.data.masking`: which items are targets, and what the model would see there, [B, L] each."""
        shape, is_item = sequences.shape, sequences != PAD
        column = torch.arange(shape[1], device=seed.device)
        draws = random_bits.integers(seed, CHOICE, *shape)
        # The column makes them distinct, so that a row has one smallest draw.
        distinct = torch.where(is_item, draws * shape[1] + column, shape[1] << random_bits.RANDOM_BITS)
        is_target = (draws < self.is_chosen_below) | (distinct == distinct.amin(dim=1, keepdim=True))
        is_last_only = random_bits.integers(seed, LAST_ONLY, shape[0], 1) < self.is_last_below  # [B, 1]
        is_target = torch.where(is_last_only, column == shape[1] - 1, is_target) & is_item
        change = random_bits.integers(seed, CHANGE, *shape)
        other = 1 + random_bits.below(seed, ITEM, self.num_items, *shape)
        changed = torch.where(change < self.is_random_below, other, sequences)
        is_mask = (change < self.is_mask_below) | is_last_only
        return is_target, torch.where(is_mask, mask_token(self.num_items), changed)

    def _negatives(self, seed: Tensor) -> Negatives:
        draws = random_bits.integers(seed, NEGATIVE, self.num_negatives).double() / 2**random_bits.RANDOM_BITS
        places = torch.searchsorted(self.cumulative, draws, right=True).clamp(max=self.num_items - 1)
        return Negatives(places + 1, self.log_counts[places])
