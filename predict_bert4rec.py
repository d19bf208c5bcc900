"""Write the top-K items of every user of a CSV with a trained BERT4Rec.

python predict_bert4rec.py data.data_dir=FOLDER data.data_file=FILE inference.topk=20
"""

from src import cli
from src.config import Config


def predict(config: Config) -> None:
    """Read the checkpoint and the table, rank all items for each user, and write the best with their original ids."""
    from pathlib import Path

    import numpy as np
    import pytorch_lightning as pl
    from lightning_utilities.core.rank_zero import rank_zero_only
    from torch.utils.data import DataLoader

    from src import checkpoint, report
    from src.data.batching import TOKENS_PER_PART, HistorySet, OrderedBatches
    from src.data.download import fetch
    from src.data.prediction_writer import PredictionWriter
    from src.data.prepared import load_interactions
    from src.data.sequences import encode
    from src.data.table import TableOptions
    from src.run_folder import RunFolder

    say = rank_zero_only(print)
    settings = config.inference
    folder = RunFolder.at(config.output_dir)
    checkpoint_path = Path(settings.checkpoint_path or folder.last).expanduser()
    output_path = Path(settings.output_path or folder.predictions).expanduser()
    model, vocabulary = checkpoint.load(checkpoint_path)
    if config.data.download:
        fetch(config.data.download, config.data.path.parent, config.data.download_url)
    options = TableOptions(**config.data.table_options)
    interactions = load_interactions(config.data.path, options, folder.cache if config.data.cache else None)
    sequences, dropped = encode(interactions, vocabulary)
    histories = sequences.histories
    for note in interactions.notes:
        say(note)
    say(f"model       {checkpoint_path}, {len(vocabulary):,} items")
    say(f"data        {len(interactions.items):,} interactions of {len(interactions.user_ids):,} users")
    if dropped.any():
        unknown = interactions.item_ids.filter(dropped > 0)
        named = ", ".join(unknown[:5].to_pylist()) + (", ..." if len(unknown) > 5 else "")
        say(
            f"warning: {dropped.sum():,} interactions with {len(unknown):,} items that the model does not know are left"
            f" out: {named}"
        )
    has_history = histories.lengths > 0
    if not has_history.all():
        say(f"warning: {(~has_history).sum():,} users have no known item and get the most popular ones")
    if settings.topk > len(vocabulary):
        say(f"warning: inference.topk={settings.topk}, but there are {len(vocabulary):,} items: users get fewer rows")

    cli.quiet()
    model.predict_topk = settings.topk
    writer = PredictionWriter(
        output_path,
        vocabulary,
        interactions.user_ids,
        has_history,
        vocabulary.most_popular()[: settings.topk],
        settings.with_scores,
    )
    trainer = pl.Trainer(
        accelerator=config.training.accelerator,
        devices=config.training.devices,
        num_nodes=config.training.num_nodes,
        strategy=config.training.strategy,
        use_distributed_sampler=False,  # the one below shares the users out
        precision=config.training.precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=[writer],
        enable_model_summary=False,
    )
    part = TOKENS_PER_PART if trainer.strategy.root_device.type == "cpu" else None
    history_set = HistorySet(
        sequences.tokens, histories, model.num_items, model.max_len, settings.exclude_seen, tokens_per_part=part
    )
    in_order = OrderedBatches(
        np.arange(len(histories)), settings.batch_size, trainer.global_rank, trainer.world_size, in_turn=False
    )
    loader = DataLoader(history_set, sampler=in_order, batch_size=None)
    trainer.predict(model, loader, return_predictions=False)
    if folder.metrics.exists():
        say("\n" + report.closing(folder))
    say(f"\n{writer.rows:,} rows for {len(histories):,} users: {output_path}")


if __name__ == "__main__":
    cli.run(predict)
