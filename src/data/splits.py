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
from .sequences import Indices, Sequences, Spans, Tokens, build, flatten, stretches
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
    targets: float | str = "first"  # of a user: the "first" item, "all", or those within so many days of the cut

    @property
    def is_leave_one_out(self) -> bool:
        return self.kind == "leave_one_out"


class Targets(NamedTuple):
    """Users who can be evaluated, and each as often as the user has targets."""

    users: Indices  # [E] int64, rows of the table's users
    histories: Spans  # what comes before the target, E spans
    targets: Indices  # [E] int64 tokens


def owners_of(users: Indices) -> Indices | None:
    """Whose each target is, [E] int64, or None if nobody has several."""
    return users if len(np.unique(users)) < len(users) else None


@dataclass(frozen=True)
class Stage:
    """Whose item is to be predicted, whatever a model knows; a user of several items is there as often."""

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
            what, users = STAGES[len(self.stages)][from_end - 1], len(stage.user_ids.unique())
            if is_stranger.any():
                strangers = stage.user_ids.filter(pa.array(is_stranger)).unique()
                left_out["unknown_users"] = len(strangers)
                notes[from_end].append(
                    f"left out    {len(strangers):,} of {users:,} users whose item {what}: no item of theirs"
                    f" before it is in training: {_some(strangers)}"
                )
            if is_unknown.any():
                unknown = stage.item_ids.filter(pa.array(is_unknown))
                of = f"users whose item {what}: it is" if users == len(targets) else f"items that {what[:-1]}: they are"
                notes[from_end].append(
                    f"left out    {len(unknown):,} of {len(targets):,} {of} not in training: {_some(unknown.unique())}"
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
        at = DEFAULT_SHARE if options.at is None else options.at
        return by_time(interactions, at, holdout, path, options.targets)
    others = [file for file in (options.test, options.validation)[2 - holdout :] if file is not None]
    tables = [(file, load_interactions(file, table, cache)) for file in others]
    return by_files(load_interactions(path, table, cache), tables, options.targets == "all")


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


def by_time(
    interactions: Interactions, at: float | str, holdout: int, path: Path | Frame, targets: float | str = "first"
) -> Split:
    """Train before a cut; the target of each user is the first item from the cut on, or several are.

    With `holdout=2` they test, and a second cut is made in the same way in what comes before the first, with the
    same share of the interactions before it. What comes between the cuts is history for the test and trains nothing:
    so whatever trains is earlier than whatever validates, and that is earlier than whatever tests.

    Args:
        at: an ISO date, a Unix time, or a share of the interactions above 0 and below 1.
        targets: as in `SplitOptions`. Those of the validation end at the cut of the test in any case; where times are
            mere numbers, the days are as many of these.

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
    stops, later, described = [], offsets[1:], []
    stages: dict[int, Stage] = {}
    for from_end, cut in enumerate(cuts, 1):
        stops.append(_first_from(cut, interactions))
        ends, until = later, "on"
        if targets == "first":
            ends = np.minimum(stops[-1] + 1, later)
        elif targets != "all":
            end = _later(cut, float(targets), times)
            ends, until = np.minimum(_first_from(end, interactions), later), f"to {_text(end, times)}"
        described.append(f"{'the first' if targets == 'first' else 'every'} item from {_text(cut, times)} {until}")
        users, places = _distinct(interactions.items, Spans(stops[-1], ends))
        if len(users) == 0 or (stops[-1] == offsets[:-1]).all():
            where = f"from it {until}" if len(users) == 0 else "before it" if from_end == 1 else "before the validation"
            raise UserError(
                f"data.split_at={at} leaves no interaction {where}: the times of {path} go from"
                f" {_text(times.min(), times)} to {_text(times.max(), times)}"
            )
        item_ids = interactions.item_ids.take(pa.array(interactions.items[places]))
        stages[from_end] = Stage(users, stops[-1][users], interactions.user_ids.take(pa.array(users)), item_ids)
        later = stops[-1]
    return Split(interactions, stops[-1], stops[0], stages, tuple(described), interactions.notes)


def by_files(interactions: Interactions, tables: list[tuple[Path, Interactions]], takes_all: bool = False) -> Split:
    """Train on all of a table; the target of each user of another one is the first item there, or all are.

    Args:
        tables: the test table, if there is one, and the validation table, with the files that they come from.
    """
    stages: dict[int, Stage] = {}
    notes = [*interactions.notes]
    for from_end, (path, table) in enumerate(tables, 1):
        ends = table.offsets[1:] if takes_all else table.offsets[:-1] + 1
        rows, places = _distinct(table.items, Spans(table.offsets[:-1], ends))
        users = id_forms.index_in(table.user_ids, interactions.user_ids)[rows]
        items = table.item_ids.take(pa.array(table.items[places]))
        stages[from_end] = Stage(users, interactions.offsets[users + 1], table.user_ids.take(pa.array(rows)), items)
        notes += table.notes
        more = int((table.lengths > 1).sum())
        if more and not takes_all:
            notes.append(f"targets     {more:,} users have several interactions in {path}: the first is the target")
    targets = tuple(f"{'every' if takes_all else 'the first'} item in {path.name}" for path, _ in tables)
    stops = interactions.offsets[1:]
    return Split(interactions, stops, stops, stages, targets, tuple(dict.fromkeys(notes)))


def _first_from(moment: Any, interactions: Interactions) -> Indices:
    """Where each user's first row from a time on is, or the end of the user's rows: [U] int64."""
    before = np.concatenate([[0], (interactions.times < moment).cumsum()])[interactions.offsets]
    return np.asarray(interactions.offsets[:-1] + np.diff(before))


def _distinct(items: Tokens, spans: Spans) -> tuple[Indices, Indices]:
    """The places of each span in which an item comes for the first time, and the span of each: [T], [T] int64."""
    rows, places = stretches(spans.starts, spans.lengths)
    _, firsts = np.unique(rows * (int(items.max(initial=0)) + 1) + items[places], return_index=True)
    firsts.sort()
    return rows[firsts], places[firsts]


def _later(cut: Any, days: float, times: Times) -> Any:
    """So many days after a cut, as a time like those of the table; as much more where they are mere numbers."""
    if times.dtype.kind == "M":  # see `_cut` on the last year
        last = np.datetime64("2200-12-31", "us")
        return min(cut.astype(last.dtype) + np.timedelta64(round(min(days, 1e5) * 8.64e10), "us"), last)
    unit = unit_of(times)
    return cut + (days if np.isinf(unit) else 86400.0 * days * unit)


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
