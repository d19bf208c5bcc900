"""Which rows form which batch, and how a batch is made.

Samplers plan whole batches; a plan follows from the seed, the epoch and the process alone. Data sets turn a plan into
tensors with a handful of array operations.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..batch import EvalBatch, Negatives, PredictBatch, TrainBatch, mask_token
from . import masking
from .sequences import Indices, Spans, flatten, pad_left

# Batches sorted by length together: enough for little padding, few enough for an epoch to stay random.
BATCHES_IN_POOL = 32
# At most so many training batches are made in a row, and of so many tokens.
BATCHES_AHEAD, TOKENS_AHEAD = 8, 2**17
# Kinds of random draws, so that no two use the same stream.
SHUFFLE, MASKS, NEGATIVES = 1, 2, 4


class Plan(NamedTuple):
    """Rows of one batch, and the entropy of its random draws: those of this process, and those of all together."""

    rows: Indices
    entropy: tuple[int, ...]
    shared_entropy: tuple[int, ...] = ()
    counts: bool = True  # False: a row taken for nothing, by a process for which a last batch was too small


@dataclass(eq=False)
class ShuffledBatches(Sampler[Plan]):
    """Every row once an epoch, in a new random order each epoch, rows of similar length together.

    Rows are shuffled, sorted by length within pools of some batches, cut into batches, and the batches are shuffled.
    With several processes each gets a share of every batch, so that all take the same number of steps; of a last batch
    that is too small for all of them, some get a row that does not count, since all have to take part in a step.
    """

    lengths: Indices  # [W], length of each row
    batch_size: int  # rows in a batch of one process
    seed: int  # with the epoch and the process, what all randomness follows from
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    first_batch: int = 0

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of each epoch."""
        if epoch != self.epoch:
            self.epoch, self.first_batch = epoch, 0

    def resume(self, epoch: int, first_batch: int) -> None:
        """Leave the first batches of this epoch out; the epochs after it are whole."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.global_batch_size)

    def __iter__(self) -> Iterator[Plan]:
        generator = np.random.default_rng((self.seed, self.epoch, SHUFFLE))
        order = generator.permutation(len(self.lengths))
        pools = np.arange(len(order)) // (self.global_batch_size * BATCHES_IN_POOL)
        order = order[np.lexsort((self.lengths[order], pools))]
        for batch in generator.permutation(len(self))[self.first_batch :]:
            rows = order[batch * self.global_batch_size : (batch + 1) * self.global_batch_size]
            share = rows[self.rank :: self.world_size]
            yield Plan(
                share if len(share) else rows[:1],
                (self.seed, self.epoch, MASKS, int(batch), self.rank),
                (self.seed, self.epoch, NEGATIVES, int(batch)),
                len(share) > 0,
            )


class AheadLoader(DataLoader[TrainBatch]):
    """Makes `ahead` batches in a row, in half of the time that they take one by one between the steps of training.

    A step leaves little of what the making of batches needs in the processor's caches.
    """

    def __init__(self, *, ahead: int, **options: Any) -> None:
        super().__init__(**options)
        self.ahead = ahead

    def __iter__(self) -> Iterator[TrainBatch]:  # type: ignore[override]
        batches = super().__iter__()
        in_a_row = iter(lambda: list(itertools.islice(batches, self.ahead)), [])
        return itertools.chain.from_iterable(in_a_row)


class Together:
    """The batches of a loader in lists.

    Args:
        room: how long the next list may be, at least 1.
    """

    def __init__(self, loader: DataLoader[Any], room: Callable[[], int]) -> None:
        self.loader, self.room = loader, room
        self.sampler = loader.sampler  # which Lightning tells the epoch

    def __len__(self) -> int:
        """Batches, not lists."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Any]]:
        batches = iter(self.loader)
        return iter(lambda: list(itertools.islice(batches, self.room())), [])


class OrderedBatches(Sampler[Indices]):
    """Every row exactly once, in order, in the same batches whatever the number of processes.

    A process for which there is none gets an empty batch.

    Args:
        order: [E] int64, the rows in their order.
        in_turn: whether the processes get the batches in turn, or each a stretch of them, the first the first.
    """

    def __init__(
        self, order: Indices, batch_size: int, rank: int = 0, world_size: int = 1, in_turn: bool = True
    ) -> None:
        starts = range(0, len(order), batch_size)
        if in_turn:
            starts = starts[rank::world_size]
        else:
            starts = starts[len(starts) * rank // world_size : len(starts) * (rank + 1) // world_size]
        self.batches = [order[start : start + batch_size] for start in starts]
        if not self.batches and len(order):
            self.batches = [order[:0]]  # Lightning would leave this process out, and the others would wait for it

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Indices]:
        return iter(self.batches)


