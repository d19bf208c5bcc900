"""What training and `inference.evaluate=true` share: the comparison with the baselines, and its JSON and report."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytorch_lightning as pl
import torch

from ..data.batching import EvaluationSet
from ..data.sequences import Indices, Spans
from ..data.titles import Titles
from ..data.vocabulary import Vocabulary
from ..runs import devices
from ..settings import Config, flat_settings
from . import closing_tables
from .comparison import Contest, tables_of


def contest(
    config: Config, evaluation_set: EvaluationSet, user_ids: pa.StringArray, counts: Indices, training: Spans
) -> Contest:
    """A comparison with popularity and, by these spans of the set's tokens, item-item as the first contestants."""
    evaluation = config.evaluation
    begun = Contest(evaluation_set, user_ids, counts, evaluation.protocols, config.seed, evaluation.topk)
    begun.add_baselines(training)
    return begun


def of(
    config: Config,
    contests: Mapping[str, Contest],
    trainer: pl.Trainer,
    model: pl.LightningModule,
    origin: Mapping[str, str],
) -> dict[str, Any]:
    """Figures with their intervals, the verdict, and where all of it comes from: content of a JSON file.

    Args:
        contests: stage -> comparison, the model as the last contestant; the last stage comes last.
        origin: what `provenance.describe` found at the start.
    """
    content: dict[str, Any] = tables_of(dict(contests), config.evaluation.bootstrap)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    content |= {"settings": asdict(config), "torch": torch.__version__, "parameters": parameters}
    content |= {**devices.describe(trainer), **origin}
    return content | {"verdict": closing_tables.verdict(content, config.evaluation.topk)}


def write(
    config: Config,
    content: Mapping[str, Any],
    json_path: Path,
    report_path: Path,
    last: Contest | None,
    vocabulary: Vocabulary,
    titles: Titles,
    logs: Path | None = None,
) -> None:
    """Write the JSON file and, unless `evaluation.report` is off, the report.

    Args:
        last: the comparison of the last stage, for examples.
        logs: a folder of TensorBoard logs with curves.
    """
    closing_tables.write_json(json_path, dict(content))
    if config.evaluation.report:
        from . import report_page

        curves = {} if logs is None else report_page.read_curves(logs)
        report_page.write(report_path, content, curves, last, vocabulary, titles, flat_settings(config))
