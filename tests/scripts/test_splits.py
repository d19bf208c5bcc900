"""`data.split` through the scripts: figures that come back and name the split, and mistakes in one line."""

import json
import math
import shlex
from pathlib import Path

import pytest

from src import Recommender
from src.prediction.predict import predict
from src.training.train import train
from tests.scripts.conftest import TINY, Outcome, Run, Table, call, compose, make_rows, train_here, write_table

ONE_EPOCH = "training.num_epochs=1"
TIME = ("data.split=time", "data.split_at=1021")  # make_rows begins at 1000 and has an item every 7


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The table's first items as train.csv, and what follows as validation.csv and test.csv."""
    folder = tmp_path_factory.mktemp("files")
    rows = make_rows()
    for name, low, high in (("validation", 1014, 1028), ("test", 1028, 2000)):
        write_table(folder / f"{name}.csv", [row for row in rows if low <= row[2] < high])
    return write_table(folder / "train.csv", [row for row in rows if row[2] < 1014])


FILES = (
    "data.split=files",
    "data.validation_file=validation.csv",
    "data.test_file=test.csv",
    "data.min_interactions=2",
)


def evaluate_here(table: Table, run: Run, output_path: Path, *overrides: str) -> Outcome:
    paths = (f"output_dir={run.folder}", f"inference.output_path={output_path}", "inference.evaluate=true")
    outcome = call(predict, *table.overrides, *paths, *TINY, *overrides)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome


@pytest.mark.parametrize(
    ("settings", "described"),
    [
        ((*TIME, "data.holdout=1", "data.min_item_interactions=2"), "time: the first item from 1021 on validates"),
        ((*TIME, "data.min_interactions=1"), "time: the first item from 1021 on tests, the first item from 1007 on"),
        (FILES, "files: the first item in test.csv tests, the first item in validation.csv validates"),
    ],
)
def test_figures_name_their_split_and_come_back(
    settings: tuple[str, ...], described: str, table: Table, tables: Table, tmp_path: Path
) -> None:
    used = tables if settings == FILES else table
    run = train_here(used, tmp_path / "run", ONE_EPOCH, *settings)
    there = json.loads((run.folder / "metrics.json").read_text())
    kind, how = described.split(": ")
    assert there["data"]["split"].startswith(described)
    assert f"users: {how}" in run.out
    assert f", every item ranked, split by {kind}" in run.out
    best = f"inference.checkpoint_path={run.best}"
    outcome = evaluate_here(used, run, tmp_path / "e.json", best, *settings)
    here = json.loads((tmp_path / "e.json").read_text())
    stage = list(there["figures"])[-1]
    assert here["details"]["test"]["users"] == there["details"][stage]["users"] > 0
    for name, figures in there["figures"][stage].items():
        expected = {key.replace(f"{stage}_", "test_"): value for key, value in figures.items()}
        assert here["figures"]["test"][name] == pytest.approx(expected, abs=1e-6), name
    assert (
        here["data"]["split"].partition(" tests")[0] == described.replace("validates", "tests").partition(" tests")[0]
    )
    assert "warning: the model was trained" not in outcome.out


