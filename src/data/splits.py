"""Splits beside leave-one-out: one cut in time for all users, or tables of the person's own.

Training, the vocabulary and the baselines get what comes before the first target of anybody. An item that appears later
is unknown, as it will be in use. U users of the table, T users with a target, E of them evaluated.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..batch import PAD
from ..errors import UserError
from . import id_forms
from .interactions import Interactions
from .loading import TrainingData, load_interactions
from .readers.times import unit_of
from .sequences import Indices, Sequences, Spans, build, flatten
from .table import Frame, TableOptions, Times
from .vocabulary import Vocabulary

DEFAULT_SHARE = 0.9  # of the interactions, before the cut
STAGES = {1: ("validates",), 2: ("tests", "validates")}  # data.holdout -> what the targets do, the last ones first
LAST_ITEM = {
    2: "the last item tests, the one before validates",
    1: "the last item validates",
    0: "nothing is held out",
}
SHOWN = 5


@dataclass(frozen=True)
class SplitOptions:
    """Which interactions train, and which are targets."""

    kind: str = "leave_one_out"  # or "time" or "files"
    at: float | str | None = None  # the cut of "time": an ISO date, a Unix time or a share of the interactions
    validation: Path | None = None  # tables of "files"
    test: Path | None = None

    @property
    def is_leave_one_out(self) -> bool:
        return self.kind == "leave_one_out"


class Targets(NamedTuple):
    """Users who can be evaluated."""

    users: Indices  # [E] int64, rows of the table's users
    histories: Spans  # what comes before the target, E spans
    targets: Indices  # [E] int64 tokens


@dataclass(frozen=True)
class Stage:
    """Whose item is to be predicted, whatever a model knows."""

    users: Indices  # [T] int64, rows of the table's users; -1 where the table does not have the user
    stops: Indices  # [T] int64, where their histories end among the rows of the table
    user_ids: pa.StringArray  # [T]
    item_ids: pa.StringArray  # [T], the targets


@dataclass(frozen=True)
class Encoded:
    """A split in the tokens of a vocabulary."""

    sequences: Sequences  # U histories of known items, also of what comes after the training
    training: Spans  # of the users who have enough interactions to train on
    before: Spans  # U spans, everything before the last targets
    stages: dict[int, Targets]  # as in `Split`
    left_out: dict[str, int]  # of the last stage: users without a known item before the target, and unknown targets
    notes: dict[int, list[str]]  # who and what each stage leaves out, by name


@dataclass(frozen=True)
class Split:
    """A table and its targets, before items are tokens."""

    interactions: Interactions
    training_stops: Indices  # [U]; of user u, interactions.items[offsets[u] : training_stops[u]] trains
    last_stops: Indices  # [U], likewise what comes before the last targets
    stages: dict[int, Stage]  # counted from the end: 1 the last targets, 2 those of the validation before a test
    targets: tuple[str, ...]  # what each stage predicts, such as "the first item from 2024-01-31 00:00:00 on"
    notes: tuple[str, ...]

    def training(self) -> Interactions:
        """What training may see, without the users of whom that is nothing."""
        whole = self.interactions
        rows = Spans(whole.offsets[:-1], self.training_stops)
        _, items = flatten(whole.items, rows)
        has_rows = rows.lengths > 0
        offsets = np.concatenate([[0], rows.lengths[has_rows].cumsum()])
        user_ids = whole.user_ids.filter(pa.array(has_rows))
        return replace(whole, items=items.astype(np.int32), offsets=offsets, user_ids=user_ids, times=None)

    def encode(self, vocabulary: Vocabulary, min_interactions: int) -> Encoded:
        """Leave out what the vocabulary does not know, users without a history, and unknown targets.

        Args:
            min_interactions: users with fewer known interactions in training are left out of it.
        """
        table = self.interactions
        tokens = vocabulary.encode(table.item_ids).astype(np.int32)[table.items]
        is_known = tokens != PAD
        place = np.concatenate([[0], is_known.cumsum()])  # of each row among the known ones
        starts = place[table.offsets[:-1]]
        training = Spans(starts, place[self.training_stops])
        stages: dict[int, Targets] = {}
        left_out: dict[str, int] = {}
        notes: dict[int, list[str]] = {}
        for from_end, stage in sorted(self.stages.items(), reverse=True):  # the last one comes last
            histories = Spans(starts[stage.users], place[stage.stops])
            targets = vocabulary.encode(stage.item_ids)
            is_stranger = (stage.users < 0) | (histories.lengths <= 0)
            is_unknown = ~is_stranger & (targets == PAD)
            is_kept = ~is_stranger & ~is_unknown
            stages[from_end] = Targets(stage.users[is_kept], histories[is_kept], targets[is_kept])
            left_out = {"unknown_users": int(is_stranger.sum()), "unknown_targets": int(is_unknown.sum())}
            notes[from_end] = []
            what = STAGES[len(self.stages)][from_end - 1]
            if is_stranger.any():
                strangers = stage.user_ids.filter(pa.array(is_stranger))
                notes[from_end].append(
                    f"left out    {len(strangers):,} of {len(targets):,} users whose item {what}: no item of theirs"
                    f" before it is in training: {_some(strangers)}"
                )
            if is_unknown.any():
                unknown = stage.item_ids.filter(pa.array(is_unknown))
                notes[from_end].append(
                    f"left out    {len(unknown):,} of {len(targets):,} users whose item {what}: it is not in training:"
                    f" {_some(unknown.unique())}"
                )
        return Encoded(
            Sequences(tokens[is_known], place[table.offsets]),
            training[training.lengths >= min_interactions],
            Spans(starts, place[self.last_stops]),
            stages,
            left_out,
            notes,
        )


def load(path: Path | Frame, table: TableOptions, options: SplitOptions, holdout: int, cache: Path | None) -> Split:
    """Read the table, and the others of a split by files.

    Args:
        holdout: 2 for a validation and a test, 1 for a validation alone.

    Raises:
        UserError: if a table cannot be read or does not give such a split.
    """
    if options.kind == "time":
        interactions = load_interactions(path, table, cache, keeps_times=True)
        return by_time(interactions, DEFAULT_SHARE if options.at is None else options.at, holdout, path)
    others = [file for file in (options.test, options.validation)[2 - holdout :] if file is not None]
    tables = [(file, load_interactions(file, table, cache)) for file in others]
    return by_files(load_interactions(path, table, cache), tables)


def prepare(
    split: Split, min_interactions: int, min_item_interactions: int
) -> tuple[TrainingData, Spans, dict[int, Targets]]:
    """A split in the tokens of what trains: the histories of all users, the spans that train, and the targets."""
    whole, training = split.interactions, split.training()
    trained, item_ids, user_ids = build(training, min_interactions, min_item_interactions)
    counts = np.bincount(trained.tokens, minlength=len(item_ids) + 1)[1:]
    encoded = split.encode(Vocabulary(item_ids, counts), min_interactions)
    facts = {
        "rows": len(whole.items),
        "users": len(whole.user_ids),
        "items": len(whole.item_ids),
        "has_time": int(whole.has_time),
        "items_before": len(np.unique(training.items)),
        "short_users": len(training.user_ids) - len(user_ids),
        "short_users_rows": len(training.items) - len(trained.tokens),
        "longest_history": int(training.lengths.max(initial=0)),
        **encoded.left_out,
    }
    sequences, notes = encoded.sequences, (*split.notes, *(note for stage in encoded.notes.values() for note in stage))
    stages = [f"{what} {does}" for what, does in zip(split.targets, STAGES[len(split.targets)], strict=True)]
    data = TrainingData(sequences.tokens, sequences.offsets, item_ids, whole.user_ids, facts, notes, ", ".join(stages))
    return data, encoded.training, encoded.stages


def by_time(interactions: Interactions, at: float | str, holdout: int, path: Path | Frame) -> Split:
    """Train before a cut; the target of each user is the first item from the cut on.

    With `holdout=2` that item tests, and a second cut is made in the same way in what comes before the first, with the
    same share of the interactions before it. What comes between the cuts is history for the test and trains nothing:
    so whatever trains is earlier than whatever validates, and that is earlier than whatever tests.

    Args:
        at: an ISO date, a Unix time, or a share of the interactions above 0 and below 1.

    Raises:
        UserError: if there are no times, or none before or after a cut.
    """
    times, offsets = interactions.times, interactions.offsets
    if times is None:
        raise UserError(
            f"data.split=time: {path} has no time column; name it with data.columns.time, or use"
            " data.split=leave_one_out, by the order of the rows"
        )
    cut = _cut(times, at, path)
    share = float((times < cut).mean())
    cuts = [cut]
    if holdout == 2 and 0.0 < share < 1.0:
        cuts.append(_quantile(times[times < cut], share))
    stops, later = [], offsets[1:]
    stages: dict[int, Stage] = {}
    for from_end, cut in enumerate(cuts, 1):
        before = np.concatenate([[0], (times < cut).cumsum()])[offsets]
        stops.append(offsets[:-1] + np.diff(before))
        users = np.flatnonzero(stops[-1] < later)
        if len(users) == 0 or before[-1] == 0:
            where = "from it on" if len(users) == 0 else "before it" if from_end == 1 else "before the validation"
            raise UserError(
                f"data.split_at={at} leaves no interaction {where}: the times of {path} go from"
                f" {_text(times.min(), times)} to {_text(times.max(), times)}"
            )
        places = stops[-1][users]
        item_ids = interactions.item_ids.take(pa.array(interactions.items[places]))
        stages[from_end] = Stage(users, places, interactions.user_ids.take(pa.array(users)), item_ids)
        later = stops[-1]
    targets = tuple(f"the first item from {_text(cut, times)} on" for cut in cuts)
    return Split(interactions, stops[-1], stops[0], stages, targets, interactions.notes)


def by_files(interactions: Interactions, tables: list[tuple[Path, Interactions]]) -> Split:
    """Train on all of a table; the target of each user of another one is the first item there.

    Args:
        tables: the test table, if there is one, and the validation table, with the files that they come from.
    """
    stages: dict[int, Stage] = {}
    notes = [*interactions.notes]
    for from_end, (path, table) in enumerate(tables, 1):
        users = id_forms.index_in(table.user_ids, interactions.user_ids)
        items = table.items[table.offsets[:-1]]
        stops = interactions.offsets[users + 1]
        stages[from_end] = Stage(users, stops, table.user_ids, table.item_ids.take(pa.array(items)))
        notes += table.notes
        if more := int((table.lengths > 1).sum()):
            notes.append(f"targets     {more:,} users have several interactions in {path}: the first is the target")
    targets = tuple(f"the first item in {path.name}" for path, _ in tables)
    stops = interactions.offsets[1:]
    return Split(interactions, stops, stops, stages, targets, tuple(dict.fromkeys(notes)))


def _cut(times: Times, at: float | str, path: Path | Frame) -> Any:
    """The cut as a time like those of the table: in its unit, or as a date."""
    if not isinstance(at, str) and 0.0 < at < 1.0:
        return _quantile(times, at)
    are_dates, unit = times.dtype.kind == "M", 1.0 if times.dtype.kind == "M" else unit_of(times)
    if isinstance(at, str):
        moment = datetime.fromisoformat(at)
        seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
        if np.isinf(unit):
            raise UserError(
                f"data.split_at={at} is a date, and the times of {path} are mere numbers from {times.min()} to"
                f" {times.max()}: give one of those, or a share such as 0.9"
            )
        own = 1.0
    else:
        own = unit_of(np.array([at], dtype=np.float64))
        own = (1.0 if are_dates else unit) if np.isinf(own) else own
        seconds = at
    if are_dates:  # which NumPy compares in nanoseconds if some are in these: from 1900 to 2200 none overflows
        return np.datetime64(round(min(max(seconds / own, -2.2e9), 7.2e9) * 1e6), "us")
    return seconds if own == unit or np.isinf(unit) else seconds / own * unit


def _quantile(times: Times, share: float) -> Any:
    """The time from which on there are the last of the rows; those with that very time all come after it."""
    place = int(share * len(times))
    return np.partition(times, place)[place]


def _text(time: Any, times: Times) -> str:
    """A time of a table as a date in UTC, or as the number that it is."""
    unit = 1.0 if times.dtype.kind == "M" else unit_of(times)
    if np.isinf(unit) or (times.dtype.kind != "M" and abs(time / unit) > 1e11):  # no date, or none that NumPy knows
        return f"{time}"
    microseconds = time if times.dtype.kind == "M" else np.datetime64(round(float(time) / unit * 1e6), "us")
    return str(microseconds.astype("datetime64[s]")).replace("T", " ")


def _some(ids: pa.StringArray) -> str:
    return ", ".join(ids[:SHOWN].to_pylist()) + (", ..." if len(ids) > SHOWN else "")
