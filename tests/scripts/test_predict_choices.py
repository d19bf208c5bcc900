"""Whom the prediction script is asked for, from which histories, among which items; and the export."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from src.prediction.predict import predict
from tests.scripts.conftest import (
    BRIEF,
    ITEMS,
    LONELY,
    REGULARS,
    TINY,
    Outcome,
    Run,
    Table,
    call,
    checkpoint,
    files_below,
    write_table,
)
from tests.scripts.test_predict_script import expected_lists, most_popular, predict_here, read_csv, read_lists


def ids_file(path: Path, column: str, ids: list[str]) -> Path:
    quoted = ['"' + name.replace('"', '""') + '"' for name in ids]
    path.write_text("\n".join([column, *quoted]) + "\n", encoding="utf-8")
    return path


def fails(run: Run, table: Table, folder: Path, *overrides: str) -> Outcome:
    output = f"inference.output_path={folder / 'p.csv'}"
    outcome = call(predict, *table.overrides, f"output_dir={run.folder}", output, *TINY, *overrides)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert not (folder / "p.csv").exists()
    return outcome


def test_only_the_users_wanted_in_their_order(trained: Run, table: Table, tmp_path: Path) -> None:
    wanted = [REGULARS[5], "nobody", "007", LONELY, REGULARS[2], "007"]
    users = ids_file(tmp_path / "users.csv", "user", wanted)
    outcome = predict_here(table, trained, tmp_path / "p.csv", f"inference.users={users}")
    lists = read_lists(tmp_path / "p.csv")
    assert list(lists) == [REGULARS[5], "nobody", "007", LONELY, REGULARS[2]]
    known = {user: table.histories[user] for user in (REGULARS[5], "007", REGULARS[2])}
    expected = expected_lists(trained.last, known, 10)
    assert {user: lists[user] for user in known} == expected
    popular = most_popular(table, checkpoint(trained.last)["BERT4RecDataModule"]["vocabulary"]["ids"])
    assert lists["nobody"] == lists[LONELY] == popular[:10]
    assert "warning: 1 users of inference.users are not in" in outcome.out
    assert "2 users have no known item" in outcome.out
    assert f"{50:,} rows for 5 users" in outcome.out


def test_histories_that_training_never_saw(trained: Run, table: Table, tmp_path: Path) -> None:
    newer = write_table(
        tmp_path / "newer.csv", [("stranger", ITEMS[3], 2), ("007", ITEMS[0], 9), ("stranger", ITEMS[9], 1)]
    )
    nowhere = Table(tmp_path / "no such table.csv", [])  # is not read
    predict_here(nowhere, trained, tmp_path / "p.csv", f"inference.history={newer.path}")
    expected = expected_lists(trained.last, {"stranger": [ITEMS[9], ITEMS[3]], "007": [ITEMS[0]]}, 10)
    assert read_lists(tmp_path / "p.csv") == expected


def test_allow_and_block_lists(trained: Run, table: Table, tmp_path: Path) -> None:
    allowed, blocked = [*ITEMS[:9], "a novelty"], [ITEMS[2], ITEMS[12], "another"]
    candidates = ids_file(tmp_path / "candidates.csv", "item", allowed)
    exclude = ids_file(tmp_path / "exclude.csv", "item", blocked)
    settings = (f"inference.candidates={candidates}", f"inference.exclude={exclude}", "inference.exclude_seen=false")
    outcome = predict_here(table, trained, tmp_path / "p.csv", *settings)
    lists = read_lists(tmp_path / "p.csv")
    left = set(ITEMS[:9]) - {ITEMS[2]}
    whole = expected_lists(trained.last, table.histories, len(ITEMS), exclude_seen=False)
    assert {user: lists[user] for user in whole} == {
        user: [item for item in items if item in left] for user, items in whole.items()
    }
    ids = checkpoint(trained.last)["BERT4RecDataModule"]["vocabulary"]["ids"]
    assert lists[LONELY] == [item for item in most_popular(table, ids) if item in left]
    assert "warning: inference.candidates has 1 items that the model does not know: a novelty" in outcome.out
    assert "warning: inference.exclude has 1 items that the model does not know: another" in outcome.out
    assert "warning: inference.topk=10, but there are 8 items" in outcome.out


def test_all_of_it_together(trained: Run, table: Table, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text(f"{BRIEF}\n{REGULARS[0]}\n", encoding="utf-8")
    exclude = tmp_path / "exclude.txt"
    exclude.write_text(f"{ITEMS[1]}\n", encoding="utf-8")
    settings = (f"inference.users={users}", f"inference.history={table.path}", f"inference.exclude={exclude}")
    predict_here(table, trained, tmp_path / "p.csv", *settings, "inference.topk=3", "inference.with_scores=true")
    lists = read_lists(tmp_path / "p.csv")
    histories = {user: table.histories[user] for user in (BRIEF, REGULARS[0])}
    whole = expected_lists(trained.last, histories, len(ITEMS))
    assert lists == {user: [item for item in items if item != ITEMS[1]][:3] for user, items in whole.items()}


@pytest.mark.parametrize(
    ("key", "content", "parts"),
    [
        ("users", None, ["there is no file", "column user"]),
        ("candidates", None, ["there is no file", "column item"]),
        ("users", "name\na\n", ["no column user", "name"]),
        ("exclude", "", ["is empty"]),
        ("candidates", "item\nnovelty\n", ["leave no item", "inference.candidates"]),
        ("exclude", "item\n" + "\n".join(['"' + item.replace('"', '""') + '"' for item in ITEMS]), ["leave no item"]),
        ("history", "user,movie\na,b\n", ["no column item", "user, movie"]),
    ],
)
def test_lists_that_cannot_be_used(
    key: str, content: str | None, parts: list[str], trained: Run, table: Table, tmp_path: Path
) -> None:
    path = tmp_path / "list.csv"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    outcome = fails(trained, table, tmp_path, f"inference.{key}={path}")
    assert all(part in outcome.err for part in parts)


def test_export_answers_as_the_script_does(trained: Run, table: Table, tmp_path: Path) -> None:
    path = tmp_path / "out" / "m.onnx"
    nowhere = ("data.data_dir=no such folder", f"output_dir={trained.folder}", "inference.topk=4")
    before = files_below(trained.folder)
    outcome = call(predict, *nowhere, f"inference.export={path}", *TINY)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"written     {path}, " in outcome.out
    assert files_below(trained.folder) == before
    beside = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    history = [beside["items"].index(item) + 1 for item in table.histories["007"]]
    session = onnxruntime.InferenceSession(path)
    window = np.array([history[-(beside["max_len"] - 1) :]])
    items, _ = session.run(None, {"histories": window, "excluded": np.array([history])})
    expected = expected_lists(trained.last, {"007": table.histories["007"]}, 4)["007"]
    assert [beside["items"][token - 1] for token in items[0]] == expected


def test_export_to_another_kind_of_file_is_refused(trained: Run, table: Table, tmp_path: Path) -> None:
    assert "inference.export=m.bin is not possible" in fails(trained, table, tmp_path, "inference.export=m.bin").err


def test_a_wide_table_under_the_names_of_a_competition(trained: Run, table: Table, tmp_path: Path) -> None:
    candidates = ids_file(tmp_path / "candidates.csv", "item", ["été", *ITEMS[:3]])  # the others have blanks
    settings = (f"inference.candidates={candidates}", "inference.topk=3", "inference.exclude_seen=false")
    predict_here(table, trained, tmp_path / "long.csv", *settings)
    names = "inference.columns=[customer_id,prediction]"
    outcome = predict_here(table, trained, tmp_path / "p.csv", *settings, "inference.format=wide", names)
    header, *rows = read_csv(tmp_path / "p.csv")
    assert header == ["customer_id", "prediction"]
    assert {user: items.split(" ") for user, items in rows} == read_lists(tmp_path / "long.csv")
    assert "25 rows for 25 users" in outcome.out
    scores = ("inference.with_scores=true", "inference.columns=[u,i,place,logit]")
    predict_here(table, trained, tmp_path / "scores.csv", *settings, *scores)
    assert read_csv(tmp_path / "scores.csv")[0] == ["u", "i", "place", "logit"]


def test_items_with_blanks_have_no_place_in_a_wide_table(trained: Run, table: Table, tmp_path: Path) -> None:
    outcome = fails(trained, table, tmp_path, "inference.format=wide")
    assert "has one itself: use inference.format=long" in outcome.err
