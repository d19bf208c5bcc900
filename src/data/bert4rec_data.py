"""The LightningDataModule: wiring of the stages in this folder."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset, Sampler

from ..batch import EvalBatch, RowBatch, TrainBatch
from ..errors import UserError
from . import download, sample, splits
from .batching import (
    BATCHES_AHEAD,
    TOKENS_AHEAD,
    AheadLoader,
    EvaluationSet,
    NegativeSampler,
    OrderedBatches,
    ShuffledBatches,
    Together,
    TrainingSet,
)
from .fixed_shapes import FixedShapes, RowSet, shapes
from .loading import load_training_data
from .readers.frames import as_frame
from .sequences import Spans, evaluation_spans, flatten, training_spans, windows
from .splits import SplitOptions, Targets
from .table import Frame, TableOptions
from .vocabulary import Vocabulary


@dataclass(eq=False, repr=False)
class BERT4RecDataModule(pl.LightningDataModule):
    """Reads the table, splits it, and serves masked training and ranked evaluation batches.

    Raises:
        UserError: from `setup`, if the table cannot be used or no user is long enough.
    """

    data_dir: str = "~/data/train/"
    data_file: str = "train_ratings.csv"  # or a folder or a pattern in `data_dir`
    batch_size: int = 128
    table_options: TableOptions | None = None  # None leaves all to be recognised
    min_interactions: int = 3  # users with fewer are left out
    min_item_interactions: int = 1  # items likewise
    num_workers: int = 4
    max_len: int = 50  # longest input of the model
    mask_prob: float = 0.15  # of this and the next three, see `src.data.masking`
    mask_token_share: float = 0.8
    random_token_share: float = 0.1
    mask_last_share: float = 0.0
    holdout: int = 2  # 2: the last item is for testing, the one before for validation; 1: validation alone; 0: nothing
    split: SplitOptions = SplitOptions()
    window_stride: int | None = None  # None trains on the last `max_len` items of each history; else see `windows`
    filter_seen: bool = True  # whether evaluation takes the items of the history out of the candidates
    eval_batch_size: int = 256
    num_negatives: int = 0  # of this and the next, see `NegativeSampler`
    negative_power: float = 0.0
    generate_sample: bool = False
    download: str | None = None  # name of a public data set to be fetched into `data_dir`, which then is the table
    download_url: str | None = None  # another address of it
    on_device: bool | str = "auto"  # whether training data lies where the model is, see `fixed_shapes`; auto: on CUDA
    cache_dir: str | Path | None = None  # where the prepared data is kept between runs; None keeps nothing
    seed: int = 42  # with the epoch, what shuffling and masks follow from
    frame: Frame | None = None  # the table itself, in the place of its path, see `from_frame`

    def __post_init__(self) -> None:
        super().__init__()
        file = Path(self.data_dir).expanduser() / (f"{self.download}.csv" if self.download else self.data_file)
        self.path: Path | Frame = self.frame or file
        self.start = (0, 0)  # epoch and batch that a resumed training begins with
        self.steps_together: Callable[[], int] | None = None  # how many batches training wants in the next list

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        user: str | None = None,
        item: str | None = None,
        time: str | Literal[False] | None = None,
        table_options: TableOptions | None = None,
        **settings: Any,
    ) -> Self:
        """Serve a table that is in memory; no file is written. The rules are those of a Parquet file with its columns.

        Args:
            frame: of pandas or polars, a pyarrow table, or anything else with `__arrow_c_stream__`.
            user, item, time: names of its columns, `data.columns.*` in messages; None takes a usual name. False as the
                time takes the order of the rows.
            table_options: more on how it is read, such as `min_rating`.
            settings: arguments of the class itself, such as `max_len`.

        Raises:
            UserError: if it is no frame; from `setup`, if it cannot be used.
        """
        names = {"user": user, "item": item, "time": time}
        given: dict[str, Any] = {role: name for role, name in names.items() if name is not None}
        options = replace(table_options or TableOptions(), **given)
        return cls(frame=as_frame(frame), table_options=options, **settings)

    @property
    def num_items(self) -> int:
        return len(self.vocabulary)

    def prepare_data(self) -> None:
        """In one process of each machine, before `setup`: make or fetch the table."""
        if isinstance(self.path, Frame):
            return
        if self.generate_sample:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.parent / f".{self.path.name}.lock"):  # of several processes one writes it
                sample.write(self.path, self.seed)
        if self.download:
            download.fetch(self.download, self.path.parent, self.download_url)

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "sequences"):  # Lightning calls once for each stage
            return
        least = self.min_interactions, self.min_item_interactions
        table = self.path, self.table_options or TableOptions()
        cache = Path(self.cache_dir) if self.cache_dir else None
        self.stages: dict[int, Targets] = {}  # of leave-one-out they are made when asked for
        if self.split.is_leave_one_out:
            data = load_training_data(*table, *least, cache)
            self.spans = training_spans(data.sequences, self.holdout)
        else:
            data, self.spans, self.stages = splits.prepare(splits.load(*table, self.split, self.holdout, cache), *least)
        self.sequences, self.notes = data.sequences, data.notes
        if len(self.spans) == 0:
            where = "" if self.split.is_leave_one_out else " in training"
            items = f" after items with fewer than data.min_item_interactions={self.min_item_interactions} are left out"
            raise UserError(
                f"{self.path} has no user with at least data.min_interactions={self.min_interactions} interactions"
                f"{items if self.min_item_interactions > 1 else ''}{where}:"
                f" the longest history has {data.counts['longest_history']}"
            )
        _, train_tokens = flatten(self.sequences.tokens, self.spans)
        counts = np.bincount(train_tokens, minlength=len(data.item_ids) + 1)[1:]
        self.vocabulary = Vocabulary(data.item_ids, counts)
        self.user_ids = data.user_ids
        self.summary: dict[str, Any] = {
            "split": f"{self.split.kind}: {data.targets or splits.LAST_ITEM[self.holdout]}",
            **data.counts,
            "train_users": len(self.spans),
            "train_items": len(data.item_ids),
            "train_rows": len(train_tokens),
        }
        if self.holdout:
            targets = self.evaluation_set(from_end=1)
            rows, seen = flatten(targets.tokens, targets.histories)
            self.summary["evaluated_users"] = len(targets.first_rows())
            if targets.owners is not None:
                self.summary["evaluated_targets"] = len(targets.targets)
            self.summary["repeated_targets"] = len(np.unique(rows[seen == targets.targets[rows]]))
            if any(len(stage.users) == 0 for stage in self.stages.values()):
                raise UserError(
                    f"data.split={self.split.kind} leaves nobody to evaluate: nobody's target and an item before it are"
                    " both in training"
                )
            if len(targets.targets) == 0:
                raise UserError(
                    f"{self.path} has no user with more than data.holdout={self.holdout} interactions, so nothing can"
                    " be evaluated: train on everything with data.holdout=0"
                )

    def train_rows(self) -> Spans:
        """What an epoch consists of."""
        if self.window_stride is None:
            return self.spans.last(self.max_len)
        return windows(self.spans, self.max_len, self.window_stride)

    def train_dataloader(self) -> DataLoader[TrainBatch] | DataLoader[RowBatch] | Together:
        loader = self._train_loader()
        return loader if self.steps_together is None else Together(loader, self.steps_together)

    def _train_loader(self) -> DataLoader[TrainBatch] | DataLoader[RowBatch]:
        spans = self.train_rows()
        negative_sampler = None
        if self.num_negatives:
            negative_sampler = NegativeSampler(self.vocabulary.counts, self.num_negatives, self.negative_power)
        shares = (self.mask_prob, self.mask_token_share, self.random_token_share, self.mask_last_share)
        sampler = ShuffledBatches(spans.lengths, self.batch_size, self.seed, *self._process())
        sampler.resume(*self.start)
        if self._lies_on_device():
            data = (self.sequences.tokens, spans, self._device(), self.num_items)
            self.fixed_shapes = FixedShapes(*data, *shares, negative_sampler)
            row_set = RowSet(spans.lengths, self.batch_size, shapes(int(spans.lengths.max())))
            return DataLoader(**self._options(row_set, sampler))
        training_set = TrainingSet(self.sequences.tokens, spans, self.num_items, *shares, negative_sampler)
        # A GPU is busy with a step while the next batch is made, and would wait for several.
        ahead = min(BATCHES_AHEAD, TOKENS_AHEAD // (self.batch_size * self.max_len)) if self._on_cpu() else 1
        workers = 0 if self._on_cpu() else self.num_workers
        return AheadLoader(ahead=max(1, ahead), **self._options(training_set, sampler, workers))

    def val_dataloader(self) -> DataLoader[EvalBatch] | Sequence[Any]:
        return self._evaluation_loader(from_end=self.holdout) if self.holdout else []

    def test_dataloader(self) -> DataLoader[EvalBatch] | Sequence[Any]:
        return self._evaluation_loader(from_end=1) if self.holdout == 2 else []

    def evaluation_set(self, from_end: int) -> EvaluationSet:
        """Held-out items and the histories before them; `from_end` 1 is what comes last, 2 the validation before it."""
        held_out = self._held_out(from_end)
        options = self.num_items, self.max_len, self.filter_seen
        return EvaluationSet(
            self.sequences.tokens, held_out.histories, *options, held_out.targets, splits.owners_of(held_out.users)
        )

    def evaluated_user_ids(self, from_end: int) -> pa.StringArray:
        """Ids of the users of an evaluation set, for each of its rows."""
        return self.user_ids.take(pa.array(self._held_out(from_end).users))

    def _held_out(self, from_end: int) -> Targets:
        return self.stages.get(from_end) or Targets(*evaluation_spans(self.sequences, self.holdout, from_end))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave it where it is on a CPU: Lightning would go through every tensor."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the training batch where its rows have gone."""
        return self.fixed_shapes.batch(batch) if isinstance(batch, RowBatch) else batch

    def state_dict(self) -> dict[str, Any]:
        """The vocabulary, and by what the table is known again; plain containers, as in every checkpoint."""
        return {"vocabulary": self.vocabulary.state_dict(), "table": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume with other data.

        Raises:
            UserError: if the items or the interactions are not those of the checkpoint.
        """
        there = Vocabulary.from_state_dict(state_dict["vocabulary"])
        way_out = (
            "resume on the file it was trained on, or start anew with training.resume=false, and from its weights with"
            " training.init_from=FILE"
        )
        if which := self.vocabulary.difference(there):
            raise UserError(
                f"the checkpoint was trained on other items than {self.path} has: {len(there):,} there and"
                f" {self.num_items:,} here, {which}; {way_out}"
            )
        table, own = state_dict.get("table"), self._fingerprint  # the first format had none
        if table is not None and table != own:
            raise UserError(
                f"the checkpoint was trained on other interactions than {self.path} has: {table['rows']:,} of"
                f" {table['users']:,} users there and {own['rows']:,} of {own['users']:,} users here; {way_out}"
            )

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """Sizes and a digest of the histories, and of where training ends if it does not follow from them."""
        tokens, offsets = self.sequences.tokens, self.sequences.offsets
        digest = hashlib.blake2b(digest_size=16)
        ends = () if self.split.is_leave_one_out else (self.spans.starts, self.spans.stops)
        for values in (offsets, tokens, *ends):
            for start in range(0, len(values), 2**20):
                digest.update(np.ascontiguousarray(values[start : start + 2**20], dtype="<i8").data)
        return {"rows": len(tokens), "users": len(offsets) - 1, "digest": digest.hexdigest()}

    def _evaluation_loader(self, from_end: int) -> DataLoader[EvalBatch]:
        evaluation_set = self.evaluation_set(from_end)
        lengths = evaluation_set.histories.last(self.max_len - 1).lengths
        by_length = np.argsort(lengths, kind="stable")  # little padding; the order does not matter to the ranks
        sampler = OrderedBatches(by_length, self.eval_batch_size, *self._process())
        return DataLoader(**self._options(evaluation_set, sampler))

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _lies_on_device(self) -> bool:
        return self._device().type == "cuda" if self.on_device == "auto" else bool(self.on_device)

    def _on_cpu(self) -> bool:
        return self._device().type == "cpu"

    def _options(self, dataset: Dataset[Any], sampler: Sampler[Any], workers: int = 0) -> dict[str, Any]:
        """Of a loader that does no batching of its own: the sampler plans whole batches and the data set makes them.

        A batch to be ranked is made in less than half a millisecond, and one of rows in less: no work for workers.
        """
        return {
            "dataset": dataset,
            "sampler": sampler,
            "batch_size": None,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        }
