"""Write the top-K items of every user of a table with a trained BERT4Rec, or export the model.

python predict_bert4rec.py data.data_dir=FOLDER data.data_file=FILE inference.topk=20
"""

from typing import TYPE_CHECKING

from ..command_line import cli
from ..settings import Config

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

    from ..data.interactions import Interactions
    from ..data.sequences import Sequences
    from ..data.vocabulary import Vocabulary
    from ..models import BERT4Rec


def predict(config: Config) -> None:
    """Read the checkpoint and the table, rank all items for each user, and write the best with their original ids."""
    from pathlib import Path

    from ..command_line import named_files

    named_files.require_for_prediction(config)  # before what takes seconds to import

    from ..evaluation import closing_tables
    from ..kernels import compiler
    from ..runs import checkpoint
    from ..runs.folder import RunFolder

    compiler.switch(config.native)
    if config.inference.evaluate:
        from ..evaluation.evaluate import evaluate

        return evaluate(config)
    settings = config.inference
    folder = RunFolder.at(config.output_dir)
    checkpoint_path = Path(settings.checkpoint_path or folder.last).expanduser()
    output_path = Path(settings.output_path or folder.predictions).expanduser()
    if settings.export is not None:
        export(checkpoint_path, Path(settings.export).expanduser(), settings.topk)
        return
    model, vocabulary = checkpoint.load(checkpoint_path)
    interactions = read_histories(config)
    say(f"model       {checkpoint_path}, {len(vocabulary):,} items")
    say(f"data        {len(interactions.items):,} interactions of {len(interactions.user_ids):,} users")
    sequences = encode_histories(interactions, vocabulary)
    is_barred = read_barred(config, vocabulary)
    candidates = len(vocabulary) if is_barred is None else int((~is_barred[1:-1]).sum())
    if settings.topk > candidates:
        say(f"warning: inference.topk={settings.topk}, but there are {candidates:,} items: users get fewer rows")
    rows = write_predictions(config, model, vocabulary, interactions.user_ids, sequences, is_barred, output_path)
    if settings.checkpoint_path is None and folder.best.exists():
        better = cli.command("predict", f"inference.checkpoint_path={folder.best}", also=("inference.",))
        say(f"note: this was the last epoch; for the best one by validation: {better}")
    say(f"\n{rows:,} rows for {len(interactions.user_ids):,} users: {output_path}")
    steps = {
        "more, scored": cli.command("predict", "inference.topk=20", "inference.with_scores=true"),
        "new users": cli.command("predict", "inference.history=FILE"),
        "a service": cli.command("predict", f"inference.export={folder.root / 'model.onnx'}"),
    }
    say(closing_tables.next_steps(steps))


def export(checkpoint_path: "Path", path: "Path", topk: int) -> None:
    """Write the model as ONNX; without Lightning, so with `print` for `say`."""
    from ..runs import checkpoint
    from .onnx_export import write_onnx

    network, vocabulary = checkpoint.load_network(checkpoint_path)
    print(f"model       {checkpoint_path}, {len(vocabulary):,} items")
    for written in write_onnx(network, vocabulary, path, topk):
        print(f"written     {written}, {written.stat().st_size:,} bytes")


def read_histories(config: Config) -> "Interactions":
    """The table to predict from, of the users asked for."""
    from pathlib import Path

    from ..data import id_forms
    from ..data.from_settings import read_table
    from ..data.id_lists import read_ids
    from ..data.sequences import select_users

    history = config.inference.history
    table = config.data.path if history is None else Path(history).expanduser()
    interactions = read_table(config, table if history is not None else None)
    if config.inference.users is None:
        return interactions
    known = interactions.user_ids
    interactions, is_there = select_users(interactions, read_ids(Path(config.inference.users).expanduser(), "user"))
    if not is_there.all():
        absent = interactions.user_ids.filter(~is_there)
        say(
            f"warning: {len(absent):,} users of inference.users are not in {table}: {first_few(absent)}"
            f"{id_forms.near(absent, known)}"
        )
    return interactions


