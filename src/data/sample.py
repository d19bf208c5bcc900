"""The built-in sample: made-up viewing histories of a film service, whose true next-item distribution is known.

The catalogue has films and series, each of a genre. A viewer's next view is

- the next episode of a series whose last episode was one, two or three views ago. The one just watched is the least
  likely: most series are interrupted by something else before the viewer resumes them. Later, a series is given up;
- or something new, a film or the first episode of a series. Its genre is drawn in proportion to how often the viewer
  has watched each genre in the whole history (a Polya urn); within the genre, popular titles come more often.

Nobody watches anything twice. The last item alone tells too little: it is silent about the series to resume and the
genres preferred. The chances are functions of the items watched so far, without a hidden state, so they are known
exactly. No model can rank better than by them: the figures of that ranking are the best reachable ones.

All draws come from integers and basic arithmetic in a fixed order, so a seed gives the same sample on every platform.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from numpy.typing import NDArray

from .. import metrics
from ..atomic_files import part_of
from ..errors import UserError

USERS = 6000
GENRES = 6
FILMS, SERIES, EPISODES = 4, 5, 6  # films and series of each genre, episodes of each series
SHORTEST, LONGEST = 10, 30
RESUME_WEIGHTS = (2, 4, 4)  # of a series whose last episode was 1, 2, ... views ago; it is given up after these
NEW_WEIGHT = 1  # of something new, against the weights of all series to resume
TASTE_WEIGHT = 2  # of each view of a genre, against 1 for a genre without a view
POPULARITY_WEIGHT, POPULARITY_SHIFT = 60, 10  # the n-th title of a genre has WEIGHT / (n + SHIFT)
FIRST_TIME, MEAN_GAP = 1_600_000_000, 200_000  # seconds


def write(path: Path, seed: int) -> None:
    """Write the sample as a CSV, and the best reachable figures to a JSON file beside it.

    Files of an earlier call with the same seed are kept.

    Raises:
        UserError: if there is another file at `path`.
    """
    best_path = best_reachable_path(path)
    if path.exists():
        best = json.loads(best_path.read_text()) if best_path.exists() else {}
        if best.get("sha256") != _sha256(path):
            raise UserError(f"{path} exists and is not the sample, which would overwrite it: choose another data_file")
        if best["seed"] == seed:
            return
        path.unlink()  # so that it never stands beside the figures of another one
    path.parent.mkdir(parents=True, exist_ok=True)
    table, test_ranks = make(seed)
    part = part_of(path)
    pyarrow.csv.write_csv(table, part)
    figures = metrics.means(torch.from_numpy(test_ranks), [1, 5, 10, 20], "")
    best_path.write_text(json.dumps({"seed": seed, "sha256": _sha256(part), "figures": figures}, indent=2) + "\n")
    os.replace(part, path)


def interactions(seed: int = 42) -> pa.Table:
    """The sample as a table in memory: user, item, time."""
    return make(seed)[0]


def make(seed: int) -> tuple[pa.Table, NDArray[np.int64]]:
    """Draw the table, and the rank [USERS] of each viewer's last item as `generate` has it."""
    items, lengths, test_ranks = generate(seed)
    gaps = np.random.default_rng((seed, 1)).integers(1, 2 * MEAN_GAP, items.shape)
    times = FIRST_TIME + gaps.cumsum(axis=1)
    is_seen = np.arange(LONGEST) < lengths[:, None]
    users, places = is_seen.nonzero()
    order = np.argsort(times[users, places], kind="stable")  # the service logged what it saw as it happened
    users, places = users[order], places[order]
    table = pa.table(
        {
            "user": [f"viewer-{user:04d}" for user in users],
            "item": np.array(titles())[items[users, places]],
            "time": times[users, places],
        }
    )
    return table, test_ranks


