"""Histories as one flat token array with offsets: which part trains, which validates and tests, and padded batches.

A span is a stretch `tokens[start:stop]` of one user's history. U users, W spans, B batch, L longest span of the batch.
No function here loops over rows or users.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..batch import PAD
from . import id_forms
from .vocabulary import Vocabulary

if TYPE_CHECKING:  # a recommender needs spans, but no reader of tables
    from .interactions import Interactions

Indices = NDArray[np.int64]
Tokens = NDArray[Any]  # int32 or int64; what becomes a batch is int64


@dataclass(frozen=True)
class Spans:
    """Stretches of a flat token array."""

    starts: Indices  # [W], first place of each
    stops: Indices  # [W], one past the last place

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: Indices | NDArray[np.bool_]) -> "Spans":
        return Spans(self.starts[rows], self.stops[rows])

    @property
    def lengths(self) -> Indices:
        """[W] int64."""
        return self.stops - self.starts

    def last(self, most: int) -> "Spans":
        """The last `most` places of each."""
        return Spans(np.maximum(self.starts, self.stops - most), self.stops)


@dataclass(frozen=True)
class Sequences:
    """Histories of users as tokens."""

    tokens: Tokens  # [R], items 1..N, each user's in order of time
    offsets: Indices  # [U + 1]; the history of user u is tokens[offsets[u] : offsets[u + 1]]

    @property
    def histories(self) -> Spans:
        """The whole history of every user, U spans."""
        return Spans(self.offsets[:-1], self.offsets[1:])


def n_core(interactions: "Interactions", min_interactions: int, min_item_interactions: int = 1) -> "Interactions":
    """What is left of users and items with at least so many interactions; all items keep their places in `item_ids`.

    With `min_item_interactions` above 1, rarer items are left out first. That can make users too short and, without
    them, further items too rare, so that both are left out in turn until all that is left has enough.
    """
    users = np.repeat(np.arange(len(interactions.lengths), dtype=np.int32), interactions.lengths)
    items = interactions.items
    num_users, num_items = len(interactions.lengths), len(interactions.item_ids)
    while True:
        rows = len(items)
        if min_item_interactions > 1:
            is_kept = (np.bincount(items, minlength=num_items) >= min_item_interactions)[items]
            users, items = users[is_kept], items[is_kept]
        is_kept = (np.bincount(users, minlength=num_users) >= min_interactions)[users]
        if not is_kept.all():
            users, items = users[is_kept], items[is_kept]
        if len(items) == rows or min_item_interactions <= 1:
            break
    lengths = np.bincount(users, minlength=num_users)
    has_rows = lengths > 0
    offsets = np.concatenate([[0], lengths[has_rows].cumsum()])
    user_ids = interactions.user_ids.filter(pa.array(has_rows))
    return replace(interactions, items=items, offsets=offsets, user_ids=user_ids, times=None)


def build(
    interactions: "Interactions", min_interactions: int, min_item_interactions: int = 1
) -> tuple[Sequences, pa.StringArray, pa.StringArray]:
    """Histories of the n-core as tokens, the ids of its items, `item_ids[t - 1]` of token t, and those of its users."""
    kept = n_core(interactions, min_interactions, min_item_interactions)
    is_used = np.zeros(len(kept.item_ids), dtype=bool)
    is_used[kept.items] = True
    tokens = is_used.cumsum(dtype=np.int32)[kept.items]  # 1..N in order of first appearance in the table
    return Sequences(tokens, kept.offsets), kept.item_ids.filter(pa.array(is_used)), kept.user_ids


def encode(interactions: "Interactions", vocabulary: Vocabulary) -> tuple[Sequences, Indices]:
    """Histories of all users in a vocabulary that exists already; interactions with unknown items are left out.

    Returns:
        The sequences, U users (some may have no history left), and [I] int64, for each distinct item of the table how
        many interactions were left out because the vocabulary does not have it.
    """
    tokens_of_items = vocabulary.encode(interactions.item_ids).astype(np.int32)
    tokens = tokens_of_items[interactions.items]
    is_known = tokens != PAD
    offsets = np.concatenate([[0], is_known.cumsum()])[interactions.offsets]
    dropped = np.bincount(interactions.items[~is_known], minlength=len(interactions.item_ids))
    return Sequences(tokens[is_known], offsets), dropped


def select_users(interactions: "Interactions", user_ids: pa.StringArray) -> "tuple[Interactions, NDArray[np.bool_]]":
    """The interactions of these users alone, in this order, some have none; and [U] whether the table has the user."""
    places = id_forms.index_in(user_ids, interactions.user_ids)
    is_there = places >= 0
    starts = np.where(is_there, interactions.offsets[places], 0)
    stops = np.where(is_there, interactions.offsets[places + 1], 0)
    _, items = flatten(interactions.items, Spans(starts, stops))
    offsets = np.concatenate([[0], (stops - starts).cumsum()])
    return replace(interactions, items=items.astype(np.int32), offsets=offsets, user_ids=user_ids, times=None), is_there


def training_spans(sequences: Sequences, holdout: int) -> Spans:
    """What training may see: every history without its last `holdout` items.

    A user with no more than `holdout` items gives all of them to training, and is not evaluated.
    """
    histories = sequences.histories
    return Spans(histories.starts, histories.stops - np.where(histories.lengths > holdout, holdout, 0))


def evaluation_spans(sequences: Sequences, holdout: int, from_end: int) -> tuple[Indices, Spans, Indices]:
    """Histories that end before a held-out item, for the users who have more than `holdout` items.

    Args:
        from_end: which item is the target: 1 the last, 2 the one before; everything before the target is history,
            so the test history has the validation item in it.

    Returns:
        users [E] int64, their histories (E spans), and the targets [E] int64.
    """
    histories = sequences.histories
    users = np.flatnonzero(histories.lengths > holdout)
    places = histories.stops[users] - from_end
    return users, Spans(histories.starts[users], places), sequences.tokens[places].astype(np.int64)


def windows(spans: Spans, max_len: int, stride: int) -> Spans:
    """Cut long spans into windows of `max_len`, each `stride` before the next one, the last one flush with the end.

    The first window of a span begins where the span begins, so nothing is left out (stride <= max_len).
    """
    counts = 1 + np.ceil(np.maximum(spans.lengths - max_len, 0) / stride).astype(np.int64)
    rows = np.repeat(np.arange(len(spans)), counts)
    steps_back = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
    starts = np.maximum(spans.stops[rows] - max_len - stride * steps_back, spans.starts[rows])
    return Spans(starts, np.minimum(starts + max_len, spans.stops[rows]))


def pad_left(tokens: Tokens, spans: Spans, append: int | None = None) -> Indices:
    """Spans side by side, padded on the left to the longest, and `append` after each: [B, L] int64."""
    places = spans.stops[:, None] + np.arange(-int(spans.lengths.max(initial=0)), 0)  # [B, L]
    padded = np.where(places >= spans.starts[:, None], tokens.take(places, mode="clip"), PAD).astype(np.int64)
    return padded if append is None else np.column_stack([padded, np.full(len(spans), append)])


def flatten(tokens: Tokens, spans: Spans) -> tuple[Indices, Indices]:
    """Every token of every span, with the row it belongs to: rows [S] and tokens [S], both int64."""
    rows, places = stretches(spans.starts, spans.lengths)
    return rows, tokens[places].astype(np.int64)


def stretches(starts: Indices, lengths: Indices) -> tuple[Indices, Indices]:
    """Stretches of so many places, one after the other: the stretch that each belongs to, and the places. [S], [S]."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) + np.repeat(starts - (lengths.cumsum() - lengths), lengths)
