"""Vectors and similar items as the prediction script writes them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from src.models import BERT4Rec
from src.prediction.predict import predict
from src.runs.folder import RunFolder
from tests.scripts.conftest import ITEMS, LONELY, TINY, Run, Table, call, checkpoint, files_below
from tests.scripts.test_predict_script import read_csv


def write_here(run: Run, *overrides: str) -> str:
    outcome = call(predict, f"output_dir={run.folder}", *TINY, *overrides)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


@pytest.fixture(scope="module")
def ids(trained: Run) -> list[str]:
    known: list[str] = checkpoint(trained.last)["BERT4RecDataModule"]["vocabulary"]["ids"]
    return known


def test_products_of_the_written_vectors_are_the_scores_of_the_model(
    trained: Run, table: Table, ids: list[str], tmp_path: Path
) -> None:
    items, users = tmp_path / "new" / "items.parquet", tmp_path / "users.csv"
    before = files_below(trained.folder)
    out = write_here(
        trained, *table.overrides, f"inference.embeddings={items}", f"inference.user_vectors={users}",
        "inference.batch_size=7",
    )  # fmt: skip
    assert files_below(trained.folder) == before
    assert "warning: 1 users have no known item and get no vector" in out
    assert f"written     {items}, 17 items, 8 numbers each" in out
    assert f"written     {users}, 24 users, 8 numbers each" in out
    item_frame, user_frame = pd.read_parquet(items), pd.read_csv(users, dtype={"user": str})
    assert item_frame["item"].tolist() == ids
    assert user_frame["user"].tolist() == [user for user in table.histories if user != LONELY]
    scores = user_frame.filter(like="v").to_numpy() @ np.stack(item_frame["vector"].tolist()).T
    model = BERT4Rec.load_from_checkpoint(trained.last, map_location="cpu").eval()
    for user, given in zip(user_frame["user"], scores, strict=True):
        tokens = [ids.index(item) + 1 for item in table.histories[user]][-5:]
        with torch.no_grad():
            logits = model(torch.tensor([[*tokens, len(ids) + 1]]))[0, -1, 1:-1]
        assert given == pytest.approx(logits.numpy(), abs=1e-5)


def test_both_formats_hold_the_same_and_history_narrows_the_users(trained: Run, table: Table, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("u3\n007\n", encoding="utf-8")
    narrowed = (f"inference.history={table.path}", f"inference.users={users}", "data.data_dir=no such folder")
    for kind in ("csv", "parquet"):
        names = (f"inference.user_vectors={tmp_path}/u.{kind}", f"inference.embeddings={tmp_path}/i.{kind}")
        write_here(trained, *narrowed, *names)
    for name, rows in (("u", 2), ("i", 17)):
        texts, lists = pd.read_csv(tmp_path / f"{name}.csv", dtype=str), pd.read_parquet(tmp_path / f"{name}.parquet")
        assert list(texts.columns[1:]) == [f"v{n}" for n in range(1, 9)]
        assert texts.iloc[:, 0].tolist() == lists.iloc[:, 0].tolist()
        assert len(texts) == rows
        assert (texts.iloc[:, 1:].to_numpy(np.float32) == np.stack(lists["vector"].tolist())).all()
    assert texts["item"].isin(["film,3"]).any()


def test_similar_items_by_original_ids(trained: Run, ids: list[str], tmp_path: Path) -> None:
    asked, allowed = tmp_path / "asked.txt", tmp_path / "allowed.txt"
    asked.write_text(f"{ITEMS[3]}\nnovelty\n{ITEMS[2]}\n", encoding="utf-8")
    allowed.write_text("\n".join(ITEMS[:6]), encoding="utf-8")
    path = tmp_path / "similar.csv"
    out = write_here(
        trained, "data.data_dir=no such folder", f"inference.similar={asked}", f"inference.candidates={allowed}",
        f"inference.output_path={path}", "inference.topk=3",
    )  # fmt: skip
    assert "warning: inference.similar has 1 items that the model does not know: novelty" in out
    assert f"written     {path}, 6 rows for 2 items" in out
    head, *rows = read_csv(path)
    assert head == ["item", "similar_item", "cosine"]
    weight = torch.nn.functional.normalize(checkpoint(trained.last)["state_dict"]["network.output.weight"][1:-1])
    for item, found in zip((ITEMS[3], ITEMS[2]), (rows[:3], rows[3:]), strict=True):
        cosines = {other: float(weight[ids.index(item)] @ weight[ids.index(other)]) for other in ITEMS[:6]}
        del cosines[item]
        best = sorted(cosines, key=lambda other: -cosines[other])[:3]
        assert [row[:2] for row in found] == [[item, other] for other in best]
        assert [float(row[2]) for row in found] == pytest.approx([cosines[other] for other in best], abs=1e-6)


def test_without_a_name_similar_items_are_in_the_folder_of_the_run(table: Table, trained: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "")
    words = (f"inference.checkpoint_path={trained.last}", f"inference.similar={table.path}")  # every item of a table
    assert "272 rows for 17 items" in write_here(run, *words, "inference.topk=50")
    assert len(read_csv(run.folder / "similar.csv")) == 1 + 17 * 16
    archived = RunFolder(run.folder).archive()  # as a new run in the folder does
    assert archived is not None
    assert [path.name for path in archived.iterdir()] == ["similar.csv"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("inference.similar={}/strange.txt",), ("inference.similar has no item that the model knows",)),
        (("inference.similar={}/nowhere.txt",), ("inference.similar: there is no file", "column item")),
        (("inference.embeddings={}/strange.txt/i.csv",), ("strange.txt/i.csv cannot be written",)),
        (("inference.embeddings={}/folder.csv",), ("folder.csv cannot be written",)),
        (("inference.user_vectors={}/kept.csv", "inference.history={}/spoilt.csv"), ("spoilt.csv",)),
        (("inference.user_vectors={}/kept.csv", "inference.checkpoint_path={}/spoilt.ckpt"), ("NaN or infinite",)),
        (("inference.embeddings={}/kept.csv", "inference.checkpoint_path={}/spoilt.ckpt"), ("NaN or infinite",)),
    ],
)
def test_a_failure_is_one_line_and_leaves_what_was_there(
    words: tuple[str, ...], parts: tuple[str, ...], trained: Run, table: Table, tmp_path: Path
) -> None:
    (tmp_path / "strange.txt").write_text("novelty\n", encoding="utf-8")
    (tmp_path / "spoilt.csv").write_text("user,film\na,b\n", encoding="utf-8")
    (tmp_path / "kept.csv").write_text("earlier\n", encoding="utf-8")
    (tmp_path / "folder.csv").mkdir()
    content = checkpoint(trained.last)
    content["state_dict"]["network.output.weight"][5:] = torch.nan
    content["state_dict"]["network.item_embedding.weight"][5:] = torch.nan
    torch.save(content, tmp_path / "spoilt.ckpt")
    before = files_below(tmp_path)
    given = (word.replace("{}", str(tmp_path)) for word in words)
    outcome = call(predict, *table.overrides, f"output_dir={trained.folder}", *TINY, *given)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert all(part in outcome.err for part in parts), outcome.err
    assert files_below(tmp_path) == before
