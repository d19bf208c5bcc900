"""Splits by time and by files: against plain loops, and that nothing from the cut on is in anything that trains."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from src.data import BERT4RecDataModule
from src.data.interactions import Interactions, read_interactions
from src.data.loading import TrainingData
from src.data.sequences import Spans
from src.data.splits import SplitOptions, Targets, by_files, by_time, prepare
from src.data.table import TableOptions
from src.data.vocabulary import Vocabulary
from src.errors import UserError
from src.evaluation.baselines import LastItemSuccessors
from tests.data import lists_of, write_table

PATH = Path("t.csv")
Row = tuple[int, int, int]  # user, item, time
rows_strategy = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(10, 40)), min_size=2, max_size=40)
at_strategy = st.one_of(st.sampled_from([0.3, 0.5, 0.8]), st.integers(11, 40))


def interactions_of(rows: Sequence[Row]) -> Interactions:
    """As the reader makes them: by user in order of appearance, then by time, then by place."""
    users, items = (list(dict.fromkeys(row[column] for row in rows)) for column in (0, 1))
    ordered = sorted(rows, key=lambda row: (users.index(row[0]), row[2]))
    lengths = Counter(row[0] for row in rows)
    return Interactions(
        items=np.array([items.index(item) for _, item, _ in ordered], dtype=np.int32),
        offsets=np.cumsum([0, *(lengths[user] for user in users)]),
        user_ids=pa.array([f"u{user}" for user in users]),
        item_ids=pa.array([f"i{item}" for item in items]),
        has_time=True,
        times=np.array([time for _, _, time in ordered]),
    )


def cuts_of(rows: Sequence[Row], at: float, holdout: int) -> list[int]:
    """The last one first; fewer where there is nothing to cut."""

    def quantile(times: list[int], share: float) -> int:
        return sorted(times)[int(share * len(times))]

    times = [time for _, _, time in rows]
    cut = quantile(times, at) if isinstance(at, float) else at
    before = [time for time in times if time < cut]
    if holdout == 1 or len(before) in (0, len(times)):
        return [cut]
    return [cut, quantile(before, len(before) / len(times))]


def core(rows: Sequence[Row], least: int, least_of_items: int) -> list[Row]:
    """Rows of users and items that all have enough."""
    kept, before = list(rows), None
    while kept != before:
        before = kept
        items = Counter(item for _, item, _ in kept)
        kept = [row for row in kept if items[row[1]] >= least_of_items]
        users = Counter(user for user, _, _ in kept)
        kept = [row for row in kept if users[row[0]] >= least]
    return kept


def histories_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """User -> items by time."""
    histories: dict[str, list[str]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        histories.setdefault(f"u{user}", []).append(f"i{item}")
    return histories


def decoded(data: TrainingData, spans: Spans) -> list[list[str]]:
    return [[data.item_ids[token - 1].as_py() for token in tokens] for tokens in lists_of(data.tokens, spans)]


def found_by(data: TrainingData, targets: Targets) -> dict[str, tuple[list[str], str]]:
    """User -> history and target."""
    users = data.user_ids.take(pa.array(targets.users)).to_pylist()
    items = [data.item_ids[token - 1].as_py() for token in targets.targets]
    return dict(zip(users, zip(decoded(data, targets.histories), items, strict=True), strict=True))


@given(
    rows=rows_strategy,
    at=at_strategy,
    holdout=st.sampled_from([1, 2]),
    least=st.integers(1, 3),
    least_of_items=st.sampled_from([1, 2]),
)
def test_what_a_cut_trains_and_asks_agrees_with_loops(
    rows: list[Row], at: float, holdout: int, least: int, least_of_items: int
) -> None:
    cuts = cuts_of(rows, at, holdout)
    bounds = [*cuts[::-1], 10**9]  # from the first cut to the end of time
    can_cut = all(any(low <= time < high for *_, time in rows) for low, high in zip([0, *bounds], bounds, strict=False))
    if not can_cut or len(cuts) < holdout:
        with pytest.raises(UserError, match=r"^data\.split_at=.* leaves no interaction (before|from)"):
            by_time(interactions_of(rows), at, holdout, PATH)
        return
    split = by_time(interactions_of(rows), at, holdout, PATH)
    data, training, stages = prepare(split, least, least_of_items)
    trains = core([row for row in rows if row[2] < bounds[0]], least, least_of_items)
    known = {f"i{item}" for _, item, _ in trains}
    assert set(data.item_ids.to_pylist()) == known
    assert sorted(decoded(data, training)) == sorted(histories_of(trains).values())
    for from_end, cut in enumerate(cuts, 1):
        end = bounds[bounds.index(cut) + 1] if from_end == 2 else 10**9
        before = histories_of([row for row in rows if row[2] < cut])
        after = histories_of([row for row in rows if cut <= row[2] < end])
        expected = {}
        for user, items in after.items():
            history = [item for item in before.get(user, []) if item in known]
            if history and items[0] in known:
                expected[user] = (history, items[0])
        assert found_by(data, stages[from_end]) == expected
        strangers = [user for user in after if not known & set(before.get(user, []))]
        left_out = len(after) - len(expected) - len(strangers)
        if from_end == 1:
            assert (data.counts["unknown_users"], data.counts["unknown_targets"]) == (len(strangers), left_out)


@given(
    rows=rows_strategy,
    at=at_strategy,
    holdout=st.sampled_from([1, 2]),
    days=st.sampled_from([1, 4.5, "all"]),
)
def test_several_targets_agree_with_loops(rows: list[Row], at: float, holdout: int, days: float | str) -> None:
    """Of times that are mere numbers: all from a cut on, or those less than so much later; each item once."""
    cuts = cuts_of(rows, at, holdout)
    ends = [
        min(cut + (days if days != "all" else 10**9), later) for cut, later in zip(cuts, [10**9, *cuts], strict=False)
    ]
    asked = [[row for row in rows if cut <= row[2] < end] for cut, end in zip(cuts, ends, strict=True)]
    if len(cuts) < holdout or not all(asked) or not any(time < cuts[-1] for *_, time in rows):
        with pytest.raises(UserError, match=r"^data\.split_at=.* leaves no interaction (before|from)"):
            by_time(interactions_of(rows), at, holdout, PATH, days)
        return
    split = by_time(interactions_of(rows), at, holdout, PATH, days)
    data, _, stages = prepare(split, 1, 1)
    known = {f"i{item}" for _, item, time in rows if time < cuts[-1]}
    for from_end, (cut, some) in enumerate(zip(cuts, asked, strict=True), 1):
        before = histories_of([row for row in rows if row[2] < cut])
        histories = {user: [item for item in items if item in known] for user, items in before.items()}
        expected = {
            (user, item): histories[user]
            for user, items in histories_of(some).items()
            for item in items
            if histories.get(user) and item in known
        }
        targets = stages[from_end]
        users = data.user_ids.take(pa.array(targets.users)).to_pylist()
        items = [data.item_ids[token - 1].as_py() for token in targets.targets]
        assert len(users) == len(expected)
        assert dict(zip(zip(users, items, strict=True), decoded(data, targets.histories), strict=True)) == expected
        assert users == sorted(users, key=users.index)  # those of a user stand together


@settings(max_examples=40)
@given(rows=rows_strategy, at=st.integers(11, 40), swap=st.permutations(range(7)), seed=st.integers(0, 99))
def test_nothing_from_the_cut_on_changes_what_trains(rows: list[Row], at: int, swap: list[int], seed: int) -> None:
    """Other items, users and times after it: training, vocabulary and baselines stay as they are, to the last bit."""
    early, late = [row for row in rows if row[2] < at], [row for row in rows if row[2] >= at]
    assume(len(early) > 0 and len(late) > 0)
    generator = np.random.default_rng(seed)
    others = [(int(generator.integers(9)), swap[item], at + int(generator.integers(99))) for _, item, _ in late]
    found = []
    for after in (late, others):
        data, training, _ = prepare(by_time(interactions_of(early + after), at, 1, PATH), 1, 1)
        counts = np.bincount(np.concatenate([[0], *lists_of(data.tokens, training)]).astype(int))[1:]
        item_item = LastItemSuccessors(data.tokens, training, counts)
        found.append((decoded(data, training), data.item_ids.to_pylist(), counts.tolist(), item_item.scores.tolist()))
        assert Vocabulary(data.item_ids, counts).counts.min() >= 1
    assert found[0] == found[1]


def test_a_cut_is_given_in_any_form(tmp_path: Path) -> None:
    """The same day as a date, in seconds and in milliseconds, of times in seconds, milliseconds, dates and Parquet."""
    seconds = [1706659199, 1706659200, 1706745600]  # one before 2024-01-31, one as it begins, one a day later
    cuts = ["2024-01-31", "2024-01-31T09:00:00+09:00", 1706659200, 1706659200000]
    dates = [str(np.datetime64(second, "s")) for second in seconds]
    for number, times in enumerate([seconds, [1000 * s for s in seconds], [s + 0.0 for s in seconds], dates]):
        path = write_table(tmp_path / f"{number}.csv", "user,item,time", [("a", n, t) for n, t in enumerate(times)])
        interactions = read_interactions(path, TableOptions(), keeps_times=True)
        for cut in cuts:
            split = by_time(interactions, cut, 1, path)
            assert split.training_stops.tolist() == [1]
            assert split.targets == ("the first item from 2024-01-31 00:00:00 on",)
    for far in (-(10.0**300), -(10**15), 4e9, 1e30, "2200-12-31"):
        with pytest.raises(
            UserError, match=r"leaves no interaction .* go from 2024-01-30 23:59:59 to 2024-02-01 00:00:00"
        ):
            by_time(interactions, far, 1, path)
    mere = write_table(tmp_path / "mere.csv", "user,item,time", [("a", n, n) for n in range(4)])
    interactions = read_interactions(mere, keeps_times=True)
    assert by_time(interactions, 2, 1, mere).targets == ("the first item from 2 on",)
    with pytest.raises(UserError, match="mere numbers from 0 to 3: give one of those, or a share"):
        by_time(interactions, "2024-01-31", 1, mere)


def test_times_are_kept_in_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [("a", "x", 3), ("b", "y", 9), ("a", "x", 1), ("a", "z", 2), ("b", "y", 9), ("b", "x", 4)]
    path = write_table(tmp_path / "t.csv", "user,item,time", rows)
    interactions = read_interactions(path, keeps_times=True)
    assert interactions.times is not None
    assert interactions.times.tolist() == [1, 2, 3, 4, 9, 9]
    interactions = read_interactions(path, TableOptions(deduplicate=True), keeps_times=True)
    assert interactions.times is not None
    assert interactions.times.tolist() == [1, 2, 3, 4, 9]
    assert read_interactions(path).times is None


def module(folder: Path, **options: Any) -> BERT4RecDataModule:
    data = BERT4RecDataModule(str(folder), "t.csv", **({"min_interactions": 1} | options))
    data.setup()
    return data


def test_without_times_there_is_no_cut(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", "user,item", [("a", "x"), ("a", "y")])
    with pytest.raises(UserError, match="has no time column; name it with"):
        module(tmp_path, split=SplitOptions("time"))


def test_targets_of_other_tables(tmp_path: Path) -> None:
    """The first of several items, users and items that training does not have, ids that are numbers in one of them."""
    write_table(tmp_path / "t.csv", "user,item,time", [(1, "x", 1), (1, "y", 2), (2, "y", 1), (2, "z", 3), (3, "x", 1)])
    validation, test = tmp_path / "v.csv", tmp_path / "e.csv"
    write_table(validation, "user,item,time", [("1.0", "z", 9), ("1.0", "x", 8), ("2.0", "new", 1), ("7.0", "x", 1)])
    write_table(test, "user,item,time", [(3, "z", 1), (2, "x", 1)])
    data = module(tmp_path, split=SplitOptions("files", None, validation, test))
    assert lists_of(data.sequences.tokens, data.spans) == [[1, 2], [2, 3], [1]]
    for from_end, users, histories, targets in ((2, ["1"], [[1, 2]], [1]), (1, ["3", "2"], [[1], [2, 3]], [3, 1])):
        held_out = data.evaluation_set(from_end)
        assert lists_of(held_out.tokens, held_out.histories) == histories
        assert held_out.targets.tolist() == targets
        assert data.evaluated_user_ids(from_end).to_pylist() == users
    notes = "\n".join(data.notes)
    assert f"1 users have several interactions in {validation}: the first is the target" in notes
    assert "1 of 3 users whose item validates: no item of theirs before it is in training: 7" in notes
    assert "1 of 3 users whose item validates: it is not in training: new" in notes
    assert "whose item tests" not in notes
    assert data.summary["split"] == "files: the first item in e.csv tests, the first item in v.csv validates"


def test_all_items_of_a_table_may_be_targets(tmp_path: Path) -> None:
    """Each item once, with one input for all that are a user's in a batch; what is left out is counted as items."""
    write_table(tmp_path / "t.csv", "user,item,time", [(1, "x", 1), (1, "y", 2), (2, "y", 1), (2, "z", 3)])
    rows = [(2, "x", 1), (2, "new", 2), (1, "z", 1), (1, "x", 2), (1, "z", 3), (7, "x", 1), (7, "y", 1)]
    write_table(tmp_path / "v.csv", "user,item,time", rows)
    data = module(tmp_path, holdout=1, split=SplitOptions("files", None, tmp_path / "v.csv", targets="all"))
    held_out = data.evaluation_set(1)
    assert data.evaluated_user_ids(1).to_pylist() == ["2", "1", "1"]
    assert held_out.targets.tolist() == [1, 3, 1]
    assert (data.summary["evaluated_users"], data.summary["evaluated_targets"]) == (2, 3)
    assert data.summary["split"] == "files: every item in v.csv validates"
    batch = held_out[np.array([1, 2, 0])]
    assert batch.inputs.tolist() == [[1, 2, 4], [2, 3, 4]]
    assert batch.owners is not None
    assert batch.owners.tolist() == [0, 0, 1]
    assert batch.seen_rows.tolist() == [0, 0, 1, 1, 2, 2]
    notes = "\n".join(data.notes)
    assert "1 of 3 users whose item validates: no item of theirs before it is in training: 7" in notes
    assert "1 of 6 items that validate: they are not in training: new" in notes
    assert "the first is the target" not in notes


