"""Small tables for the tests of this folder."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from src.data.interactions import Interactions
from src.data.sequences import Sequences, Spans

NUM_ITEMS = 13

# Tokens of a few users, repeats included.
histories_strategy = st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=12), min_size=1, max_size=5)


def offsets_of(histories: Sequence[Sequence[object]]) -> np.ndarray:
    return np.cumsum([0, *(len(history) for history in histories)])


def sequences_of(histories: Sequence[Sequence[int]]) -> Sequences:
    tokens = np.array([token for history in histories for token in history], dtype=np.int64)
    return Sequences(tokens, offsets_of(histories))


def interactions_of(histories: Sequence[Sequence[str]]) -> Interactions:
    """Interactions of the users u0, u1, ... from the item ids of each."""
    ids = [item for history in histories for item in history]
    item_ids = list(dict.fromkeys(ids))
    return Interactions(
        items=np.array([item_ids.index(item) for item in ids], dtype=np.int64),
        offsets=offsets_of(histories),
        user_ids=pa.array([f"u{user}" for user in range(len(histories))], pa.string()),
        item_ids=pa.array(item_ids, pa.string()),
        has_time=False,
    )


def lists_of(tokens: np.ndarray, spans: Spans) -> list[list[int]]:
    """What each span holds."""
    return [tokens[start:stop].tolist() for start, stop in zip(spans.starts, spans.stops, strict=True)]


def write_table(path: Path, header: str, rows: Iterable[Sequence[object]]) -> Path:
    """A CSV, quoted where it has to be."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)
    return path


def write_histories(path: Path, histories: dict[str, str]) -> Path:
    """A CSV without times: `{"ann": "a b c"}` is a user with three items."""
    return write_table(path, "user,item", [(user, item) for user in histories for item in histories[user].split()])
