"""`inference.evaluate=true`: the figures of training come back, and other tables and checkpoints work too."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.evaluation.evaluate import hold_out
from src.prediction.predict import predict
from tests.data import interactions_of, lists_of
from tests.scripts.conftest import (
    ITEMS,
    REGULARS,
    ROOT,
    TINY,
    Outcome,
    Run,
    Table,
    call,
    files_below,
    train_here,
    write_table,
)

EVALUATE = "inference.evaluate=true"
PROTOCOLS = "evaluation.protocols=[full,uniform-100,popularity-100]"


def evaluate_here(table: Table, run: Run, output_path: Path, *overrides: str) -> tuple[dict[str, Any], Outcome]:
    folders = (f"output_dir={run.folder}", f"inference.output_path={output_path}")
    outcome = call(predict, *table.overrides, *folders, *TINY, EVALUATE, *overrides)
    assert (outcome.code, outcome.err) == (0, "")
    return json.loads(output_path.read_text()), outcome


@pytest.mark.parametrize("settings", [(), (PROTOCOLS, "evaluation.topk=[3,10]"), ("evaluation.filter_seen=false",)])
def test_the_figures_of_training_come_back(settings: tuple[str, ...], table: Table, tmp_path: Path) -> None:
    run = train_here(table, tmp_path / "run", "training.num_epochs=2", *settings)
    before = files_below(run.folder)
    there = json.loads((run.folder / "metrics.json").read_text())
    best = f"inference.checkpoint_path={run.best}"
    here, outcome = evaluate_here(table, run, tmp_path / "e.json", best, *settings, "evaluation.batch_size=3")
    for name, figures in there["figures"]["test"].items():
        assert here["figures"]["test"][name] == pytest.approx(figures, abs=1e-6), name
    for protocol, rows in there["sampled_figures"]["test"].items():
        for name, figures in rows.items():
            assert here["sampled_figures"]["test"][protocol][name] == pytest.approx(figures, abs=1e-6)
    assert here["details"]["test"]["slices"].keys() == there["details"]["test"]["slices"].keys()
    assert here["checkpoint"] == str(run.best)
    assert "test, every item ranked" in outcome.out
    assert str(tmp_path / "e.json") in outcome.out
    assert files_below(run.folder) == before


def test_items_too_rare_for_training_are_no_targets(table: Table, tmp_path: Path) -> None:
    """The item before is the last one then, and a user who has too few without them is not evaluated."""
    rare = [(REGULARS[0], "only here", 9000), ("short", ITEMS[0], 1), ("short", ITEMS[1], 2), ("short", "once", 3)]
    other = write_table(tmp_path / "rare.csv", [*table.rows, *rare])
    run = train_here(other, tmp_path / "run", "training.num_epochs=1", "data.min_item_interactions=2")
    there = json.loads((run.folder / "metrics.json").read_text())
    best = f"inference.checkpoint_path={run.best}"
    here, outcome = evaluate_here(other, run, tmp_path / "e.json", best, "data.min_item_interactions=2")
    assert here["details"]["test"]["users"] == there["details"]["test"]["users"] == len(REGULARS)
    for name, figures in there["figures"]["test"].items():
        assert here["figures"]["test"][name] == pytest.approx(figures, abs=1e-6), name
    assert "warning" not in outcome.out


def test_by_default_the_last_checkpoint_is_evaluated_beside_the_predictions(table: Table, trained: Run) -> None:
    outcome = call(predict, *table.overrides, f"output_dir={trained.folder}", *TINY, EVALUATE)
    try:
        assert outcome.code == 0
        content = json.loads((trained.folder / "evaluation.json").read_text())
        assert list(content["figures"]) == ["test"]
        assert list(content["figures"]["test"])[-1] == "BERT4Rec (last.ckpt)"
        assert "predictions" not in outcome.out
    finally:
        (trained.folder / "evaluation.json").unlink()


def test_a_report_is_written_beside_the_figures(table: Table, trained: Run, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(f'item,title\n{ITEMS[5]},"The fifth, as it were"\n', encoding="utf-8")
    settings = ("evaluation.report=true", f"data.items_file={tmp_path / 'items.csv'}", "evaluation.topk=[10,17]")
    _, outcome = evaluate_here(table, trained, tmp_path / "deep" / "e.json", *settings)
    text = (tmp_path / "deep" / "e.html").read_text(encoding="utf-8")
    assert "The fifth, as it were" in text
    assert "lead over item-item" in text
    assert str(tmp_path / "deep" / "e.html") in outcome.out


def test_users_whose_last_item_is_unknown_are_left_out_and_counted(table: Table, trained: Run, tmp_path: Path) -> None:
    rows = [*table.rows, (REGULARS[0], "brand new", 9000), (REGULARS[1], ITEMS[16], 9000)]
    other = write_table(tmp_path / "later.csv", rows)
    content, outcome = evaluate_here(other, trained, tmp_path / "e.json")
    assert content["details"]["test"]["users"] == len(REGULARS) - 1
    assert "warning: 1 users are left out: the model does not know their last item" in outcome.out


def test_a_model_that_was_trained_on_the_targets_is_found_out(table: Table, tmp_path: Path) -> None:
    for least in (1, 3):  # with 3, two users are too short to be trained on
        run = train_here(
            table, tmp_path / str(least), "training.num_epochs=1", "data.holdout=0", f"data.min_interactions={least}"
        )
        _, outcome = evaluate_here(table, run, tmp_path / "e.json")
        assert "warning: the model was trained on these very items" in outcome.out
    _, outcome = evaluate_here(table, run, tmp_path / "e.json")
    assert "warning: the model was trained on these very items" in outcome.out
    honest = train_here(table, tmp_path / "honest", "training.num_epochs=1")
    _, outcome = evaluate_here(table, honest, tmp_path / "e.json")
    assert "warning" not in outcome.out


def test_a_table_with_nobody_to_evaluate_is_one_line(trained: Run, tmp_path: Path) -> None:
    strangers = write_table(tmp_path / "s.csv", [("ann", f"new {n}", n) for n in range(5)])
    outcome = call(predict, *strangers.overrides, f"output_dir={trained.folder}", *TINY, EVALUATE)
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "nobody to evaluate" in outcome.err
    assert not (trained.folder / "evaluation.json").exists()


@pytest.mark.parametrize("number", [1, 2])
def test_a_checkpoint_of_each_format_is_evaluated_under_every_protocol(number: int, tmp_path: Path) -> None:
    """Three users with four items each, of five: one is left to be drawn, the same one each time."""
    users = {"a": "xyzw", "b": "yzwx", "c": "zwxv"}
    rows = [(user, item, time) for user, items in users.items() for time, item in enumerate(items)]
    table = write_table(tmp_path / "ratings.csv", rows)
    path = ROOT / "tests" / "checkpoints" / f"format-{number}.ckpt"
    settings = (f"inference.checkpoint_path={path}", PROTOCOLS)
    here, outcome = evaluate_here(table, Run(tmp_path, ""), tmp_path / "e.json", *settings)
    sampled = here["sampled_figures"]["test"]
    assert list(sampled) == ["uniform-100", "popularity-100"]
    for figures in (here["figures"]["test"], *sampled.values()):
        assert list(figures) == ["popularity", "item-item", f"BERT4Rec ({path.name})"]
    assert sampled["uniform-100"]["popularity"]["test_uniform-100_mrr"] >= 0.5  # of at most two
    assert "3 of 3 users have fewer than 100 items left to draw for uniform-100" in outcome.out
    again, _ = evaluate_here(table, Run(tmp_path, ""), tmp_path / "again.json", *settings)
    assert all(here[part] == again[part] for part in ("figures", "sampled_figures", "details"))


def test_holding_out_by_hand() -> None:
    import numpy as np
    import pyarrow as pa

    from src.data.vocabulary import Vocabulary

    vocabulary = Vocabulary(pa.array(["a", "b", "c", "d"]), np.ones(4, dtype=np.int64))
    interactions = interactions_of(
        [["a", "x", "b", "c"], ["a", "b"], ["x", "x", "d"], ["b", "a", "x"], ["c", "x", "x", "d", "a"]]
    )
    held_out = hold_out(interactions, vocabulary, min_interactions=3, holdout=2)
    assert held_out.users.tolist() == [0, 2, 4]
    assert held_out.targets.tolist() == [3, 4, 1]
    assert lists_of(held_out.tokens, held_out.histories) == [[1, 2], [], [3, 4]]
    assert lists_of(held_out.tokens, held_out.training) == [[1], [], [2], [3]]
    assert held_out.unknown_targets == 1