def test_days_are_counted_in_the_units_of_the_times(tmp_path: Path) -> None:
    day = 86400
    for number, unit in enumerate([1, 1000, None]):
        seconds = [1706659199, *(1706659200 + n * day for n in range(4))]
        times = [str(np.datetime64(s, "s")) if unit is None else s * unit for s in seconds]
        path = write_table(tmp_path / f"{number}.csv", "user,item,time", [("a", n, t) for n, t in enumerate(times)])
        split = by_time(read_interactions(path, TableOptions(), keeps_times=True), "2024-01-31", 1, path, 2.5)
        assert split.stages[1].item_ids.to_pylist() == ["1", "2", "3"]
        assert split.targets == ("every item from 2024-01-31 00:00:00 to 2024-02-02 12:00:00",)
        split = by_time(read_interactions(path, TableOptions(), keeps_times=True), "2024-01-31", 1, path, 1e300)
        assert len(split.stages[1].users) == 4


def test_a_table_of_targets_may_validate_alone() -> None:
    table = interactions_of([(0, 1, 10), (0, 2, 11), (1, 1, 10)])
    split = by_files(table, [(PATH, interactions_of([(1, 2, 5)]))])
    data, training, stages = prepare(split, 1, 1)
    assert found_by(data, stages[1]) == {"u1": (["i1"], "i2")}
    assert len(stages) == 1
    assert len(training) == 2


