"""The built-in sample: the same from the same seed, shaped as it says, and safe for other files."""

import hashlib
import json
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import torch

from src import metrics
from src.data import BERT4RecDataModule, sample
from src.errors import UserError
from src.evaluation.baselines import LastItemSuccessors, Popularity
from src.evaluation.collector import Observer, observe

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
    return load(path)


def load(path: Path) -> BERT4RecDataModule:
    data = BERT4RecDataModule(str(path.parent), path.name, max_len=sample.LONGEST + 1)
    data.setup()
    return data


@pytest.fixture(scope="module")
def views(small: None) -> list[list[int]]:
    """The items of each viewer with seed 1, in order."""
    items, lengths, _ = sample.generate(seed=1)
    return [history[:length].tolist() for history, length in zip(items, lengths, strict=True)]


def histories_of(data: BERT4RecDataModule) -> list[list[int]]:
    offsets = data.sequences.offsets
    return [data.sequences.tokens[a:b].tolist() for a, b in pairwise(offsets)]


def series_of(item: int) -> tuple[int, int] | None:
    """Series and episode, both from 0; None for a film."""
    films = sample.GENRES * sample.FILMS
    return None if item < films else divmod(item - films, sample.EPISODES)


def genre_of(item: int) -> int:
    series = series_of(item)
    return (item if series is None else series[0]) % sample.GENRES


def expected_chances(catalogue: sample.Catalogue, history: list[int]) -> list[Fraction]:
    """The rules of the module's docstring, for one viewer, written again without arrays."""
    items = range(len(catalogue.genres))
    weights = dict.fromkeys(items, Fraction(0))
    for age, item in enumerate(reversed(history)):
        series = series_of(item)
        if series is None or item + 1 in history or series[1] == sample.EPISODES - 1:
            continue
        if age < len(sample.RESUME_WEIGHTS):  # else given up
            weights[item + 1] = Fraction(sample.RESUME_WEIGHTS[age])
    new = [item for item in items if catalogue.popularity[item] and item not in history]
    genres = {genre_of(item) for item in new}
    tastes = {g: 1 + sample.TASTE_WEIGHT * sum(genre_of(item) == g for item in history) for g in genres}
    for item in new:
        rivals = sum(int(catalogue.popularity[other]) for other in new if genre_of(other) == genre_of(item))
        taste = Fraction(tastes[genre_of(item)], sum(tastes.values()))
        weights[item] = sample.NEW_WEIGHT * taste * Fraction(int(catalogue.popularity[item]), rivals)
    total = sum(weights.values())
    return [weights[item] / total for item in items]


def test_the_file(path: Path, data: BERT4RecDataModule) -> None:
    table = pyarrow.csv.read_csv(path)
    assert table.column_names == ["user", "item", "time"]
    assert (np.diff(table["time"].to_numpy()) >= 0).all()
    assert table["user"][0].as_py().startswith("viewer-")
    items = set(table["item"].to_pylist())
    assert items <= set(sample.titles())
    assert {"film-002", "series-01-1"} <= items
    assert data.summary["users"] == data.summary["evaluated_users"] == USERS
    assert data.summary["short_users"] == data.summary["repeated_targets"] == 0
    lengths = np.diff(data.sequences.offsets)
    assert lengths.min() == sample.SHORTEST
    assert lengths.max() == sample.LONGEST
    assert [file.name for file in sorted(path.parent.iterdir())] == ["sample.csv", "sample.csv.best.json"]


def test_nobody_watches_anything_twice(data: BERT4RecDataModule) -> None:
    for history in histories_of(data):
        assert len(set(history)) == len(history)


def test_no_viewer_sees_two_films_at_once(path: Path) -> None:
    table = pyarrow.csv.read_csv(path)
    pairs = zip(table["user"].to_pylist(), table["time"].to_pylist(), strict=True)
    assert len(set(pairs)) == len(table)