class NegativeSampler:
    """Draws items for the sampled losses, an item seen c times in training with a chance that goes with c ** power.

    Args:
        counts: [num_items] int64, training interactions of each item.
        size: items in a draw, K.
        power: 0 draws all items alike, 1 by popularity.
    """

    def __init__(self, counts: Indices, size: int, power: float) -> None:
        weights = np.maximum(counts, 1).astype(np.float64) ** power
        self.size = size
        self.cumulative = weights.cumsum() / weights.sum()
        self.log_counts = np.log(size * weights / weights.sum()).astype(np.float32)

    def draw(self, generator: np.random.Generator) -> Negatives:
        """K items, in a time that hardly depends on the size of the catalogue."""
        places = np.searchsorted(self.cumulative, generator.random(self.size), side="right")
        places = np.minimum(places, len(self.cumulative) - 1)  # the last sum may be a little below 1
        return Negatives(torch.from_numpy(places + 1), torch.from_numpy(self.log_counts[places]))


@dataclass(frozen=True)
class TrainingSet(Dataset[TrainBatch]):
    """Spans of at most `max_len` items, masked anew for each plan."""

    tokens: Indices
    spans: Spans
    num_items: int
    mask_prob: float
    mask_token_share: float
    random_token_share: float
    mask_last_share: float
    negative_sampler: NegativeSampler | None = None

    def __getitem__(self, plan: Plan) -> TrainBatch:
        generator = np.random.default_rng(plan.entropy)
        sequences = pad_left(self.tokens, self.spans[plan.rows])
        is_chosen, is_last_only = masking.choose_targets(sequences, generator, self.mask_prob, self.mask_last_share)
        shares = (self.mask_token_share, self.random_token_share)
        inputs = masking.replace_targets(sequences, is_chosen, is_last_only, self.num_items, generator, *shares)
        targets = sequences[is_chosen].astype(np.int64)
        return TrainBatch(
            torch.from_numpy(inputs),
            torch.from_numpy(np.flatnonzero(is_chosen)),
            torch.from_numpy(targets if plan.counts else np.zeros_like(targets)),
            self.negative_sampler.draw(np.random.default_rng(plan.shared_entropy)) if self.negative_sampler else None,
            len(plan.rows) if plan.counts else 0,
        )


@dataclass(frozen=True)
class HistorySet(Dataset[PredictBatch]):
    """Histories to be continued: the last max_len - 1 items and [MASK]."""

    tokens: Indices  # [R]
    histories: Spans  # E spans of it, one for each row
    num_items: int
    max_len: int
    exclude_seen: bool  # whether the items of the whole history are no candidates

    def __getitem__(self, rows: Indices) -> PredictBatch:
        return PredictBatch(*self._tensors(rows))

    def _tensors(self, rows: Indices) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        histories = self.histories[rows]
        inputs = pad_left(self.tokens, histories.last(self.max_len - 1), append=mask_token(self.num_items))
        seen_rows, seen_items = flatten(self.tokens, histories if self.exclude_seen else histories.last(0))
        users, tokens = torch.from_numpy(rows), torch.from_numpy(inputs)
        return users, tokens, torch.from_numpy(seen_rows), torch.from_numpy(seen_items)


@dataclass(frozen=True)
class EvaluationSet(HistorySet):
    """Histories whose next item is known: `targets` [E] int64.

    A user with several targets has a row for each; `owners` [E] int64 then says whose each is.
    """

    targets: Indices
    owners: Indices | None = None

    def __getitem__(self, rows: Indices) -> EvalBatch:  # type: ignore[override]
        batch = EvalBatch(*self._tensors(rows), torch.from_numpy(self.targets[rows]))
        if self.owners is None:
            return batch
        owners = self.owners[rows]
        is_next = np.diff(owners, prepend=-1) != 0
        return batch._replace(inputs=batch.inputs[torch.from_numpy(is_next)], owners=torch.from_numpy(owners))

    def first_rows(self) -> Indices:
        """A row of each user: [users] int64."""
        return np.arange(len(self.targets)) if self.owners is None else np.unique(self.owners, return_index=True)[1]