@pytest.mark.parametrize("targets", [[("9", "x")], [("1", "new")]])
def test_nobody_can_be_evaluated(targets: list[tuple[str, str]], tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", "user,item", [("1", "x"), ("1", "y")])
    write_table(tmp_path / "v.csv", "user,item", targets)
    with pytest.raises(UserError, match=r"^data\.split=files leaves nobody to evaluate"):
        module(tmp_path, holdout=1, split=SplitOptions("files", None, tmp_path / "v.csv"))


def test_nobody_has_enough_before_the_cut(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", "user,item,time", [(user, time, time) for user in "ab" for time in range(10, 14)])
    with pytest.raises(UserError, match="min_interactions=3 interactions in training: the longest history has 2"):
        module(tmp_path, holdout=1, min_interactions=3, split=SplitOptions("time", 12))


def test_the_cache_keeps_the_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.data.cache.SMALLEST", 0)
    days = np.datetime64("2024-01-01") + np.arange(20)
    write_table(tmp_path / "t.csv", "user,item,time", [(n % 3, n % 4, day) for n, day in enumerate(days)])
    without = module(tmp_path, split=SplitOptions("time", "2024-01-17"))
    for _ in range(2):
        data = module(tmp_path, split=SplitOptions("time", "2024-01-17"), cache_dir=tmp_path / "cache")
        assert data.summary == without.summary
        assert data.state_dict() == without.state_dict()
    assert module(tmp_path, cache_dir=tmp_path / "cache").state_dict() == module(tmp_path).state_dict()


def test_a_later_cut_is_another_table_to_resume_with(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", "user,item,time", [(n % 3, n % 4, n + 10) for n in range(30)])
    data = [module(tmp_path, holdout=1, split=SplitOptions("time", at)) for at in (25, 26)]
    assert data[0].vocabulary.ids == data[1].vocabulary.ids
    data[0].load_state_dict(data[0].state_dict())
    with pytest.raises(UserError, match="was trained on other interactions"):
        data[0].load_state_dict(data[1].state_dict())
