"""Evaluation of a checkpoint on a table, as a run of its own: `python predict_bert4rec.py inference.evaluate=true`."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader

from ..batch import PAD
from ..command_line import cli
from ..data import id_forms
from ..data.batching import EvaluationSet, OrderedBatches
from ..data.from_settings import read_split, read_table
from ..data.interactions import Interactions
from ..data.sequences import Indices, Sequences, Spans, evaluation_spans, flatten, n_core, training_spans
from ..data.splits import Split, owners_of
from ..data.titles import read_titles
from ..data.vocabulary import Vocabulary
from ..errors import UserError
from ..runs import checkpoint, devices, provenance
from ..runs.folder import RunFolder
from ..runs.freed_memory import FreedMemory
from ..settings import Config
from . import closing_tables, results
from .comparison import Contest


class HeldOut(NamedTuple):
    """What to predict of the users of a table, in the tokens of a vocabulary that exists already."""

    tokens: Indices  # [R] int64, all interactions with known items, grouped by user and in order of time
    users: Indices  # [E] int64, rows of the table's users that can be evaluated, each as often as it has targets
    histories: Spans  # what comes before the target, E spans
    targets: Indices  # [E] int64
    training: Spans  # what training on this table would have seen
    unknown_targets: int  # users left out because the model does not know their last item
    kept: Indices  # [K] int64, all interactions with known items that training on all but the targets would have seen


def evaluate(config: Config) -> None:
    """Rank the last item of every user of the table, print the table of figures, write evaluation.json and a report.

    Works on one device; where a launcher started several processes, the first does it all.
    """
    if getattr(rank_zero_only, "rank", 0):
        return
    origin = provenance.describe(cli.command("predict", keeps_all=True))
    settings, folder = config.inference, RunFolder.at(config.output_dir)
    checkpoint_paths = settings.checkpoints(folder.last)
    named = ", ".join(map(str, checkpoint_paths))
    output_path = Path(settings.output_path or folder.evaluation).expanduser()
    titles = read_titles(config.data.items_file)
    model, vocabulary = checkpoint.load_ensemble(checkpoint_paths)
    path = config.data.path
    least, holdout = config.data.min_interactions, max(1, config.data.holdout)
    if config.data.split == "leave_one_out":
        interactions, how = read_table(config), "leave_one_out: the last item tests"
        rows, users = len(interactions.items), len(interactions.user_ids)
        if config.data.min_item_interactions > 1:  # what training left out before it held out the last items
            interactions = n_core(interactions, least, config.data.min_item_interactions)
        held_out = hold_out(interactions, vocabulary, least, holdout)
        notes = _warnings(held_out, vocabulary)
        required = f"data.min_interactions={least} interactions, more than data.holdout={holdout}, and a last item"
    else:
        split = read_split(config)
        interactions, how = split.interactions, f"{config.data.split}: {split.targets[0]} tests"
        held_out, notes = hold_out_by(split, vocabulary, least)
        rows, users = len(interactions.items), len(interactions.user_ids)
        required = f"by data.split={config.data.split} a target and an item before it"
    if not len(held_out.users):
        raise UserError(f"{path} has nobody to evaluate: it takes {required} that {named} knows")
    print(f"model       {named}, {len(vocabulary):,} items")
    print(f"data        {rows:,} interactions of {users:,} users")
    by = how.partition(": ")[2]
    print(f"evaluation  {len(np.unique(held_out.users)):,} users: {by}, all {len(vocabulary):,} items ranked")
    for note in notes:
        print(note)
    cli.quiet()
    devices.tune_cuda()
    trainer = pl.Trainer(
        accelerator=config.training.accelerator,
        devices=1,
        precision=config.training.precision,  # type: ignore[arg-type]
        logger=False,
        callbacks=[FreedMemory()],
        enable_model_summary=False,
    )
    ids = id_forms.lines(interactions.item_ids, vocabulary.ids)
    print("\n".join([*ids, *devices.lines(trainer, config.training.accelerator)]))

    evaluation_set = EvaluationSet(
        held_out.tokens,
        held_out.histories,
        model.num_items,
        model.max_len,
        config.evaluation.filter_seen,
        held_out.targets,
        owners_of(held_out.users),
    )
    user_ids = interactions.user_ids.take(pa.array(held_out.users))
    contest = results.contest(config, evaluation_set, user_ids, vocabulary.counts, held_out.training)
    chosen = f"{len(checkpoint_paths)} checkpoints" if len(checkpoint_paths) > 1 else checkpoint_paths[0].name
    contest.outcomes[f"BERT4Rec ({chosen})"] = _outcomes(config, trainer, model, contest)
    content = {
        "data": {"path": str(path), "rows": rows, "users": users, "split": how},
        "checkpoint": named,
    }
    content |= results.of(config, {"test": contest}, trainer, model, origin)
    report_path = output_path.with_suffix(".html")
    results.write(config, content, output_path, report_path, contest, vocabulary, titles)
    print("\n" + closing_tables.figures(content))
    if content["verdict"]:
        print(content["verdict"])
    print(f"figures     {output_path}")
    if config.evaluation.report:
        print(f"report      {report_path}")


def hold_out(interactions: Interactions, vocabulary: Vocabulary, min_interactions: int, holdout: int) -> HeldOut:
    """Split a table as training does: users with enough interactions, the last one a target, `holdout` not trained on.

    Args:
        holdout: 1 or 2, see `training_spans`.
    """
    whole = Sequences(vocabulary.encode(interactions.item_ids)[interactions.items], interactions.offsets)  # 0: unknown
    is_known = whole.tokens != PAD
    place = np.concatenate([[0], is_known.cumsum()])  # of each row among the known ones

    def among_known(spans: Spans) -> Spans:
        return Spans(place[spans.starts], place[spans.stops])

    is_kept = interactions.lengths >= min_interactions
    users, histories, targets = evaluation_spans(whole, holdout, from_end=1)
    is_evaluated = is_kept[users] & (targets != PAD)
    return HeldOut(
        tokens=whole.tokens[is_known],
        users=users[is_evaluated],
        histories=among_known(histories[is_evaluated]),
        targets=targets[is_evaluated],
        training=among_known(training_spans(whole, holdout)[is_kept]),
        unknown_targets=int((is_kept[users] & (targets == PAD)).sum()),
        kept=whole.tokens[is_known & np.repeat(is_kept, interactions.lengths)],
    )


def hold_out_by(split: Split, vocabulary: Vocabulary, min_interactions: int) -> tuple[HeldOut, list[str]]:
    """The last targets of a split by time or by files, and what to say of it."""
    encoded = split.encode(vocabulary, min_interactions)
    tokens = encoded.sequences.tokens.astype(np.int64)
    _, before = flatten(tokens, encoded.before)
    held_out = HeldOut(tokens, *encoded.stages[1], encoded.training, encoded.left_out["unknown_targets"], before)
    notes = [*encoded.notes[1]]
    if (vocabulary.counts > np.bincount(before, minlength=len(vocabulary) + 1)[1:]).any():
        notes.append(
            "warning: the model was trained on more interactions than there are before the targets: if they are of this"
            " table, the figures flatter it"
        )
    return held_out, notes


def _warnings(held_out: HeldOut, vocabulary: Vocabulary) -> list[str]:
    """On last items that the model does not know, and on a model that was trained on them."""
    warnings = []
    if held_out.unknown_targets:
        warnings.append(
            f"warning: {held_out.unknown_targets:,} users are left out: the model does not know their last item;"
            " training's own figures have items without training interactions among them, as misses"
        )
    # Of the users that these settings train on, and of all, should training have had another data.min_interactions.
    counts = [np.bincount(rows, minlength=len(vocabulary) + 1)[1:] for rows in (held_out.kept, held_out.tokens)]
    if any(np.array_equal(count, vocabulary.counts) for count in counts):
        warnings.append(
            "warning: the model was trained on these very items, with data.holdout=0: the figures flatter it"
        )
    return warnings


def _outcomes(config: Config, trainer: pl.Trainer, model: Any, contest: Contest) -> Any:
    evaluation_set = contest.evaluation_set
    by_length = np.argsort(evaluation_set.histories.last(model.max_len - 1).lengths, kind="stable")
    loader = DataLoader(
        evaluation_set, sampler=OrderedBatches(by_length, config.evaluation.batch_size), batch_size=None
    )
    model.topk = config.evaluation.topk
    model.observer = contest.observer()
    trainer.test(model, loader, verbose=False)
    return model.observer.compute()
