"""Write the top-K items of every user of a table with a trained BERT4Rec, or export the model.

python predict_bert4rec.py data.data_dir=FOLDER data.data_file=FILE inference.topk=20
"""

from pathlib import Path

from ..command_line import cli, named_files
from ..runs.folder import RunFolder
from ..settings import Config


def predict(config: Config) -> None:
    """Read the checkpoint and the table, rank all items for each user, and write the best with their original ids."""
    named_files.require_for_prediction(config)  # before what takes seconds to import

    from ..evaluation import closing_tables
    from ..kernels import compiler
    from ..runs import checkpoint

    compiler.switch(config.native)
    settings = config.inference
    if settings.evaluate:
        from ..evaluation.evaluate import evaluate

        return evaluate(config)
    folder = RunFolder.at(config.output_dir)
    paths = settings.checkpoints(folder.last)
    if settings.export is not None:
        from .onnx_export import export

        return export(paths[0], Path(settings.export).expanduser(), settings.topk)
    if settings.serve:
        from ..service.server import serve

        return serve(paths, settings)
    if settings.writes_vectors:
        from .vectors import write_vectors

        return write_vectors(config, paths[0])

    from .inputs import encode_histories, read_barred, read_histories, say
    from .writer import write_predictions

    output_path = Path(settings.output_path or folder.predictions).expanduser()
    model, vocabulary = checkpoint.load_ensemble(paths)
    interactions = read_histories(config)
    say(f"model       {', '.join(map(str, paths))}, {len(vocabulary):,} items")
    say(f"data        {len(interactions.items):,} interactions of {len(interactions.user_ids):,} users")
    sequences = encode_histories(interactions, vocabulary)
    is_barred = read_barred(config, vocabulary)
    candidates = len(vocabulary) if is_barred is None else int((~is_barred[1:-1]).sum())
    if settings.topk > candidates:
        say(f"warning: inference.topk={settings.topk}, but there are {candidates:,} items: users get fewer rows")
    rows = write_predictions(
        config,
        model=model,
        vocabulary=vocabulary,
        user_ids=interactions.user_ids,
        sequences=sequences,
        is_barred=is_barred,
        output_path=output_path,
    )
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


def main() -> None:
    """Run `predict_bert4rec.py`, or `bert4rec-predict` of an installed package."""
    cli.run(predict, can_sweep=False)
