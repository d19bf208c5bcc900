"""The prediction script as a user runs it: whom it predicts for, what, in which order, and what it warns of."""

import csv
import re
import shlex
import shutil
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest
import torch

from src.models import BERT4Rec
from src.prediction.predict import predict
from tests.scripts.conftest import (
    BRIEF,
    ITEMS,
    LONELY,
    REGULARS,
    ROOT,
    TINY,
    Outcome,
    Row,
    Run,
    Sessions,
    Table,
    call,
    checkpoint,
    files_below,
    train_here,
    write_table,
)

Lists = dict[str, list[str]]  # user -> items, best first


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def read_lists(path: Path) -> Lists:
    """The predictions, after checking that each user's rows stand together."""
    rows = read_csv(path)[1:]
    groups = [(user, [row[1] for row in group]) for user, group in groupby(rows, key=lambda row: row[0])]
    lists = dict(groups)
    assert len(lists) == len(groups)
    return lists


def predict_here(table: Table, run: Run, output_path: Path, *overrides: str) -> Outcome:
    """Predict in this process, which must succeed."""
    folders = (f"output_dir={run.folder}", f"inference.output_path={output_path}")
    outcome = call(predict, *table.overrides, *folders, *TINY, *overrides)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome


def most_popular(table: Table, ids: list[str]) -> list[str]:
    """Items that training saw most often, ties in the order of `ids`: the last two of each user are held out."""
    counts = Counter(item for items in table.histories.values() if len(items) > 2 for item in items[:-2])
    return sorted(ids, key=lambda item: -counts[item])


def expected_lists(path: Path, histories: dict[str, list[str]], topk: int, exclude_seen: bool = True) -> Lists:
    """What the checkpoint's `BERT4Rec.predict` says about these histories, for the users who have known items."""
    model = BERT4Rec.load_from_checkpoint(path, map_location="cpu")
    ids = checkpoint(path)["BERT4RecDataModule"]["vocabulary"]["ids"]
    token = {item: place + 1 for place, item in enumerate(ids)}
    sequences = {user: [token[item] for item in items if item in token] for user, items in histories.items()}
    sequences = {user: tokens for user, tokens in sequences.items() if tokens}
    excluded = [set(tokens) for tokens in sequences.values()] if exclude_seen else None
    predicted = model.predict(user_sequences=list(sequences.values()), topk=topk, exclude_items=excluded)
    return {user: [ids[item - 1] for item in items] for user, items in zip(sequences, predicted, strict=True)}


@pytest.fixture(scope="module")
def launched(
    sessions: Sessions, trained: Run, table: Table, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Outcome]:
    """A prediction in a process of its own with nothing but defaults, from another folder; the run is a copy."""
    cwd = tmp_path_factory.mktemp("where the user stands")
    shutil.copytree(trained.folder, cwd / "my run")
    write_table(cwd / "my data" / "my ratings.csv", table.rows)
    overrides = ("data.data_dir=my data", "data.data_file=my ratings.csv", "output_dir=my run")
    outcome = sessions.launch("predict", *overrides, "training.accelerator=cpu", cwd=cwd)
    assert outcome.code == 0, outcome.err
    assert {path.name for path in cwd.iterdir()} == {"my data", "my run"}
    return Run(cwd / "my run", outcome.out), outcome


@pytest.fixture(scope="module")
def lists(launched: tuple[Run, Outcome]) -> Lists:
    return read_lists(launched[0].folder / "predictions.csv")


def test_the_table_has_two_columns_and_k_rows_a_user(launched: tuple[Run, Outcome], lists: Lists) -> None:
    rows = read_csv(launched[0].folder / "predictions.csv")
    assert rows[0] == ["user", "item"]
    assert all(len(row) == 2 for row in rows)
    assert {len(items) for items in lists.values()} == {10}
    assert {len(set(items)) for items in lists.values()} == {10}


def test_every_user_of_the_file_is_there_in_order_of_appearance(table: Table, lists: Lists) -> None:
    assert list(lists) == list(dict.fromkeys(user for user, _, _ in table.rows))
    assert {BRIEF, LONELY, *REGULARS} == set(lists)  # 007 and 7 among them, and one with a comma


def test_items_are_original_ids_that_training_knew(lists: Lists) -> None:
    assert {item for items in lists.values() for item in items} <= set(ITEMS)


def test_no_user_gets_what_is_seen_already(table: Table, lists: Lists) -> None:
    assert all(not set(items) & set(table.histories[user]) for user, items in lists.items())


def test_predictions_are_those_of_the_model_on_the_whole_histories(trained: Run, table: Table, lists: Lists) -> None:
    expected = expected_lists(trained.last, table.histories, 10)
    assert len(expected) == 24
    assert {user: lists[user] for user in expected} == expected


