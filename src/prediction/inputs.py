"""What a prediction begins from: histories of the users asked for, and the items that they may get."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from lightning_utilities.core.rank_zero import rank_zero_only

from ..data import id_forms
from ..data.from_settings import read_table
from ..data.id_lists import barred_tokens, read_ids
from ..data.interactions import Interactions
from ..data.sequences import Sequences, encode, select_users
from ..data.vocabulary import Vocabulary
from ..errors import UserError
from ..settings import Config

say = rank_zero_only(print)


def read_histories(config: Config) -> Interactions:
    """The table to predict from, of the users asked for."""
    history = config.inference.history
    table = config.data.path if history is None else Path(history).expanduser()
    interactions = read_table(config, table if history is not None else None)
    if config.inference.users is None:
        return interactions
    known = interactions.user_ids
    interactions, is_there = select_users(interactions, read_ids(Path(config.inference.users).expanduser(), "user"))
    if not is_there.all():
        absent = interactions.user_ids.filter(~is_there)
        say(f"warning: {len(absent):,} users of inference.users are not in {table}: {first_few(absent, known)}")
    return interactions


def encode_histories(
    interactions: Interactions, vocabulary: Vocabulary, otherwise: str = "get the most popular ones"
) -> Sequences:
    """Histories of known items; says which items the model does not know, and what users without any `otherwise` do."""
    sequences, dropped = encode(interactions, vocabulary)
    if matched := id_forms.matched(interactions.item_ids, vocabulary.ids):
        say(f"ids         {matched}")
    if dropped.any():
        unknown = interactions.item_ids.filter(dropped > 0)
        say(
            f"warning: {dropped.sum():,} interactions with {len(unknown):,} items that the model does not know are left"
            f" out: {first_few(unknown, vocabulary.ids)}"
        )
    is_new = sequences.histories.lengths == 0
    if is_new.any():
        say(f"warning: {is_new.sum():,} users have no known item and {otherwise}")
    return sequences


def read_barred(config: Config, vocabulary: Vocabulary) -> np.ndarray | None:
    """Which tokens no user may get, by inference.candidates and inference.exclude: [num_items + 2] bool, or None."""
    allowed = read_items("inference.candidates", config.inference.candidates, vocabulary)
    blocked = read_items("inference.exclude", config.inference.exclude, vocabulary)
    is_barred = barred_tokens(len(vocabulary), allowed, blocked)
    if is_barred is not None and is_barred[1:-1].all():
        raise UserError(
            "inference.candidates and inference.exclude leave no item that the model knows: their ids must be those of"
            " the table that it was trained on"
        )
    return is_barred


def read_items(key: str, name: str | None, vocabulary: Vocabulary) -> np.ndarray | None:
    """Tokens of a list of items, 0 for what the model does not know; None if no list is given."""
    if name is None:
        return None
    ids = read_ids(Path(name).expanduser(), "item")
    tokens = vocabulary.encode(ids)
    unknown = ids.filter(tokens == 0)
    if len(unknown):
        some = first_few(unknown, vocabulary.ids)
        say(f"warning: {key} has {len(unknown):,} items that the model does not know: {some}")
    return tokens


def first_few(ids: pa.StringArray, known: pa.StringArray) -> str:
    """The first of some ids that are not known, and which are known in another form."""
    return ", ".join(ids[:5].to_pylist()) + (", ..." if len(ids) > 5 else "") + id_forms.near(ids, known)