def test_a_few_items_have_many_of_the_views(data: BERT4RecDataModule) -> None:
    counts = np.sort(np.bincount(data.sequences.tokens))[::-1]
    top = counts[: len(sample.titles()) // 10].sum() / counts.sum()
    assert 0.15 < top < 0.6  # a tenth of the items; all alike would have 0.1


def test_series_are_watched_in_order_and_often_after_interruptions(views: list[list[int]]) -> None:
    resumed = interrupted = 0
    for history in views:
        watched: dict[int, tuple[int, int]] = {}
        for place, item in enumerate(history):
            if (series := series_of(item)) is None:
                continue
            number, episode = series
            if episode == 0:
                assert number not in watched
            else:
                last_episode, last_place = watched[number]
                assert episode == last_episode + 1
                assert place - last_place <= len(sample.RESUME_WEIGHTS)
                resumed += 1
                interrupted += place > last_place + 1
            watched[number] = episode, place
    assert interrupted > 0.4 * resumed
    assert resumed > 0.4 * sum(map(len, views))


def test_new_items_follow_the_tastes_of_the_whole_history(views: list[list[int]]) -> None:
    """Where the last item is not of the favourite genre, that genre is still the likeliest one of something new."""
    as_favourite, as_last, cases = 0, 0, 0
    for history in views:
        for place in range(10, len(history)):
            before = [genre_of(item) for item in history[:place]]
            counts = np.bincount(before, minlength=sample.GENRES)
            series = series_of(history[place])
            is_new = series is None or series[1] == 0
            if is_new and counts[before[-1]] < counts.max():
                cases += 1
                as_favourite += genre_of(history[place]) == counts.argmax()
                as_last += genre_of(history[place]) == before[-1]
    assert cases > 300
    assert as_favourite > 1.3 * as_last
    assert as_favourite > 1.5 * cases / sample.GENRES


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two genres of two films and two series of three episodes, 16 items: viewers finish series and whole genres."""
    for name, value in {"GENRES": 2, "FILMS": 2, "SERIES": 2, "EPISODES": 3}.items():
        monkeypatch.setattr(sample, name, value)


def test_chances_are_those_of_the_rules(tiny: None) -> None:
    generator = np.random.default_rng(5)
    catalogue = sample.Catalogue(generator)
    viewers = sample.Viewers(catalogue, users=20)
    histories: list[list[int]] = [[] for _ in range(20)]
    for _ in range(len(sample.titles())):
        chances = viewers.chances()
        for row, history in zip(chances, histories, strict=True):
            np.testing.assert_allclose(row, np.array(expected_chances(catalogue, history), dtype=float), rtol=1e-12)
        items = sample.draw(generator, chances)
        viewers.watch(items)
        for item, history in zip(items.tolist(), histories, strict=True):
            history.append(item)
        if any(len(history) == len(sample.titles()) - 4 for history in histories):
            break  # soon some have nothing left to watch
    assert any(series_of(item) == (1, 2) for history in histories for item in history)


def test_draws_come_as_often_as_their_chances_say(tiny: None) -> None:
    generator = np.random.default_rng(6)
    viewers = sample.Viewers(sample.Catalogue(generator), users=20_000)
    for item in (0, 4, 1, 7):  # all alike: a film, a series of each genre, a film between them
        viewers.watch(np.full(20_000, item))
    chances = viewers.chances()
    shares = np.bincount(sample.draw(generator, chances), minlength=chances.shape[1]) / 20_000
    assert (shares[chances[0] == 0] == 0).all()
    np.testing.assert_allclose(shares, chances[0], atol=4 * 0.5 / np.sqrt(20_000))


def test_best_ranks_are_those_of_the_chances(small: None, views: list[list[int]]) -> None:
    _, _, ranks = sample.generate(seed=1)
    catalogue = sample.Catalogue(np.random.default_rng(1))
    for rank, history in list(zip(ranks, views, strict=True))[:30]:
        *before, target = history
        chances = np.array(expected_chances(catalogue, before), dtype=float)
        chances[before] = -1.0  # seen items are no candidates
        assert rank == (chances >= chances[target] * (1 - 1e-9)).sum() - 1


def test_the_histories_are_the_same_on_every_platform(few: None) -> None:
    items, lengths, ranks = sample.generate(seed=1)
    digest = hashlib.sha256()
    for array in (items, lengths, ranks):
        digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "e0ca0fcd51bcfac8"


def test_the_seed_decides(few: None, tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("same", 1), ("other", 2)):
        sample.write(tmp_path / name, seed)
    assert (tmp_path / "same").read_bytes() == (tmp_path / "first").read_bytes()
    assert (tmp_path / "other").read_bytes() != (tmp_path / "first").read_bytes()
    best = {name: sample.best_reachable_path(tmp_path / name).read_text() for name in ("first", "same", "other")}
    assert best["same"] == best["first"]
    assert json.loads(best["other"])["figures"] != json.loads(best["first"])["figures"]


def test_each_way_of_ranking_beats_the_one_before_it_by_far(tmp_path: Path) -> None:
    """At its real size: popularity, what followed the last item, and the most that can be had."""
    path = tmp_path / "sample.csv"
    sample.write(path, seed=1)
    content = json.loads(sample.best_reachable_path(path).read_text())
    assert content["seed"] == 1
    figures = content["figures"]
    assert set(figures) == {f"{name}@{k}" for name in ("hit", "ndcg") for k in (1, 5, 10, 20)} | {"mrr"}
    assert figures["hit@1"] < figures["hit@5"] < figures["hit@10"] < figures["hit@20"]
    assert figures["hit@1"] == figures["ndcg@1"] < figures["mrr"] < figures["hit@10"]
    data = load(path)
    counts = data.vocabulary.counts
    test = data.evaluation_set(from_end=1)
    successors = LastItemSuccessors(data.sequences.tokens, data.spans, counts)
    ndcgs = [
        metrics.means(torch.from_numpy(observe(rank, test, Observer({}, 10)).ranks["full"]), [10], "")["ndcg@10"]
        for rank in (Popularity(counts), successors)
    ]
    assert 0.02 < ndcgs[0] < 0.5 * ndcgs[1]
    assert ndcgs[1] < 0.7 * figures["ndcg@10"]
    assert 0.5 < figures["ndcg@10"] < 0.8


def test_best_reachable_ranks_are_of_unseen_items(small: None) -> None:
    items, lengths, ranks = sample.generate(seed=1)
    assert items.shape == (USERS, sample.LONGEST)
    assert len(lengths) == len(ranks) == USERS
    assert ranks.min() == 0
    assert (ranks <= len(sample.titles()) - lengths).all()


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