def test_several_targets_are_ranked_in_one_list(table: Table, tmp_path: Path) -> None:
    """Figures of training, of the epoch's line and of evaluation against lists from Python and plain arithmetic."""
    settings = (*TIME, "data.min_interactions=1", "data.split_targets=all", "evaluation.topk=[3,10]")
    run = train_here(table, tmp_path / "run", ONE_EPOCH, *settings)
    recommender = Recommender.from_checkpoint(run.best)
    there = json.loads((run.folder / "metrics.json").read_text())
    times = {(user, item): time for user, item, time in table.rows}
    for stage, low, high in (("val", 1007, 1021), ("test", 1021, 2000)):
        expected: dict[str, list[float]] = {}
        number = 0
        for user, items in table.histories.items():
            before = [item for item in items if times[user, item] < low and item in recommender.items]
            targets = {item for item in items if low <= times[user, item] < high and item in recommender.items}
            if not before or not targets:
                continue
            number += len(targets)
            [ranked] = recommender.recommend([before], 100)
            places = [place for place, item in enumerate(ranked) if item in targets]
            for k in (3, 10):
                gains = sum(1 / math.log2(place + 2) for place in places if place < k)
                best = sum(1 / math.log2(place + 2) for place in range(min(k, len(targets))))
                hits = sum(place < k for place in places)
                for name, value in (("hit", hits > 0), ("ndcg", gains / best), ("recall", hits / len(targets))):
                    expected.setdefault(f"{stage}_{name}@{k}", []).append(value)
            expected.setdefault(f"{stage}_mrr", []).append(1 / (places[0] + 1))
        means = {name: sum(values) / len(values) for name, values in expected.items()}
        assert there["figures"][stage]["BERT4Rec (best.ckpt)"] == pytest.approx(means, abs=1e-6)
        assert there["details"][stage]["users"] == len(expected[f"{stage}_mrr"]) < number
        if stage == "test":
            assert there["data"]["evaluated_targets"] == number
            assert f"users with {number} targets: every item from 1021 on tests" in run.out
        else:
            assert f"val_ndcg@10 {means['val_ndcg@10']:.4g}" in run.out
    [then] = [line for line in run.out.splitlines() if line.startswith("  on all data")]
    assert compose(*shlex.split(then)[5:]).data.split == "leave_one_out"
    evaluate_here(table, run, tmp_path / "e.json", f"inference.checkpoint_path={run.best}", *settings)
    here = json.loads((tmp_path / "e.json").read_text())
    for name, figures in there["figures"]["test"].items():
        assert here["figures"]["test"][name] == pytest.approx(figures, abs=1e-6)
    for name in ("users", "beyond_accuracy", "slices"):
        assert here["details"]["test"][name] == there["details"]["test"][name]


def test_a_model_that_was_trained_beyond_the_cut_is_found_out(table: Table, trained: Run, tmp_path: Path) -> None:
    outcome = evaluate_here(table, trained, tmp_path / "e.json", *TIME)
    assert "warning: the model was trained on more interactions than there are before the targets" in outcome.out


def test_a_cut_resumes_where_it_was_and_nowhere_else(table: Table, tmp_path: Path) -> None:
    run = train_here(table, tmp_path / "run", ONE_EPOCH, *TIME, "data.min_interactions=1")
    again = (*table.overrides, f"output_dir={run.folder}", *TINY, "data.min_interactions=1", "training.resume=true")
    outcome = call(train, *again, "training.num_epochs=2", *TIME)
    assert (outcome.code, outcome.err) == (0, "")
    for other in ((), ("data.split=time", "data.split_at=1028")):
        outcome = call(train, *again, "training.num_epochs=3", *other)
        assert outcome.code == 1
        assert f"was trained with data.split{'_at=1021' if other else '=time'}" in outcome.err
        assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("data.split=time", "data.split_at=999"), "leaves no interaction before it: the times of"),
        (("data.split=time", "data.split_at=2024-01-31 12:00"), "are mere numbers from 1000 to 1042"),
        (("data.split=time", "data.columns.time=false"), "data.columns.time=false leaves no times to cut at"),
        ((*FILES[:2], "data.test_file=tests.csv"), "data.test_file: there is no file"),
        (("data.split=files",), "it needs data.validation_file"),
        ((*TIME, "data.split_targets=some"), "give first, all, or a number of days above 0"),
        (("data.split_targets=all",), "it goes with data.split=time or files"),
        ((*FILES, "data.split_targets=7"), "days are counted from the cut of data.split=time; use all"),
        (
            (*TIME, "data.split_targets=7", "evaluation.protocols=[full,uniform-100]"),
            "data.split_targets=7 is not possible: several targets of a user are ranked among all items alone",
        ),
        (("data.split=time", "data.split_at=soon"), "give a date such as 2024-01-31, a Unix time, or a share"),
    ],
)
def test_a_split_that_cannot_be_made_is_one_line(
    settings: tuple[str, ...], line: str, tables: Table, tmp_path: Path
) -> None:
    rows = make_rows()
    write_table(tables.path.parent / "all.csv", rows)
    where = ("data.data_dir=" + str(tables.path.parent), "data.data_file=all.csv", f"output_dir={tmp_path}")
    outcome = call(train, *where, *TINY, *settings)
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert line in outcome.err