def test_a_user_without_known_items_gets_the_most_popular(
    trained: Run, table: Table, launched: tuple[Run, Outcome], lists: Lists
) -> None:
    ids = checkpoint(trained.last)["BERT4RecDataModule"]["vocabulary"]["ids"]
    assert lists[LONELY] == most_popular(table, ids)[:10]
    warnings = [line for line in launched[0].out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert re.match(r"warning: 1 interactions? with 1 items? .* not know .*: unheard of$", warnings[0])
    assert re.match(r"warning: 1 users? .* no known item .* most popular", warnings[1])


def test_stdout_names_the_checkpoint_the_figures_and_the_file(launched: tuple[Run, Outcome]) -> None:
    run, outcome = launched
    assert "my run/checkpoints/last.ckpt, 17 items" in run.out
    assert "115 interactions of 25 users" in run.out
    assert "trained" not in run.out  # that is training's own closing
    [note] = [line for line in run.out.splitlines() if line.startswith("note: this was the last epoch")]
    assert note.endswith("'inference.checkpoint_path=my run/checkpoints/best.ckpt'")
    lines = run.out.splitlines()
    assert "250 rows for 25 users: my run/predictions.csv" in lines
    assert lines[-4:-3] == ["next"]
    kept = "'data.data_dir=my data' 'data.data_file=my ratings.csv' 'output_dir=my run'"
    called = shlex.join([sys.executable, str(ROOT / "predict_bert4rec.py")])
    assert f"  new users    {called} {kept} inference.history=FILE" in lines
    assert "Traceback" not in outcome.err
    assert "error" not in outcome.err.lower()


def test_prediction_leaves_the_run_as_it_was(trained: Run, launched: tuple[Run, Outcome]) -> None:
    after = files_below(launched[0].folder)
    assert after.pop("predictions.csv")
    assert after == files_below(trained.folder)


def test_the_batch_size_changes_nothing(trained: Run, table: Table, lists: Lists, tmp_path: Path) -> None:
    predict_here(table, trained, tmp_path / "p.csv", "inference.batch_size=4")
    assert read_lists(tmp_path / "p.csv") == lists


def test_seen_items_may_come_when_they_are_not_excluded(
    trained: Run, table: Table, lists: Lists, tmp_path: Path
) -> None:
    predict_here(table, trained, tmp_path / "p.csv", "inference.exclude_seen=false")
    with_seen = read_lists(tmp_path / "p.csv")
    expected = expected_lists(trained.last, table.histories, 10, exclude_seen=False)
    assert {user: with_seen[user] for user in expected} == expected
    assert list(with_seen) == list(lists)
    assert any(set(items) & set(table.histories[user]) for user, items in with_seen.items())


def test_scores_and_ranks_stand_beside_the_same_items(trained: Run, table: Table, lists: Lists, tmp_path: Path) -> None:
    predict_here(table, trained, tmp_path / "p.csv", "inference.with_scores=true")
    rows = read_csv(tmp_path / "p.csv")
    assert rows[0] == ["user", "item", "rank", "score"]
    assert read_lists(tmp_path / "p.csv") == lists

    content = checkpoint(trained.last)
    ids = content["BERT4RecDataModule"]["vocabulary"]["ids"]
    model = BERT4Rec.load_from_checkpoint(trained.last, map_location="cpu").eval()
    by_user = {user: list(group) for user, group in groupby(rows[1:], key=lambda row: row[0])}
    assert [row[3] for row in by_user.pop(LONELY)] == [""] * 10  # popularity has no score of the model
    for user, group in by_user.items():
        assert [int(row[2]) for row in group] == list(range(1, 11))
        scores = [float(row[3]) for row in group]
        assert scores == sorted(scores, reverse=True)
        tokens = [ids.index(item) + 1 for item in table.histories[user]][-5:]
        with torch.no_grad():
            logits = model(torch.tensor([[*tokens, len(ids) + 1]]))[0, -1]
        assert scores == pytest.approx([logits[ids.index(row[1]) + 1].item() for row in group], abs=1e-5)


def test_a_named_checkpoint_is_used_instead_of_the_last(
    trained: Run, table: Table, lists: Lists, tmp_path: Path
) -> None:
    outcome = predict_here(table, trained, tmp_path / "p.csv", f"inference.checkpoint_path={trained.best}")
    best = read_lists(tmp_path / "p.csv")
    expected = expected_lists(trained.best, table.histories, 10)
    assert {user: best[user] for user in expected} == expected
    assert best != lists
    assert f"{trained.best}, 17 items" in outcome.out


@pytest.mark.parametrize("topk", [1, 3])
def test_fewer_items_are_the_first_of_the_longer_lists(
    topk: int, trained: Run, table: Table, lists: Lists, tmp_path: Path
) -> None:
    predict_here(table, trained, tmp_path / "p.csv", f"inference.topk={topk}")
    assert read_lists(tmp_path / "p.csv") == {user: items[:topk] for user, items in lists.items()}


def test_topk_above_the_catalogue_warns_and_gives_every_candidate(
    trained: Run, table: Table, lists: Lists, tmp_path: Path
) -> None:
    outcome = predict_here(table, trained, tmp_path / "p.csv", "inference.topk=20", "inference.with_scores=true")
    assert "warning: inference.topk=20, but there are 17 items" in outcome.out
    longer = read_lists(tmp_path / "p.csv")
    assert list(longer) == list(lists)
    for user, items in longer.items():
        assert set(items) == set(ITEMS) - set(table.histories[user])
        assert len(items) == len(set(items))
        assert items[:10] == lists[user]


def test_a_fitting_topk_does_not_warn(trained: Run, table: Table, tmp_path: Path) -> None:
    known = write_table(tmp_path / "known.csv", [row for row in table.rows if row[0] != LONELY])
    assert "warning" not in predict_here(known, trained, tmp_path / "p.csv", "inference.topk=17").out


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """A later file: a new user, a known one with more interactions, unknown items, and users with nothing else."""
    rows: list[Row] = [
        ("new,one", ITEMS[3], 5),
        ("nobody", "novelty", 1),
        ("007", ITEMS[0], 9),
        ("new,one", "novelty", 6),
        ("nothing", "another", 2),
        ("new,one", ITEMS[2], 4),
        ("007", ITEMS[1], 8),
        ("nobody", "another", 3),
    ]
    return write_table(tmp_path_factory.mktemp("newer") / "newer.csv", rows)


def test_unknown_items_are_counted_named_and_left_out(trained: Run, table: Table, newer: Table, tmp_path: Path) -> None:
    outcome = predict_here(newer, trained, tmp_path / "p.csv")
    assert "8 interactions of 4 users" in outcome.out
    assert "warning: 4 interactions with 2 items that the model does not know are left out: novelty, another" in (
        outcome.out
    )
    assert "warning: 2 users have no known item" in outcome.out
    lists = read_lists(tmp_path / "p.csv")
    expected = expected_lists(trained.last, {"new,one": [ITEMS[2], ITEMS[3]], "007": [ITEMS[1], ITEMS[0]]}, 10)
    assert list(lists) == ["new,one", "nobody", "007", "nothing"]
    assert {user: lists[user] for user in expected} == expected
    popular = most_popular(table, checkpoint(trained.last)["BERT4RecDataModule"]["vocabulary"]["ids"])
    assert lists["nobody"] == lists["nothing"] == popular[:10]


def test_many_unknown_items_are_named_in_part(trained: Run, tmp_path: Path) -> None:
    rows = [("someone", f"strange {n}", n) for n in range(7)]
    outcome = predict_here(write_table(tmp_path / "strange.csv", rows), trained, tmp_path / "p.csv")
    warning = next(line for line in outcome.out.splitlines() if "does not know" in line)
    assert "7 interactions with 7 items" in warning
    assert "strange 0, strange 1" in warning
    assert "strange 6" not in warning
    assert warning.endswith("...")


def test_a_failure_on_the_way_leaves_the_earlier_table_and_no_part_of_a_new_one(
    trained: Run, table: Table, tmp_path: Path
) -> None:
    content = checkpoint(trained.last)
    oldest_position = next(key for key, weight in content["state_dict"].items() if weight.shape == (6, 8))
    content["state_dict"][oldest_position][0] = torch.nan  # only histories that fill the window come upon it
    torch.save(content, tmp_path / "spoilt.ckpt")
    histories = table.histories
    rows = sorted(table.rows, key=lambda row: (len(histories[row[0]]), row[0]))  # short histories first
    sorted_table = write_table(tmp_path / "sorted.csv", rows)
    output = tmp_path / "out" / "p.csv"
    output.parent.mkdir()
    output.write_text("user,item\nearlier,one\n")
    arguments = (f"inference.checkpoint_path={tmp_path / 'spoilt.ckpt'}", f"inference.output_path={output}")
    outcome = call(predict, *sorted_table.overrides, *arguments, *TINY, "inference.batch_size=4")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert "NaN" in outcome.err
    assert files_below(output.parent) == {"p.csv": b"user,item\nearlier,one\n"}

    short = write_table(tmp_path / "short.csv", [row for row in rows if len(histories[row[0]]) < 5])
    assert call(predict, *short.overrides, *arguments, *TINY, "inference.batch_size=4").code == 0
    assert len(read_csv(output)) == 1 + 10 * len(short.histories)


def test_folders_are_made(trained: Run, table: Table, tmp_path: Path) -> None:
    output = tmp_path / "not" / "there yet" / "top.csv"
    predict_here(table, trained, output, "inference.topk=2")
    assert {len(items) for items in read_lists(output).values()} == {2}
    assert [path.name for path in output.parent.iterdir()] == ["top.csv"]


def test_a_model_trained_on_everything_predicts(table: Table, tmp_path: Path) -> None:
    run = train_here(table, tmp_path / "run", "training.num_epochs=1", "data.holdout=0")
    predict_here(table, run, tmp_path / "p.csv", "inference.topk=4")
    lists = read_lists(tmp_path / "p.csv")
    expected = expected_lists(run.last, table.histories, 4)
    assert {user: lists[user] for user in expected} == expected