def best_reachable_path(path: Path) -> Path:
    """Where the best reachable test figures of the sample at `path` stand."""
    return path.with_name(path.name + ".best.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def titles() -> list[str]:
    """Name all items: first the films, then the series, episode by episode."""
    films = [f"film-{film:03d}" for film in range(GENRES * FILMS)]
    return films + [f"series-{n:02d}-{episode}" for n in range(GENRES * SERIES) for episode in range(1, EPISODES + 1)]


class Catalogue:
    """Films and series, numbered as in `titles`; the generator draws which are popular.

    Attributes:
        genres: [items] int64, genre of each.
        popularity: [items] int64, weight of each as something new; 0 for all but films and first episodes.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        series = np.arange(GENRES * SERIES) % GENRES
        self.genres = np.concatenate([np.arange(GENRES * FILMS) % GENRES, np.repeat(series, EPISODES)])
        self.popularity = np.zeros(len(self.genres), dtype=np.int64)
        is_start = np.ones(len(self.genres), dtype=bool)
        is_start[GENRES * FILMS :] = np.arange(len(series) * EPISODES) % EPISODES == 0
        for genre in range(GENRES):
            starts = np.flatnonzero(is_start & (self.genres == genre))
            ranks = np.arange(1, len(starts) + 1) + POPULARITY_SHIFT
            self.popularity[generator.permutation(starts)] = POPULARITY_WEIGHT // ranks


class Viewers:
    """What viewers have watched so far, and the exact chance of each item to come next."""

    def __init__(self, catalogue: Catalogue, users: int) -> None:
        self.catalogue = catalogue
        self.rows = np.arange(users)
        self.views = 0  # of each viewer
        self.tastes = np.ones((users, GENRES), dtype=np.int64)
        self.is_unseen = np.ones((users, len(catalogue.genres)), dtype=bool)
        in_genre = [catalogue.popularity[catalogue.genres == genre].sum() for genre in range(GENRES)]
        self.unseen_popularity = np.tile(in_genre, (users, 1))  # [users, genres], of what would be new
        self.episodes = np.zeros((users, GENRES * SERIES), dtype=np.int64)  # watched of each series
        self.last_views = np.zeros((users, GENRES * SERIES), dtype=np.int64)  # which view the last of them was, from 1

    def chances(self) -> NDArray[np.float64]:
        """Compute the chance of each item to be watched next, [users, items]; each row sums to 1."""
        is_unfinished = (self.episodes > 0) & (self.episodes < EPISODES)  # [users, series]
        ages = np.minimum(self.views - self.last_views, len(RESUME_WEIGHTS))
        resume = is_unfinished * np.array([*RESUME_WEIGHTS, 0])[ages]
        total = NEW_WEIGHT + resume.sum(axis=1, keepdims=True)  # [users, 1]

        tastes = self.tastes * (self.unseen_popularity > 0)  # [users, genres]
        share = NEW_WEIGHT / total * tastes / tastes.sum(axis=1, keepdims=True) / np.maximum(self.unseen_popularity, 1)
        chances: NDArray[np.float64] = share[:, self.catalogue.genres] * self.catalogue.popularity * self.is_unseen
        rows, series = is_unfinished.nonzero()
        chances[rows, GENRES * FILMS + series * EPISODES + self.episodes[rows, series]] = (resume / total)[rows, series]
        return chances

    def watch(self, items: NDArray[np.int64]) -> None:
        """Record the next view of each viewer, [users]."""
        self.views += 1
        genres = self.catalogue.genres[items]
        self.tastes[self.rows, genres] += TASTE_WEIGHT
        self.unseen_popularity[self.rows, genres] -= self.catalogue.popularity[items]
        self.is_unseen[self.rows, items] = False
        rows = np.flatnonzero(items >= GENRES * FILMS)
        series = (items[rows] - GENRES * FILMS) // EPISODES
        self.episodes[rows, series] += 1
        self.last_views[rows, series] = self.views


def generate(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Draw all histories.

    Returns:
        items [USERS, LONGEST] int64 (what follows a history's end means nothing), lengths [USERS] int64, and the rank
        [USERS] int64 of each viewer's last item when all unseen items are ranked by their chance given those before.
    """
    generator = np.random.default_rng(seed)
    viewers = Viewers(Catalogue(generator), USERS)
    lengths = generator.integers(SHORTEST, LONGEST + 1, USERS)
    items = np.zeros((USERS, LONGEST), dtype=np.int64)
    test_ranks = np.zeros(USERS, dtype=np.int64)
    for place in range(LONGEST):  # one step for all viewers at once
        chances = viewers.chances()  # [users, items]
        item = draw(generator, chances)
        items[:, place] = item
        is_last = lengths == place + 1
        chance_of_item = chances[viewers.rows, item][:, None]
        is_ahead = (chances >= chance_of_item) & viewers.is_unseen  # a tie counts against the target
        test_ranks[is_last] = is_ahead[is_last].sum(axis=1) - 1
        viewers.watch(item)
    return items, lengths, test_ranks


def draw(generator: np.random.Generator, chances: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw one item for each row of chances [users, items]."""
    cumulative = chances.cumsum(axis=1)
    points = generator.random(len(chances)) * cumulative[:, -1]
    items: NDArray[np.int64] = (cumulative <= points[:, None]).sum(axis=1)
    return items
