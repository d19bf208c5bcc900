"""Who is in the denominator of a figure, and which items can be negatives: what docs/evaluation.md says of both."""

from pathlib import Path

import numpy as np
import pytest

from src.data import BERT4RecDataModule
from src.evaluation import protocols
from src.evaluation.evaluate import hold_out
from tests.benchmarks.baselines import cold_targets, contest_of, own_negatives
from tests.data import interactions_of, write_histories

# "new" is the last item of one user and stands nowhere else; "x" and "y" end the histories of the others.
HISTORIES = {"ann": "a b c d new", "ben": "b c a d x", "cem": "c a b d y", "dan": "x y a d b"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_histories(tmp_path_factory.mktemp("who") / "table.csv", HISTORIES)


@pytest.mark.parametrize("holdout", [1, 2])
def test_a_cold_target_is_evaluated_and_missed_by_counting(path: Path, holdout: int) -> None:
    contest = contest_of(path, holdout, 1, ["full"], seed=1)
    assert cold_targets(contest) == 1  # "new"; "x" and "y" are in the training of "dan"
    assert len(contest.evaluation_set.targets) == len(HISTORIES)
    places = {user: place for place, user in enumerate(contest.user_ids.to_pylist())}
    for baseline in contest.outcomes.values():
        ranks = baseline.ranks["full"]
        assert ranks[places["ann"]] == len(contest.counts) - len(HISTORIES["ann"].split())  # behind all candidates


def test_evaluating_a_checkpoint_keeps_cold_targets_of_its_own_table_and_drops_unknown_ones(path: Path) -> None:
    data = BERT4RecDataModule(str(path.parent), path.name)
    data.setup()
    same = interactions_of([items.split() for items in HISTORIES.values()])
    held_out = hold_out(same, data.vocabulary, 3, 2)
    assert (len(held_out.users), held_out.unknown_targets) == (len(HISTORIES), 0)
    later = interactions_of([[*items.split(), "from tomorrow"] for items in HISTORIES.values()])
    held_out = hold_out(later, data.vocabulary, 3, 2)
    assert (len(held_out.users), held_out.unknown_targets) == (0, len(HISTORIES))


def test_popularity_draws_by_training_interactions_alone(path: Path) -> None:
    contest = contest_of(path, 2, 1, ["popularity-100"], seed=1)
    data = BERT4RecDataModule(str(path.parent), path.name)
    data.setup()
    new = int(np.flatnonzero([name == "new" for name in data.vocabulary.ids.to_pylist()])[0]) + 1
    assert contest.counts[new - 1] == 0
    assert not (contest.negatives["popularity-100"] == new).any()


def test_at_validation_the_test_item_can_be_a_negative_and_the_users_own_history_cannot(path: Path) -> None:
    contest = contest_of(path, 2, 2, ["uniform-100"], seed=1)
    tests = contest_of(path, 2, 1, ["full"], seed=1).evaluation_set.targets
    negatives = contest.negatives["uniform-100"]  # so few items that all candidates are drawn
    assert (negatives == tests[:, None]).any(axis=1).all()
    sets = contest.evaluation_set
    for row, (start, stop) in enumerate(zip(sets.histories.starts, sets.histories.stops, strict=True)):
        assert not set(negatives[row]) & {*sets.tokens[start:stop].tolist(), int(sets.targets[row])}


def test_own_negatives_counts_what_the_exclusion_takes_out(path: Path) -> None:
    contest = contest_of(path, 2, 1, ["full"], seed=1)
    # So few items that all are drawn, the four of the own history among them; "d" is never trained on, so not popular.
    assert own_negatives(contest, protocols.UNIFORM, seed=1) == 4.0
    assert own_negatives(contest, "popularity-100", seed=1) == 3.0
