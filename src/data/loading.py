"""Tables in the form that training and prediction start from, kept in a cache between runs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from .cache import Content, cached
from .interactions import Interactions, read_interactions
from .readers import sources
from .sequences import Sequences, build
from .table import TableOptions


@dataclass(frozen=True)
class TrainingData:
    """Histories to train on."""

    sequences: Sequences  # of the users and items that are left
    item_ids: pa.StringArray  # [N] strings, `item_ids[t - 1]` of token t
    user_ids: pa.StringArray  # [E] strings, of the users that are left
    counts: dict[str, int]  # rows, users and items of the whole table, and the like; see `BERT4RecDataModule.summary`
    notes: tuple[str, ...]  # what reading the table had to say


def load_interactions(path: Path, options: TableOptions, cache: Path | None) -> Interactions:
    """`read_interactions`, from the folder `cache` if it has been read before."""

    def make() -> Content:
        table = read_interactions(path, options)
        return Content(
            {"items": table.items, "offsets": table.offsets},
            {"user_ids": table.user_ids, "item_ids": table.item_ids},
            {"has_time": table.has_time, "notes": list(table.notes)},
        )

    content = cached(cache, "interactions", sources.find(path), asdict(options), make)
    notes = tuple(content.facts["notes"])
    return Interactions(**content.arrays, **content.ids, has_time=content.facts["has_time"], notes=notes)


def load_training_data(
    path: Path, options: TableOptions, min_interactions: int, min_item_interactions: int, cache: Path | None
) -> TrainingData:
    """The table's histories as tokens, of the users and items that have enough interactions."""

    def make() -> Content:
        interactions = load_interactions(path, options, cache)
        sequences, item_ids, user_ids = build(interactions, min_interactions, min_item_interactions)
        lengths = interactions.lengths
        counts = {
            "rows": int(lengths.sum()),
            "users": len(lengths),
            "items": len(interactions.item_ids),
            "has_time": int(interactions.has_time),
            "short_users": len(lengths) - len(sequences.histories),
            "short_users_rows": len(interactions.items) - len(sequences.tokens),
            "longest_history": int(lengths.max()),
        }
        return Content(
            {"tokens": sequences.tokens, "offsets": sequences.offsets},
            {"item_ids": item_ids, "user_ids": user_ids},
            {"counts": counts, "notes": list(interactions.notes)},
        )

    settings: dict[str, Any] = {
        **asdict(options),
        "min_interactions": min_interactions,
        "min_item_interactions": min_item_interactions,
    }
    content = cached(cache, "training", sources.find(path), settings, make)
    sequences = Sequences(content.arrays["tokens"], content.arrays["offsets"])
    return TrainingData(sequences, **content.ids, counts=content.facts["counts"], notes=tuple(content.facts["notes"]))
