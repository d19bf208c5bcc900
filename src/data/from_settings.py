"""The table that the settings name, for what has a model already."""

from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from ..runs.folder import RunFolder
from ..settings import Config
from . import download, splits
from .interactions import Interactions
from .loading import load_interactions
from .splits import Split, SplitOptions
from .table import TableOptions


def read_table(config: Config, other: Path | None = None) -> Interactions:
    """Fetch or read the table, or `other` with the same settings, from the cache if it can be, and print its notes.

    Raises:
        UserError: as `src.data.interactions.read_interactions` and `src.data.download.fetch`.
    """
    data = config.data
    if data.download and other is None:
        download.fetch(data.download, data.path.parent, data.download_url)
    cache = RunFolder.at(config.output_dir).cache if data.cache else None
    interactions = load_interactions(other or data.path, TableOptions(**data.table_options), cache)
    for note in interactions.notes:
        rank_zero_only(print)(note)
    return interactions


def read_split(config: Config) -> Split:
    """The table and its targets, where `data.split` is `time` or `files`; prints the notes of all that is read.

    Raises:
        UserError: as `read_table` and `src.data.splits.load`.
    """
    data = config.data
    if data.download:
        download.fetch(data.download, data.path.parent, data.download_url)
    cache = RunFolder.at(config.output_dir).cache if data.cache else None
    options = TableOptions(**data.table_options), SplitOptions(**data.split_options)
    split = splits.load(data.path, *options, max(1, data.holdout), cache)
    for note in split.notes:
        rank_zero_only(print)(note)
    return split
