"""The built-in sample: made-up viewing histories of a film service, whose true next-item distribution is known.

Films have a genre and a popularity (Zipf within the genre). A viewer has a current genre that drifts over time. The
next film is, with a fixed chance, a follow-up of the last one, else a popular film of the current genre, else any
popular film; nobody sees a film twice. So order matters and popularity alone does poorly. Whoever knows these rules can
work out from a history how likely each genre, and so each next film, is: no model can know more, so the figures of that
ranking are the best reachable ones.
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

from src import ranking
from src.errors import UserError

USERS, FILMS, GENRES = 3000, 400, 8
SHORTEST, LONGEST = 12, 60
FOLLOW_UP, IN_GENRE = 0.6, 0.32  # the rest of the probability goes to any popular film
FOLLOW_UP_SHARES = (0.6, 0.3, 0.1)  # of a film's three follow-ups
DRIFT = 0.08  # chance that a viewer's genre moves to a neighbouring one before a film
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
    films, lengths, test_ranks = generate(seed)
    generator = np.random.default_rng((seed, 1))
    gaps = generator.exponential(MEAN_GAP, films.shape).astype(np.int64) + 1
    times = FIRST_TIME + gaps.cumsum(axis=1)
    is_seen = np.arange(LONGEST) < lengths[:, None]
    users, places = is_seen.nonzero()
    order = np.argsort(times[users, places], kind="stable")  # the service logged what it saw as it happened
    users, places = users[order], places[order]
    table = pa.table(
        {
            "user": [f"viewer-{user:04d}" for user in users],
            "item": [f"film-{film:03d}" for film in films[users, places]],
            "time": times[users, places],
        }
    )
    part = path.with_name(path.name + ".part")
    pyarrow.csv.write_csv(table, part)
    figures = ranking.metrics(torch.from_numpy(test_ranks), [1, 5, 10, 20], "")
    best_path.write_text(json.dumps({"seed": seed, "sha256": _sha256(part), "figures": figures}, indent=2) + "\n")
    os.replace(part, path)


def best_reachable_path(path: Path) -> Path:
    """Where the best reachable test figures of the sample at `path` stand."""
    return path.with_name(path.name + ".best.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def generate(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Draw all histories.

    Returns:
        films [USERS, LONGEST] int64 (what follows a history's end means nothing), lengths [USERS] int64, and the rank
        [USERS] int64 that each viewer's last film has when all unseen films are ranked by their probability given the
        films before. The viewer's genre is not given: a belief over the genres follows it, by Bayes' rule.
    """
    generator = np.random.default_rng(seed)
    genres = np.arange(FILMS) % GENRES
    popularity = 1.0 / (1.0 + np.arange(FILMS) // GENRES) ** 0.8
    popularity /= popularity.sum()
    in_genre = (genres == np.arange(GENRES)[:, None]) * popularity  # [genres, films]
    in_genre *= IN_GENRE / in_genre.sum(axis=1, keepdims=True)
    follows = _follow_ups(generator, genres)  # [films, films]
    stays = np.eye(GENRES)
    drift = (1.0 - DRIFT) * stays + 0.5 * DRIFT * (np.roll(stays, 1, axis=1) + np.roll(stays, -1, axis=1))

    lengths = np.clip(generator.lognormal(3.3, 0.5, USERS), SHORTEST, LONGEST).astype(np.int64)
    taste = generator.integers(0, GENRES, USERS)
    belief = np.full((USERS, GENRES), 1.0 / GENRES)
    films = np.zeros((USERS, LONGEST), dtype=np.int64)
    is_unseen = np.ones((USERS, FILMS), dtype=bool)
    test_ranks = np.zeros(USERS, dtype=np.int64)
    viewers = np.arange(USERS)
    for place in range(LONGEST):  # one step for all viewers at once
        moves = generator.random(USERS) < DRIFT
        taste = (taste + moves * generator.choice([-1, 1], USERS)) % GENRES
        in_any = (1.0 - FOLLOW_UP - IN_GENRE) * popularity
        in_any = (in_any + FOLLOW_UP * (follows[films[:, place - 1]] if place else popularity)) * is_unseen
        cumulative = (in_any + in_genre[taste] * is_unseen).cumsum(axis=1)  # [users, films]
        draws = generator.random(USERS) * cumulative[:, -1]
        film = (cumulative <= draws[:, None]).sum(axis=1)
        films[:, place] = film

        totals = in_any.sum(axis=1, keepdims=True) + is_unseen @ in_genre.T  # [users, genres]
        belief = (belief @ drift) / totals
        is_last = lengths == place + 1
        likely = belief.sum(axis=1, keepdims=True) * in_any + (belief @ in_genre) * is_unseen  # [users, films]
        test_ranks[is_last] = (likely >= likely[viewers, film][:, None])[is_last].sum(axis=1) - 1
        belief *= in_any[viewers, film][:, None] + in_genre[:, film].T
        belief /= belief.sum(axis=1, keepdims=True)
        is_unseen[viewers, film] = False
    return films, lengths, test_ranks


def _follow_ups(generator: np.random.Generator, genres: NDArray[np.int64]) -> NDArray[np.float64]:
    """Chance of each film to follow each other one, [films, films]: three follow-ups within the genre."""
    follows = np.zeros((FILMS, FILMS))
    for genre in range(GENRES):
        films = np.flatnonzero(genres == genre)
        circle = generator.permutation(films)  # no film follows itself
        for distance, share in enumerate(FOLLOW_UP_SHARES, start=1):
            follows[circle, np.roll(circle, distance)] = share
    return follows
