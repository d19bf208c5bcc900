"""Recommendations from Python, in the table's own ids.

Reads a checkpoint without Lightning, so that a service starts quickly.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from .. import ranking
from ..batch import PAD, PredictBatch
from ..data import id_forms
from ..data.batching import HistorySet
from ..data.id_lists import barred_tokens
from ..data.sequences import Indices, Spans
from ..data.vocabulary import Vocabulary
from ..errors import UserError
from ..kernels import door
from ..models.network import Network
from ..runs import checkpoint
from .similar_items import nearest_items

Id = str | int
HISTORIES_AT_ONCE = 1024


class Recommender:
    """The most likely next items of histories, by the ids of the table the model was trained on.

    Nothing of it changes after it is made: any number of threads may share one.

    Args:
        network: from a checkpoint; it is put into evaluation mode.
        vocabulary: the item ids behind its tokens.
        others: networks of the same items; the score of an item is then the mean of all, an ensemble.
        metrics: the model's figures on held-out items, if they are known.
        for_few: answer single histories faster on a CPU, for a second copy of the output matrix: see
            `src.kernels.door.Fixed`. The network must not change any more.

    Attributes:
        items: every id that the model knows.
        max_len: how many of the latest items of a history count, plus one; in an ensemble, the most of any network.
    """

    def __init__(
        self,
        network: Network,
        vocabulary: Vocabulary,
        others: Sequence[Network] = (),
        *,
        metrics: Mapping[str, float] | None = None,
        for_few: bool = False,
    ) -> None:
        self.network = network.eval()
        networks = [self.network, *(other.eval() for other in others)]
        self.metrics = dict(metrics or {})
        self.max_len = max(each.max_len for each in networks)
        self._networks = [door.Fixed(each) if for_few else each for each in networks]
        self.items: tuple[str, ...] = tuple(vocabulary.ids.to_pylist())
        self._tokens = {item: token for token, item in enumerate(self.items, start=1)}
        self._most_popular = vocabulary.most_popular()

    @classmethod
    def from_checkpoint(
        cls, path: str | Path | Sequence[str | Path], device: str | torch.device = "cpu", *, for_few: bool = False
    ) -> Self:
        """Read `last.ckpt` or `best.ckpt` of a training run, or checkpoints of several runs as an ensemble.

        Raises:
            UserError: if there is no such file, it is no checkpoint of this package, or they know other items.
        """
        paths = [Path(each).expanduser() for each in ([path] if isinstance(path, str | Path) else path)]
        networks, vocabulary = checkpoint.load_networks(paths)
        first, *others = [network.to(device) for network in networks]
        return cls(first, vocabulary, others, for_few=for_few)

    @classmethod
    def fit(
        cls,
        frame: Any,
        preset: str | None = "best",
        settings: Mapping[str, Any] | None = None,
        *,
        output_dir: str | Path | None = None,
    ) -> Self:
        """Train on a frame of interactions, as `train_bert4rec.py` trains on a table, on one device.

        The run is kept: its folder has the checkpoints, metrics.json and the report, and an earlier run in it moves to
        `previous/TIME/`. Nothing else is written, and Lightning, loggers, seeds and signal handlers are as before.

        Args:
            frame: of pandas or polars, a pyarrow table, or anything else with `__arrow_c_stream__`; with the columns
                user, item and, optionally, time, under usual names or those that `data.columns.*` gives.
            preset: what `experiment=` takes, such as "auto", "small" and "best"; None for the defaults.
            settings: any keys of `configs/bert4rec.yaml`, such as `{"training.num_epochs": 20}`.
            output_dir: folder of the run; None for that of the settings, `saved/bert4rec` in the current folder.

        Returns:
            The best checkpoint, on the CPU, with `metrics` such as `test_ndcg@10`; empty if nothing was held out.

        Raises:
            UserError: if the frame cannot be used, a setting or the preset does not exist or is not possible, training
                diverges, or it is interrupted: then it resumes with `{"training.resume": True}`.
        """
        from ..training import from_frame

        given = {**(settings or {}), **({} if output_dir is None else {"output_dir": str(output_dir)})}
        path, metrics = from_frame.fit(frame, preset, given)
        return cls(*checkpoint.load_network(path), metrics=metrics)

    def recommend(
        self,
        histories: Sequence[Sequence[Id]],
        topk: int = 10,
        *,
        exclude_seen: bool = True,
        candidates: Iterable[Id] | None = None,
        exclude: Iterable[Id] = (),
    ) -> list[list[str]]:
        """The most likely next items of each history.

        Args:
            histories: one list of item ids a user, oldest first. Ids that the model does not know are passed over; a
                history in which it knows none gets the most popular items.
            topk: how many items each gets; fewer where fewer candidates are left.
            exclude_seen: whether the items of a history are no candidates for it.
            candidates: the only items that may come, for all histories; None: every item the model knows.
            exclude: items that may not come, for all histories.

        Returns:
            One list of ids a history, best first.

        Raises:
            UserError: if `topk` is below 1, a history is no list of ids, or the model knows none of the candidates.
        """
        lists = self.recommend_with_scores(
            histories, topk, exclude_seen=exclude_seen, candidates=candidates, exclude=exclude
        )
        return [[item for item, _ in row] for row in lists]

    @torch.inference_mode()
    def recommend_with_scores(
        self,
        histories: Sequence[Sequence[Id]],
        topk: int = 10,
        *,
        exclude_seen: bool = True,
        candidates: Iterable[Id] | None = None,
        exclude: Iterable[Id] = (),
    ) -> list[list[tuple[str, float]]]:
        """As `recommend`, each item with its score: the model's logit, NaN for the most popular items."""
        _require_positive(topk)
        allowed = None if candidates is None else self._encode(candidates)
        blocked = self._encode(exclude)
        if allowed is not None and not allowed.any():
            raise UserError("the model knows none of the candidates: give ids of the table it was trained on")
        is_barred = barred_tokens(len(self.items), allowed, blocked if len(blocked) else None)
        tokens, spans = self._flat_tokens(histories)
        history_set = HistorySet(tokens, spans, self.network.num_items, self.max_len, exclude_seen)
        lists: list[list[tuple[str, float]]] = [[] for _ in histories]
        with_history = np.flatnonzero(spans.lengths)
        for start in range(0, len(with_history), HISTORIES_AT_ONCE):
            batch = history_set[with_history[start : start + HISTORIES_AT_ONCE]]
            for row, *best in zip(batch.users.tolist(), *self._best(batch, topk, is_barred), strict=True):
                lists[row] = [(self.items[item - 1], score) for item, score in zip(*best, strict=True) if item != PAD]
        if len(with_history) < len(histories):
            popular = self._most_popular if is_barred is None else self._most_popular[~is_barred[self._most_popular]]
            for row in np.flatnonzero(spans.lengths == 0):
                lists[row] = [(self.items[item - 1], float("nan")) for item in popular[:topk]]
        return lists

    @torch.inference_mode()
    def similar(self, items: Sequence[Id], topk: int = 10) -> list[list[tuple[str, float]]]:
        """The items nearest to each of some items, by the cosine of their vectors.

        Args:
            items: ids; an item that the model does not know has no neighbours.
            topk: how many each gets; fewer where there are fewer other items.

        Returns:
            One list of ids and cosines an item, nearest first.

        Raises:
            UserError: if `topk` is below 1, or `items` is a single id.
        """
        _require_positive(topk)
        if isinstance(items, str):
            raise UserError(f"{items!r} is no list: give a list of item ids")
        tokens = self._encode(items)
        lists: list[list[tuple[str, float]]] = [[] for _ in tokens]
        known = np.flatnonzero(tokens)
        given = torch.from_numpy(tokens[known]).to(self.network.output.weight.device)
        for some, neighbours, cosines in nearest_items(self.network, given, topk, None):
            for row, *best in zip(known[some], neighbours.tolist(), cosines.tolist(), strict=True):
                lists[row] = [(self.items[item - 1], cosine) for item, cosine in zip(*best, strict=True) if item != PAD]
        return lists

    def _best(
        self, batch: PredictBatch, topk: int, is_barred: np.ndarray | None
    ) -> tuple[list[list[int]], list[list[float]]]:
        device = self.network.output.weight.device
        batch = PredictBatch(*(tensor.to(device) for tensor in batch))
        items: list[list[int]] = []
        best: list[list[float]] = []
        for _, scores in door.next_item_scores(self._networks, batch):
            if is_barred is not None:
                scores.masked_fill_(torch.from_numpy(is_barred).to(device), ranking.EXCLUDED)
            some_items, some_scores = ranking.top_k(scores, topk)
            items += some_items.tolist()
            best += some_scores.tolist()
        return items, best

    def _flat_tokens(self, histories: Sequence[Sequence[Id]]) -> tuple[Indices, Spans]:
        """Known items of all histories one after the other, and where each history stands."""
        known: list[Indices] = []
        for history in histories:
            if isinstance(history, str | int):
                raise UserError(f"{history!r} is no history: give a list of histories, each a list of item ids")
            tokens = self._encode(history)
            known.append(tokens[tokens != PAD])
        offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in known], dtype=np.int64)]).astype(np.int64)
        return np.concatenate([np.empty(0, np.int64), *known]), Spans(offsets[:-1], offsets[1:])

    def _encode(self, ids: Iterable[Id]) -> Indices:
        """Token of each id, 0 where it is unknown. A dictionary answers for a few ids faster than Arrow does."""
        words = [item if type(item) is str else str(item) for item in ids]
        tokens = [self._tokens.get(word) or self._tokens.get(id_forms.other(word), PAD) for word in words]
        return np.array(tokens, dtype=np.int64)


def _require_positive(topk: int) -> None:
    if topk < 1:
        raise UserError(f"topk={topk} is not possible: give a whole number of at least 1")
