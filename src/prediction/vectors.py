"""The model's vectors for other programs, and the items most similar to given ones.

The product of a user's vector with an item's is the model's score, so that an index over the items' vectors finds the
best items of a user.

N items, B users of a batch, L length of their histories, V tokens (N + 2), W width of a vector: hidden_units, and one
more where the output layer has a bias.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from ..atomic_files import part_of
from ..batch import PAD
from ..data.batching import HistorySet
from ..data.vocabulary import Vocabulary
from ..errors import UserError
from ..kernels import door
from ..models.network import Network, last_places
from ..runs import checkpoint, devices
from ..runs.folder import RunFolder
from ..settings import Config
from .inputs import encode_histories, read_barred, read_histories, read_items, say
from .similar_items import nearest_items
from .writer import TableFile


def item_vectors(network: Network) -> Tensor:
    """The output layer's row of each item, and behind it the item's bias if there is one: [N, W] float32."""
    weight, bias = network.output.weight, network.output.bias
    rows = weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)  # [V, W]
    return rows[1:-1].float()


def user_vectors(network: Network, inputs: Tensor) -> Tensor:
    """What the output layer multiplies after each history, and 1 behind it for the bias if there is one.

    Args:
        inputs: [B, L] int64, histories that end in [MASK].

    Returns:
        [B, W] float32.
    """
    states = network.output_transform(door.encode(network, inputs, last_places(inputs)))  # [B, D]
    return F.pad(states, (0, 0 if network.output.bias is None else 1), value=1.0).float()


@rank_zero_only
@torch.inference_mode()
def write_vectors(config: Config, checkpoint_path: Path) -> None:
    """Write what `inference.embeddings`, `inference.similar` and `inference.user_vectors` ask for.

    Raises:
        UserError: if an input cannot be read, an output cannot be written, or a weight is NaN or infinite.
    """
    settings = config.inference
    network, vocabulary = checkpoint.load_network(checkpoint_path)
    device = torch.device("cuda" if devices.trains_on_cuda(config.training.accelerator) else "cpu")
    network.to(device)
    say(f"model       {checkpoint_path}, {len(vocabulary):,} items")
    say(f"device      {devices.name(device)}")
    vectors = item_vectors(network)
    if settings.embeddings is not None:
        _write_rows(settings.embeddings, "item", vocabulary.ids, vectors.shape[1], [vectors])
    if settings.similar is not None:
        _write_similar(config, network, vocabulary)
    if settings.user_vectors is not None:
        interactions = read_histories(config)
        sequences = encode_histories(interactions, vocabulary, "get no vector")
        users = np.flatnonzero(sequences.histories.lengths)
        history_set = HistorySet(sequences.tokens, sequences.histories, len(vocabulary), network.max_len, False)
        starts = range(0, len(users), settings.batch_size)
        batches = (history_set[users[start : start + settings.batch_size]] for start in starts)
        parts = (user_vectors(network, batch.inputs.to(device)) for batch in batches)
        _write_rows(settings.user_vectors, "user", interactions.user_ids.take(users), vectors.shape[1], parts)


def _write_similar(config: Config, network: Network, vocabulary: Vocabulary) -> None:
    settings = config.inference
    tokens = read_items("inference.similar", settings.similar, vocabulary)
    assert tokens is not None
    tokens = tokens[tokens != PAD]
    if len(tokens) == 0:
        raise UserError("inference.similar has no item that the model knows: give ids of the table it was trained on")
    device = network.output.weight.device
    barred = read_barred(config, vocabulary)
    is_barred = None if barred is None else torch.from_numpy(barred).to(device)
    path = Path(settings.output_path or RunFolder.at(config.output_dir).similar).expanduser()
    schema = pa.schema({"item": pa.string(), "similar_item": pa.string(), "cosine": pa.float32()})
    written = 0
    with _new_table(path, schema, vocabulary.ids) as file:
        given = torch.from_numpy(tokens).to(device)
        for some, items, cosines in nearest_items(network, given, settings.topk, is_barred):
            neighbours = items.cpu().numpy()
            rows, places = np.nonzero(neighbours != PAD)
            ids = [vocabulary.decode(tokens[some][rows]), vocabulary.decode(neighbours[rows, places])]
            file.write(pa.table([*ids, pa.array(cosines.cpu().numpy()[rows, places])], schema=schema))
            written += len(rows)
    say(f"written     {path}, {written:,} rows for {len(tokens):,} items")


def _write_rows(name: str, kind: str, ids: pa.StringArray, width: int, parts: Iterable[Tensor]) -> None:
    """Write ids [R] with vectors [R, W], which come some at a time: in a column of lists, in a CSV in W columns."""
    path = Path(name).expanduser()
    is_parquet = path.suffix == ".parquet"
    vector = pa.list_(pa.float32(), width)
    columns = {"vector": vector} if is_parquet else {f"v{n}": pa.float32() for n in range(1, width + 1)}
    schema = pa.schema({kind: pa.string()} | columns)
    done = 0
    with _new_table(path, schema, ids) as file:
        for part in parts:
            if not torch.isfinite(part).all():
                raise UserError("the model has NaN or infinite weights: training has diverged, try a lower training.lr")
            numbers = part.cpu().numpy()
            arrays = [pa.FixedSizeListArray.from_arrays(numbers.ravel(), type=vector)] if is_parquet else numbers.T
            file.write(pa.table([ids.slice(done, len(numbers)), *arrays], schema=schema))
            done += len(numbers)
    say(f"written     {path}, {done:,} {kind}s, {width} numbers each")


@contextmanager
def _new_table(path: Path, schema: pa.Schema, ids: pa.StringArray) -> Iterator[TableFile]:
    """A table that is there once the block has ended without an error; `ids` are the texts that may stand in it."""
    part = part_of(path)
    has_special = pc.any(pc.match_substring_regex(ids, '[",\r\n]')).as_py()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = TableFile(part, schema, path.suffix == ".parquet", has_header=True, has_special=bool(has_special))
        try:
            yield file
            file.close()
        finally:
            file.file.close()
        os.replace(part, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise UserError(f"{path} cannot be written ({reason}): free some room, or write elsewhere") from error
    finally:
        if part.parent.is_dir():
            part.unlink(missing_ok=True)
