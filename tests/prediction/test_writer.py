"""The top-K table, through a real `Trainer.predict` with scripted predictions."""

import csv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from src import ranking
from src.batch import PredictBatch
from src.data.batching import HistorySet, OrderedBatches
from src.data.vocabulary import Vocabulary
from src.errors import UserError
from src.prediction import writer as prediction_writer
from src.prediction.writer import PredictionWriter
from tests.data import sequences_of

ITEMS = ["a", "b", "c", "d", "e"]

pytestmark = pytest.mark.filterwarnings("ignore:Couldn.t infer the batch indices")  # ours are in the batch


class Scripted(pl.LightningModule):
    """Scores that were decided beforehand: [U, num_items + 2]."""

    def __init__(self, scores: Tensor, topk: int, fails_at_batch: int | None = None) -> None:
        super().__init__()
        self.scores = scores
        self.topk = topk
        self.fails_at_batch = fails_at_batch

    def predict_step(self, batch: PredictBatch, batch_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        if batch_idx == self.fails_at_batch:
            raise RuntimeError("the power went out")
        scores = ranking.candidate_scores(self.scores[batch.users], batch.seen_rows, batch.seen_items)
        return batch.users, *ranking.top_k(scores, self.topk)


def predict(
    path: Path,
    scores: Sequence[Sequence[float]],
    *,
    users: Sequence[str],
    items: Sequence[str] = ITEMS,
    histories: list[list[int]] | None = None,
    topk: int = 3,
    with_scores: bool = False,
    batch_size: int = 2,
    fails_at_batch: int | None = None,
    **form: Any,
) -> PredictionWriter:
    """Write the table for `scores`, [U, num_items]."""
    histories = histories or [[1]] * len(users)
    sequences = sequences_of(histories)
    vocabulary = Vocabulary(pa.array(items, pa.string()), np.arange(len(items))[::-1].copy())
    writer = PredictionWriter(
        path,
        vocabulary,
        pa.array(users, pa.string()),
        sequences.histories.lengths > 0,
        vocabulary.most_popular()[:topk],
        with_scores,
        **form,
    )
    dataset = HistorySet(sequences.tokens, sequences.histories, len(items), max_len=4, exclude_seen=True)
    sampler = OrderedBatches(np.arange(len(users)), batch_size)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, callbacks=[writer], enable_checkpointing=False, **options)
    model = Scripted(torch.tensor([[0.0, *row, 0.0] for row in scores]), topk, fails_at_batch)
    trainer.predict(model, DataLoader(dataset, sampler=sampler, batch_size=None), return_predictions=False)
    return writer


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_rows_of_every_user_best_first(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "predictions.csv"
    scores = [[9.0, 1.0, 4.0, 3.0, 2.0], [9.0, 8.0, 5.0, 6.0, 7.0], [9.0, 2.0, 1.0, 4.0, 3.0]]
    writer = predict(path, scores, users=["zoe", "007", "ann"])
    assert path.read_bytes() == (
        b"user,item\nzoe,c\nzoe,d\nzoe,e\n007,b\n007,e\n007,d\nann,d\nann,e\nann,b\n"  # item a is seen
    )
    assert writer.rows == 9
    assert [file.name for file in path.parent.iterdir()] == ["predictions.csv"]


def test_rank_and_score(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    predict(path, [[9.0, 0.5, -1.25, 3.0, 2.0], [9.0, 1e-7, 5.0, 6.0, -7.5]], users=["u", "v"], with_scores=True)
    header, *rows = rows_of(path)
    assert header == ["user", "item", "rank", "score"]
    assert [(user, item, int(rank), np.float32(score)) for user, item, rank, score in rows] == [
        ("u", "d", 1, np.float32(3.0)),
        ("u", "e", 2, np.float32(2.0)),
        ("u", "b", 3, np.float32(0.5)),
        ("v", "d", 1, np.float32(6.0)),
        ("v", "c", 2, np.float32(5.0)),
        ("v", "b", 3, np.float32(1e-7)),
    ]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_wide_row_for_each_user_even_without_an_item(tmp_path: Path, batch_size: int) -> None:
    scores = [[9.0, 1.0, 4.0, 3.0, 2.0]] * 4
    histories = [[1], [1, 2, 3, 4, 5], [], [1, 3]]
    form: dict[str, Any] = {"is_wide": True, "columns": ["customer id", "prediction"], "batch_size": batch_size}
    path, parquet = tmp_path / "p.csv", tmp_path / "p.parquet"
    writer = predict(path, scores, users=["zoe", "full", "new", "ann"], histories=histories, **form)
    assert path.read_bytes() == b"customer id,prediction\nzoe,c d e\nfull,\nnew,a b c\nann,d e b\n"
    assert writer.rows == 4
    predict(parquet, scores, users=["zoe", "full", "new", "ann"], histories=histories, **form)
    assert pyarrow.parquet.read_table(parquet).to_pydict() == {
        "customer id": ["zoe", "full", "new", "ann"],
        "prediction": ["c d e", "", "a b c", "d e b"],
    }


HARD_IDS = ["a,b", 'say "hi"', "two\nlines", "carriage\r\nreturn", '"', ",", " blank ", "이용자", "=1+1", "007"]


@pytest.mark.parametrize("with_scores", [False, True])
def test_ids_come_back_exactly(tmp_path: Path, with_scores: bool) -> None:
    path = tmp_path / "predictions.csv"
    scores = np.random.default_rng(2).normal(size=(len(HARD_IDS), len(HARD_IDS)))
    predict(path, scores.tolist(), users=HARD_IDS, items=HARD_IDS, topk=9, batch_size=3, with_scores=with_scores)
    expected = [
        [user, HARD_IDS[item]] for row, user in enumerate(HARD_IDS) for item in np.argsort(-scores[row]) if item != 0
    ]
    assert [row[:2] for row in rows_of(path)] == [["user", "item"], *expected]


@pytest.mark.parametrize(
    ("users", "items"), [(["u", "x,y"], ITEMS), (["u", "v"], ["a", "b", 'c"', "d", "e"])], ids=["users", "items"]
)
def test_hard_ids_on_one_side_alone(tmp_path: Path, users: list[str], items: list[str]) -> None:
    path = tmp_path / "predictions.csv"
    predict(path, [[9.0, 1.0, 4.0, 3.0, 2.0]] * 2, users=users, items=items, topk=1, batch_size=1)
    assert rows_of(path) == [["user", "item"], [users[0], items[2]], [users[1], items[2]]]


def test_ids_that_a_spreadsheet_might_run_are_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    users, items = ["=1+1", "+7", "-3", "@x"], ["seen", "=A1", "+b", "-c", "@d"]
    predict(path, [[9.0, 4.0, 3.0, 2.0, 1.0]] * 4, users=users, items=items, topk=4)
    assert path.read_text().splitlines() == ["user,item", *(f"{user},{item}" for user in users for item in items[1:])]


@pytest.mark.parametrize("with_scores", [False, True])
def test_users_without_a_history_get_the_most_popular_items(tmp_path: Path, with_scores: bool) -> None:
    path = tmp_path / "predictions.csv"
    scores = [[1.0, 2.0, 3.0, 4.0, 5.0]] * 3
    writer = predict(path, scores, users=["new", "old", "too"], histories=[[], [5], []], with_scores=with_scores)
    expected = [
        ["new", "a", "1", ""],
        ["new", "b", "2", ""],
        ["new", "c", "3", ""],
        ["old", "d", "1", "4"],
        ["old", "c", "2", "3"],
        ["old", "b", "3", "2"],
        ["too", "a", "1", ""],
        ["too", "b", "2", ""],
        ["too", "c", "3", ""],
    ]
    assert rows_of(path)[1:] == [row if with_scores else row[:2] for row in expected]
    assert writer.rows == 9


def test_an_empty_score_stays_empty_beside_quoted_ids(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    predict(path, [[1.0] * 5], users=["a,b"], histories=[[]], with_scores=True, topk=1)
    assert rows_of(path)[1:] == [["a,b", "a", "1", ""]]


def test_fewer_candidates_give_fewer_rows(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    scores = [[1.0, 2.0, 3.0, 4.0, 5.0]] * 4
    histories = [[1, 2, 4], [1, 2, 3, 4, 5], [], [2]]
    writer = predict(path, scores, users=["u", "v", "new", "w"], histories=histories, topk=10, batch_size=3)
    by_user: dict[str, list[str]] = {}
    for user, item in rows_of(path)[1:]:
        by_user.setdefault(user, []).append(item)
    assert by_user == {"u": ["e", "c"], "new": list("abcde"), "w": ["e", "d", "c", "a"]}
    assert writer.rows == 11


@pytest.mark.parametrize("with_scores", [False, True])
@pytest.mark.parametrize("rows_in_a_group", [1, 5, 10**6])
def test_parquet_by_the_extension_has_the_same_rows(
    tmp_path: Path, with_scores: bool, rows_in_a_group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_writer, "ROWS_IN_A_GROUP", rows_in_a_group)
    scores = np.random.default_rng(4).normal(size=(len(HARD_IDS), len(HARD_IDS))).astype(np.float32)
    histories = [[1], [], [2, 3], [4], [5, 1, 2, 3], [], [3], [1], [2], [3]]
    options: dict[str, Any] = {"users": HARD_IDS, "items": HARD_IDS, "histories": histories, "with_scores": with_scores}
    for name in ("p.csv", "p.parquet"):
        writer = predict(tmp_path / name, scores.tolist(), **options)
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    types = {"user": "string", "item": "string"} | ({"rank": "int32", "score": "float"} if with_scores else {})
    assert {field.name: str(field.type) for field in table.schema} == types
    header, *rows = rows_of(tmp_path / "p.csv")
    assert header == table.column_names
    assert len(table) == len(rows) == writer.rows
    for place, name in enumerate(header[:3]):
        assert [str(value) for value in table[name].to_pylist()] == [row[place] for row in rows]
    if with_scores:
        expected = [np.float32(row[3]) if row[3] else None for row in rows]
        assert [None if score is None else np.float32(score) for score in table["score"].to_pylist()] == expected
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.csv", "p.parquet"]


def test_parquet_without_a_row_still_has_its_columns(tmp_path: Path) -> None:
    predict(tmp_path / "p.parquet", [[1.0] * 5], users=["u"], histories=[[1, 2, 3, 4, 5]], with_scores=True)
    columns = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert columns == {"user": [], "item": [], "rank": [], "score": []}


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_a_full_disk_leaves_the_earlier_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_writer, "ROWS_IN_A_GROUP", 1)
    (tmp_path / name).write_text("earlier\n")
    (tmp_path / f"{name}.part").symlink_to("/dev/full")
    users = [f"user {n}" for n in range(3000)]
    with pytest.raises(UserError) as caught:
        predict(tmp_path / name, [[9.0, 1.0, 4.0, 3.0, 2.0]] * len(users), users=users, batch_size=1000)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name} cannot be written (No space left on device): free some room")
    assert (tmp_path / name).read_text() == "earlier\n"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine\n")
    with pytest.raises(UserError, match="cannot be written"):
        predict(tmp_path / "file" / "p.csv", [[1.0] * 5], users=["u"])
    assert (tmp_path / "file").read_text() == "mine\n"


def process(rank: int, world_size: int) -> Any:
    """A trainer of one of several processes, as far as the writer looks at it; the others do not answer."""
    strategy = SimpleNamespace(root_device="cpu", reduce=lambda tensor, reduce_op: tensor, barrier=lambda name: None)
    return SimpleNamespace(global_rank=rank, is_global_zero=rank == 0, world_size=world_size, strategy=strategy)


def write(writer: PredictionWriter, *prediction: np.ndarray) -> None:
    nobody: Any = None
    writer.write_on_batch_end(nobody, nobody, [torch.from_numpy(column) for column in prediction])


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_the_bytes_do_not_tell_how_many_processes_wrote_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_writer, "ROWS_IN_A_GROUP", 7)
    vocabulary = Vocabulary(pa.array(HARD_IDS), np.arange(10))
    users = pa.array([f"user-{n}" for n in range(24)])
    contents = set()
    for world_size, batch_size in ((1, 4), (2, 4), (3, 2), (4, 6)):
        path = tmp_path / str(world_size) / name
        shares = np.split(np.arange(24), world_size)
        for rank in reversed(range(world_size)):  # the first one ends last
            writer = PredictionWriter(path, vocabulary, users, np.arange(24) != 5, np.arange(1, 4), True)
            writer.setup(process(rank, world_size), None, "predict")  # type: ignore[arg-type]
            for rows in np.split(shares[rank], len(shares[rank]) // batch_size):
                items = (rows[:, None] + np.arange(3)) % 10 + 1
                write(writer, rows, items, items.astype(np.float32))
            writer.teardown(process(rank, world_size), None, "predict")  # type: ignore[arg-type]
        contents.add(path.read_bytes())
        assert [file.name for file in path.parent.iterdir()] == [name]
    assert len(contents) == 1


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_memory_does_not_grow_with_the_number_of_users(name: str, tmp_path: Path) -> None:
    """What Arrow holds at the end of a long table is no more than at the end of a short one."""
    vocabulary = Vocabulary(pa.array([f"item-{n}" for n in range(1000)]), np.arange(1000))
    users = pa.array([f"user-{n}" for n in range(250)])
    held: list[int] = []
    for batches in (60, 600):
        writer = PredictionWriter(tmp_path / name, vocabulary, users, np.ones(250, dtype=bool), np.arange(1, 11), True)
        before = pa.total_allocated_bytes()
        writer.setup(process(0, 1), None, "predict")  # type: ignore[arg-type]
        for batch in range(batches):
            items = np.arange(1, 2501).reshape(250, 10) % 1000 + 1
            write(writer, np.arange(250), items, np.full((250, 10), batch, dtype=np.float32))
        held.append(pa.total_allocated_bytes() - before)
        writer.teardown(process(0, 1), None, "predict")  # type: ignore[arg-type]
        assert writer.rows == 2500 * batches
    assert held[1] < 1.5 * held[0] + 2_000_000
    assert held[1] < 80 * prediction_writer.ROWS_IN_A_GROUP


def test_no_candidate_at_all_gives_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    writer = predict(path, [[1.0] * 5], users=["u"], histories=[[1, 2, 3, 4, 5]])
    assert path.read_bytes() == b"user,item\n"
    assert writer.rows == 0


def test_the_size_of_the_batches_does_not_matter(tmp_path: Path) -> None:
    scores = np.random.default_rng(3).normal(size=(7, 5)).tolist()
    histories = [[1], [], [2, 3], [4], [5, 1, 2, 3], [], [3]]
    for size in (1, 3, 100):
        predict(tmp_path / f"{size}.csv", scores, users=list("stuvwxy"), histories=histories, batch_size=size)
    tables = {(tmp_path / f"{size}.csv").read_bytes() for size in (1, 3, 100)}
    assert len(tables) == 1


def test_a_new_table_replaces_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("earlier\n" * 100)
    predict(path, [[9.0, 1.0, 4.0, 3.0, 2.0]], users=["u"], topk=1)
    assert rows_of(path) == [["user", "item"], ["u", "c"]]


@pytest.mark.parametrize("had_a_table", [True, False])
@pytest.mark.parametrize("fails_at_batch", [0, 1])
def test_a_failure_leaves_the_folder_as_it_was(tmp_path: Path, had_a_table: bool, fails_at_batch: int) -> None:
    path = tmp_path / "predictions.csv"
    if had_a_table:
        path.write_text("earlier\n")
    with pytest.raises(RuntimeError, match="the power went out"):
        predict(path, [[9.0, 1.0, 4.0, 3.0, 2.0]] * 5, users=list("vwxyz"), fails_at_batch=fails_at_batch)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"] * had_a_table
    if had_a_table:
        assert path.read_text() == "earlier\n"


def test_the_final_name_appears_only_when_the_table_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    seen: list[bool] = []

    class Watching(Scripted):
        def predict_step(self, batch: PredictBatch, batch_idx: int) -> tuple[Tensor, Tensor, Tensor]:
            seen.append(path.exists())
            return super().predict_step(batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "Scripted", Watching)
        predict(path, [[9.0, 1.0, 4.0, 3.0, 2.0]] * 5, users=list("vwxyz"))
    assert seen == [False, False, False]
    assert path.exists()