def encode_histories(interactions: "Interactions", vocabulary: "Vocabulary") -> "Sequences":
    from ..data import id_forms
    from ..data.sequences import encode

    sequences, dropped = encode(interactions, vocabulary)
    if matched := id_forms.matched(interactions.item_ids, vocabulary.ids):
        say(f"ids         {matched}")
    if dropped.any():
        unknown = interactions.item_ids.filter(dropped > 0)
        say(
            f"warning: {dropped.sum():,} interactions with {len(unknown):,} items that the model does not know are left"
            f" out: {first_few(unknown)}{id_forms.near(unknown, vocabulary.ids)}"
        )
    is_new = sequences.histories.lengths == 0
    if is_new.any():
        say(f"warning: {is_new.sum():,} users have no known item and get the most popular ones")
    return sequences


def read_barred(config: Config, vocabulary: "Vocabulary") -> "np.ndarray | None":
    """Which tokens no user may get, by inference.candidates and inference.exclude: [num_items + 2] bool, or None."""
    from ..data.id_lists import barred_tokens
    from ..errors import UserError

    allowed = read_items("inference.candidates", config.inference.candidates, vocabulary)
    blocked = read_items("inference.exclude", config.inference.exclude, vocabulary)
    is_barred = barred_tokens(len(vocabulary), allowed, blocked)
    if is_barred is not None and is_barred[1:-1].all():
        raise UserError(
            "inference.candidates and inference.exclude leave no item that the model knows: their ids must be those of"
            " the table that it was trained on"
        )
    return is_barred


def read_items(key: str, name: str | None, vocabulary: "Vocabulary") -> "np.ndarray | None":
    """Tokens of a list of items, 0 for what the model does not know; None if no list is given."""
    from pathlib import Path

    from ..data import id_forms
    from ..data.id_lists import read_ids

    if name is None:
        return None
    ids = read_ids(Path(name).expanduser(), "item")
    tokens = vocabulary.encode(ids)
    unknown = ids.filter(tokens == 0)
    if len(unknown):
        say(
            f"warning: {key} has {len(unknown):,} items that the model does not know: {first_few(unknown)}"
            f"{id_forms.near(unknown, vocabulary.ids)}"
        )
    return tokens


def write_predictions(
    config: Config,
    model: "BERT4Rec",
    vocabulary: "Vocabulary",
    user_ids: "pa.StringArray",
    sequences: "Sequences",
    is_barred: "np.ndarray | None",
    output_path: "Path",
) -> int:
    """Predict batch by batch and write as it goes; how many rows were written."""
    import numpy as np
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    from ..data.batching import HistorySet, OrderedBatches
    from ..runs import devices
    from ..runs.freed_memory import FreedMemory
    from ..runs.progress import Progress
    from .writer import PredictionWriter

    settings = config.inference
    cli.quiet()
    histories = sequences.histories
    popular = vocabulary.most_popular()
    model.predict_topk = settings.topk
    if is_barred is not None:
        model.predict_barred = torch.from_numpy(is_barred)
        popular = popular[~is_barred[popular]]
    writer = PredictionWriter(
        output_path, vocabulary, user_ids, histories.lengths > 0, popular[: settings.topk], settings.with_scores
    )
    trainer = pl.Trainer(
        accelerator=config.training.accelerator,
        devices=config.training.devices,
        num_nodes=config.training.num_nodes,
        strategy=config.training.strategy,
        use_distributed_sampler=False,  # the one below shares the users out
        precision=config.training.precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=[writer, FreedMemory(), Progress()],
        enable_model_summary=False,
    )
    say(devices.line(devices.describe(trainer)))
    if (unused := devices.unused(trainer.strategy.root_device.type, config.training.accelerator)) is not None:
        say(f"note: {unused}")
    history_set = HistorySet(sequences.tokens, histories, model.num_items, model.max_len, settings.exclude_seen)
    in_order = OrderedBatches(
        np.arange(len(histories)), settings.batch_size, trainer.global_rank, trainer.world_size, in_turn=False
    )
    loader = DataLoader(history_set, sampler=in_order, batch_size=None)
    trainer.predict(model, loader, return_predictions=False)
    return writer.rows


def say(line: str) -> None:
    """Print it, once however many processes there are; Lightning, which knows, has to be imported by then."""
    from lightning_utilities.core.rank_zero import rank_zero_only

    rank_zero_only(print)(line)


def first_few(ids: "pa.StringArray") -> str:
    return ", ".join(ids[:5].to_pylist()) + (", ..." if len(ids) > 5 else "")


def main() -> None:
    """Run `predict_bert4rec.py`, or `bert4rec-predict` of an installed package."""
    cli.run(predict, can_sweep=False)
