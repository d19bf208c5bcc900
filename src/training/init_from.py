"""A new run from the weights of an earlier one, on a table whose items may be others: `training.init_from`.

V tokens of the new run, V' of the earlier one, D hidden_units.
"""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from ..data import BERT4RecDataModule, id_forms
from ..data.sequences import Indices, Spans, Tokens, flatten
from ..data.vocabulary import Vocabulary
from ..errors import UserError
from ..models import BERT4Rec
from ..models.network import Network
from ..runs import checkpoint
from ..settings.keys import value_text
from . import resume
from .callbacks import LastCheckpoint

# Parts of an architecture that weights depend on; max_len may differ, since positions count from the end.
SAME = (
    *("hidden_units", "num_heads", "num_layers", "share_embeddings"),
    *("embedding_norm_first", "output_transform", "output_bias"),
)
TABLES = ("item_embedding.weight", "output.weight", "output.bias")  # a row for each token
POSITIONS = "position_embedding.weight"
NEW = -1  # the earlier token of an item that the earlier run did not have
WAY_OUT = "or train from the beginning with training.init_from=null"


def start(file: str, model: BERT4Rec, data: BERT4RecDataModule, trainer: pl.Trainer, last: LastCheckpoint) -> str:
    """Give a model that was just built the weights of a checkpoint; `last` notes in those to come where they are from.

    Returns:
        Lines that say what was taken over and what is new.

    Raises:
        UserError: if it is no checkpoint of this package, its sizes differ, or it knows no item of the table.
    """
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise UserError("training.init_from on several devices needs training.strategy=ddp")
    if not trainer.is_global_zero:  # DDP sends the weights of the first process to all others
        return ""
    path = Path(file).expanduser()
    content = checkpoint.read(path)
    earlier, known = checkpoint.build(content, path)
    _require_same_sizes(model.network, earlier.network, path)
    ids = data.vocabulary.ids
    origin = origins(data.vocabulary, known)
    is_new = origin == NEW
    if is_new[1:-1].all():
        near = id_forms.near(ids, known.ids)
        raise UserError(
            f"training.init_from={path} knows none of the {len(ids):,} items of {data.path}{near}: name a checkpoint of"
            f" an earlier table with the same ids, {WAY_OUT}"
        )
    counts = sources(origin, len(known) + 2, data.sequences.tokens, data.spans)
    has_source = take_over(model.network, earlier.network, counts)
    new, beside_known = int(is_new.sum()), int((is_new & has_source).sum())
    gone = len(known) + 3 - len(np.unique(np.append(origin, NEW)))  # padding, [MASK] and NEW are no items
    step = content.get("global_step", 0)
    last.settings[resume.ORIGIN] = f"{path.name}, {len(known)} items, step {step}"  # without the folder
    positions = f"{min(model.max_len, earlier.max_len):,} of {model.max_len:,} positions"
    lines = [
        *id_forms.lines(ids, known.ids),
        f"init_from   {path}: {len(ids) - new:,} of {len(ids):,} items, {positions} and"
        f" {len(earlier.network.blocks)} blocks taken over, {gone:,} items dropped",
    ]
    if new:
        at_random = new - beside_known
        lines.append(f"new items   {beside_known:,} start from the mean of their neighbours, {at_random:,} at random")
    return "\n".join(lines)


def origins(vocabulary: Vocabulary, earlier: Vocabulary) -> Indices:
    """The earlier token of each token, padding and [MASK] included; `NEW` where there is none. [V] int64."""
    tokens = earlier.encode(vocabulary.ids)
    return np.concatenate([[0], np.where(tokens > 0, tokens, NEW), [len(earlier) + 1]])


def sources(origin: Indices, num_earlier: int, tokens: Tokens, spans: Spans) -> Tensor:
    """How often each earlier token counts in the start of each token: sparse [V, V'] float32.

    A known token has its own earlier one, once. A new item has the known ones right before and right after it in the
    training histories, as often as they stand there; none, if it never stands beside one.

    Args:
        origin: as `origins` gives it.
        num_earlier: V'.
        tokens, spans: the training histories.
    """
    rows, items = flatten(tokens, spans)
    is_beside = rows[1:] == rows[:-1]
    before, after = items[:-1][is_beside], items[1:][is_beside]
    known = np.flatnonzero(origin != NEW)
    pairs = [np.stack([known, origin[known]])]
    for item, neighbour in ((before, after), (after, before)):
        counts = (origin[item] == NEW) & (origin[neighbour] != NEW)
        pairs.append(np.stack([item[counts], origin[neighbour[counts]]]))
    places = torch.from_numpy(np.concatenate(pairs, axis=1))  # [2, P]
    size, ones = (len(origin), num_earlier), torch.ones(places.shape[1])
    return torch.sparse_coo_tensor(places, ones, size, check_invariants=True).coalesce()


@torch.no_grad()
def take_over(network: Network, earlier: Network, counts: Tensor) -> np.ndarray:
    """Overwrite the weights of `network` where `earlier` has something for them.

    Each row of a token becomes the mean of the earlier rows that `counts` names; rows without any stay as they were
    drawn. Positions are taken over from the end, all else as it is.

    Args:
        counts: as `sources` gives it.

    Returns:
        Which tokens have an earlier row. [V] bool.
    """
    totals = torch.sparse.sum(counts, dim=1).to_dense()  # [V]
    has_source = totals > 0
    theirs = earlier.state_dict()
    for name, weights in network.state_dict().items():  # the parameters' own memory
        if name in TABLES:
            table = theirs[name].reshape(counts.shape[1], -1)  # [V', D], of the bias [V', 1]
            means = torch.sparse.mm(counts, table) / totals[:, None]
            weights[has_source] = means[has_source].view(-1, *weights.shape[1:])
        elif name == POSITIONS:
            shared = min(len(weights), len(theirs[name]))
            weights[-shared:] = theirs[name][-shared:]
        else:
            weights.copy_(theirs[name])
    return has_source.numpy()


def _require_same_sizes(network: Network, earlier: Network, path: Path) -> None:
    here, there = vars(network.architecture), vars(earlier.architecture)
    different = [name for name in SAME if here[name] != there[name]]
    if different:
        needed = " ".join(f"model.{name}={value_text(there[name])}" for name in different)
        given = ", ".join(f"{name}={value_text(here[name])}" for name in different)
        raise UserError(
            f"training.init_from={path} was trained with {needed}, and here it is {given}: use the same, {WAY_OUT}"
        )
