"""Tables in the form that training and prediction start from, kept in a cache between runs."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from .cache import cached
from .interactions import Interactions, read_interactions
from .readers import sources
from .sequences import Indices, Sequences, Tokens, build
from .table import Frame, TableOptions


@dataclass(frozen=True)
class TrainingData:
    """Histories to train on, of the users and items that are left."""

    tokens: Tokens  # as in `Sequences`
    offsets: Indices
    item_ids: pa.StringArray  # [N] strings, `item_ids[t - 1]` of token t
    user_ids: pa.StringArray  # [E] strings
    counts: dict[str, int]  # rows, users and items of the whole table, and the like; see `BERT4RecDataModule.summary`
    notes: tuple[str, ...]  # what reading the table had to say
    targets: str = ""  # which items are targets; empty for leave-one-out, which follows from the histories

    @property
    def sequences(self) -> Sequences:
        return Sequences(self.tokens, self.offsets)


def load_interactions(
    path: Path | Frame, options: TableOptions, cache: Path | None, keeps_times: bool = False
) -> Interactions:
    """`read_interactions`, from the folder `cache` if it has been read before; a frame is in no cache."""

    def make() -> Interactions:
        return read_interactions(path, options, keeps_times)

    if isinstance(path, Frame):
        return make()
    name, files = "interactions", sources.find(path)
    settings = asdict(options) | ({"keeps_times": True} if keeps_times else {})
    return cached(Interactions, make, folder=cache, name=name, files=files, settings=settings)


def load_training_data(
    path: Path | Frame, options: TableOptions, min_interactions: int, min_item_interactions: int, cache: Path | None
) -> TrainingData:
    """The table's histories as tokens, of the users and items that have enough interactions."""
    least = {"min_interactions": min_interactions, "min_item_interactions": min_item_interactions}

    def make() -> TrainingData:
        interactions = load_interactions(path, options, cache)
        sequences, item_ids, user_ids = build(interactions, **least)
        counts = {
            "rows": len(interactions.items),
            "users": len(interactions.user_ids),
            "items": len(interactions.item_ids),
            "has_time": int(interactions.has_time),
            "short_users": len(interactions.user_ids) - len(user_ids),
            "short_users_rows": len(interactions.items) - len(sequences.tokens),
            "longest_history": int(interactions.lengths.max()),
        }
        return TrainingData(sequences.tokens, sequences.offsets, item_ids, user_ids, counts, interactions.notes)

    if isinstance(path, Frame):
        return make()
    name, files = "training", sources.find(path)
    return cached(TrainingData, make, folder=cache, name=name, files=files, settings=asdict(options) | least)
