"""The built-in sample: the same from the same seed, shaped as it says, and safe for other files."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import torch

from src import ranking
from src.baselines import Popularity
from src.data import BERT4RecDataModule, sample
from src.errors import UserError
from src.evaluation.observer import Observer, observe

USERS = 400  # fewer than in the real one, for speed


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "USERS", USERS)
        yield


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the number of viewers does not matter."""
    monkeypatch.setattr(sample, "USERS", 40)


@pytest.fixture(scope="module")
def path(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample with seed 1, which no test changes."""
    path = tmp_path_factory.mktemp("sample") / "new" / "folder" / "sample.csv"
    sample.write(path, seed=1)
    return path


@pytest.fixture(scope="module")
def data(path: Path) -> BERT4RecDataModule:
    data = BERT4RecDataModule(str(path.parent), path.name, max_len=61)
    data.setup()
    return data


def histories_of(data: BERT4RecDataModule) -> list[list[int]]:
    offsets = data.sequences.offsets
    return [data.sequences.tokens[a:b].tolist() for a, b in pairwise(offsets)]


def successor_hit_rate(data: BERT4RecDataModule, training: list[list[int]]) -> float:
    """HIT@10 of ranking films by how often they follow the last one in `training`."""
    follows = np.zeros((data.num_items + 2, data.num_items + 2))
    for history in training:
        np.add.at(follows, (history[:-1], history[1:]), 1.0)
    test = data.evaluation_set(from_end=1)
    hits = []
    for batch in test[np.arange(len(test.targets))]:
        scores = torch.from_numpy(follows[batch.inputs[:, -2].numpy()] + 1e-6 * np.arange(data.num_items + 2))
        scores = ranking.candidate_scores(scores, batch.seen_rows, batch.seen_items)
        hits.append(ranking.hit(ranking.target_ranks(scores, batch.targets), 10))
    return torch.cat(hits).mean().item()


def favourite(genres: np.ndarray) -> int:
    return int(np.bincount(genres).argmax())


def test_the_file(path: Path, data: BERT4RecDataModule) -> None:
    table = pyarrow.csv.read_csv(path)
    assert table.column_names == ["user", "item", "time"]
    assert (np.diff(table["time"].to_numpy()) >= 0).all()
    assert table["user"][0].as_py().startswith("viewer-")
    assert table["item"][0].as_py().startswith("film-")
    assert data.summary["users"] == data.summary["evaluated_users"] == USERS
    assert data.summary["short_users"] == data.summary["repeated_targets"] == 0
    lengths = np.diff(data.sequences.offsets)
    assert lengths.min() == sample.SHORTEST
    assert lengths.max() == sample.LONGEST
    assert [file.name for file in sorted(path.parent.iterdir())] == ["sample.csv", "sample.csv.best.json"]


def test_nobody_sees_a_film_twice(data: BERT4RecDataModule) -> None:
    for history in histories_of(data):
        assert len(set(history)) == len(history)


def test_no_viewer_sees_two_films_at_once(path: Path) -> None:
    table = pyarrow.csv.read_csv(path)
    pairs = zip(table["user"].to_pylist(), table["time"].to_pylist(), strict=True)
    assert len(set(pairs)) == len(table)


def test_few_films_have_most_of_the_views(data: BERT4RecDataModule) -> None:
    views = np.sort(np.bincount(data.sequences.tokens))[::-1]
    top = views[: sample.FILMS // 10].sum() / views.sum()
    assert 0.15 < top < 0.6  # a tenth of the films; all alike would have 0.1


def test_the_seed_decides(few: None, tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("same", 1), ("other", 2)):
        sample.write(tmp_path / name, seed)
    assert (tmp_path / "same").read_bytes() == (tmp_path / "first").read_bytes()
    assert (tmp_path / "other").read_bytes() != (tmp_path / "first").read_bytes()
    best = {name: sample.best_reachable_path(tmp_path / name).read_text() for name in ("first", "same", "other")}
    assert best["same"] == best["first"]
    assert json.loads(best["other"])["figures"] != json.loads(best["first"])["figures"]


def test_best_reachable_figures_are_far_above_popularity(path: Path, data: BERT4RecDataModule) -> None:
    content = json.loads(sample.best_reachable_path(path).read_text())
    assert content["seed"] == 1
    figures = content["figures"]
    assert set(figures) == {f"{name}@{k}" for name in ("hit", "ndcg") for k in (1, 5, 10, 20)} | {"mrr"}
    popularity = observe(Popularity(data.vocabulary.counts), data.evaluation_set(from_end=1), Observer({}, 10))
    by_popularity = ranking.metrics(torch.from_numpy(popularity.ranks["full"]), [10], "")["hit@10"]
    assert by_popularity < 0.3
    assert 0.6 < figures["hit@10"] < 0.95
    assert figures["hit@1"] < figures["hit@5"] < figures["hit@10"] < figures["hit@20"]
    assert figures["hit@1"] == figures["ndcg@1"] < figures["mrr"] < figures["hit@10"]


def test_best_reachable_ranks_are_of_unseen_films(small: None) -> None:
    films, lengths, ranks = sample.generate(seed=1)
    assert films.shape == (USERS, sample.LONGEST)
    assert len(lengths) == len(ranks) == USERS
    assert ranks.min() == 0
    assert (ranks <= sample.FILMS - lengths).all()
    # The most likely film of all has a chance of FOLLOW_UP times the largest share, or somewhat more.
    assert 0.3 < (ranks == 0).mean() < 0.6


def test_order_matters(path: Path, data: BERT4RecDataModule) -> None:
    """What followed a film before is a good guess, but only as long as the histories keep their order."""
    training = [history[:-2] for history in histories_of(data)]
    shuffle = np.random.default_rng(3).permutation
    in_order = successor_hit_rate(data, training)
    assert in_order > 0.5
    assert successor_hit_rate(data, [shuffle(history).tolist() for history in training]) < 0.5 * in_order
    best = json.loads(sample.best_reachable_path(path).read_text())["figures"]["hit@10"]
    assert in_order < best + 0.02


def test_tastes_last_but_drift(small: None) -> None:
    films, lengths, _ = sample.generate(seed=1)
    genres = films % sample.GENRES
    is_pair = np.arange(1, sample.LONGEST) < lengths[:, None]
    stays = (genres[:, 1:] == genres[:, :-1])[is_pair].mean()
    assert 4 / sample.GENRES < stays < 1
    long = [history[:length] for history, length in zip(genres, lengths, strict=True) if length >= 30]
    moves = np.array([(favourite(history[-10:]) - favourite(history[:10])) % sample.GENRES for history in long])
    # Without drift, half of the long histories would end in the genre they began with.
    assert (moves == 0).mean() < 0.3
    assert np.isin(moves, [1, sample.GENRES - 1]).mean() > 2 / sample.GENRES  # a neighbour, more often than by chance


def test_the_same_seed_keeps_the_files_and_another_one_replaces_them(few: None, tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    sample.write(path, seed=1)
    before = path.stat().st_mtime_ns
    sample.write(path, seed=1)
    assert path.stat().st_mtime_ns == before
    text = path.read_text()
    sample.write(path, seed=2)
    assert path.read_text() != text
    assert json.loads(sample.best_reachable_path(path).read_text())["seed"] == 2


def test_another_file_is_never_overwritten(few: None, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("user,item\na,x\n")
    with pytest.raises(UserError) as caught:
        sample.write(path, seed=1)
    assert str(caught.value) == (
        f"{path} exists and is not the sample, which would overwrite it: choose another data_file"
    )
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "user,item\na,x\n"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_file_put_in_the_place_of_the_sample_is_another_file(few: None, tmp_path: Path, seed: int) -> None:
    """Neither overwritten, nor shown with the best reachable figures of the sample that was there."""
    path = tmp_path / "sample.csv"
    sample.write(path, seed=1)
    path.write_text("user,item\na,x\n")
    with pytest.raises(UserError, match="exists and is not the sample"):
        sample.write(path, seed)
    assert path.read_text() == "user,item\na,x\n"
