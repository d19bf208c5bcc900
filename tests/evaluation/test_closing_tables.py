"""The tables that the scripts end with, word for word, and metrics.json."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from src.evaluation import closing_tables
from src.runs.folder import RunFolder

SUMMARY: dict[str, Any] = {
    "split": "leave_one_out: the last item tests, the one before validates",
    "rows": 12345,
    "users": 1100,
    "items": 523,
    "has_time": 1,
    "short_users": 0,
    "short_users_rows": 0,
    "train_users": 1100,
    "train_items": 523,
    "train_rows": 10145,
    "evaluated_users": 1099,
}


def test_data_of_a_plain_table() -> None:
    assert closing_tables.describe_data(SUMMARY, min_interactions=3, holdout=2).splitlines() == [
        "data        12,345 interactions of 1,100 users with 523 items",
        "training    10,145 interactions of 1,100 users with 523 items",
        "evaluation  1,099 users: the last item tests, the one before validates, all 523 items ranked",
    ]


def test_data_says_what_was_left_out_and_why() -> None:
    summary = SUMMARY | {
        "split": "leave_one_out: the last item validates",
        "has_time": 0,
        "short_users": 1001,
        "short_users_rows": 1500,
        "train_users": 99,
    }
    assert closing_tables.describe_data(summary | {"train_items": 500}, min_interactions=4, holdout=1).splitlines() == [
        "data        12,345 interactions of 1,100 users with 523 items"
        " (no time column: the file's order is taken as the order)",
        "left out    1,001 users with fewer than data.min_interactions=4 interactions"
        " (1,500 interactions, 23 items that only they have)",
        "training    10,145 interactions of 99 users with 500 items",
        "evaluation  1,099 users: the last item validates, all 500 items ranked",
    ]


def test_data_that_all_trains_has_no_evaluation() -> None:
    summary = {key: value for key, value in SUMMARY.items() if key != "evaluated_users"}
    assert "evaluation" not in closing_tables.describe_data(summary, min_interactions=3, holdout=0)


def test_what_a_cut_in_time_leaves_out_is_counted_before_it() -> None:
    cut = {"split": "time: the first item from 2024-01-31 00:00:00 on validates", "items_before": 503}
    summary = SUMMARY | cut | {"short_users": 9, "short_users_rows": 15, "train_items": 500}
    assert closing_tables.describe_data(summary, min_interactions=4, holdout=1).splitlines()[1:] == [
        "left out    9 users with fewer than data.min_interactions=4 interactions"
        " (15 interactions, 3 items that only they have)",
        "training    10,145 interactions of 1,100 users with 500 items",
        "evaluation  1,099 users: the first item from 2024-01-31 00:00:00 on validates, all 500 items ranked",
    ]


@pytest.mark.parametrize("split", ["time", "files"])
def test_figures_name_a_split_that_is_not_leave_one_out(split: str) -> None:
    figures = {"figures": {"test": {"a": {"test_hit@5": 0.25}}}}
    sampled = {"sampled_figures": {"test": {"uniform-100": {"a": {"test_uniform-100_hit@5": 0.75}}}}}
    lines = closing_tables.figures({"data": {"split": f"{split}: the first item"}, **figures, **sampled}).splitlines()
    assert lines[0] == f"test, every item ranked, split by {split}"
    assert lines[4].startswith(f"test, split by {split}, target among 100 items drawn uniformly")
    lines = closing_tables.figures({"data": {"split": "leave_one_out: the last item tests"}, **figures}).splitlines()
    assert lines[0] == "test, every item ranked"


def test_table_of_figures() -> None:
    rows = {
        "popularity": {"test_hit@10": 0.1, "test_ndcg@10": 0.05, "test_mrr": 0.04},
        "BERT4Rec (best.ckpt)": {"test_hit@10": 0.123456, "test_ndcg@10": 1.0, "test_mrr": 0.0},
        "best reachable": {"hit@10": 0.5, "ndcg@10": 0.25},
    }
    assert closing_tables.figures_table(rows).splitlines() == [
        "                      HIT@10  NDCG@10    MRR",
        "popularity            0.1000   0.0500 0.0400",
        "BERT4Rec (best.ckpt)  0.1235   1.0000 0.0000",
        "best reachable        0.5000   0.2500       ",
    ]


def test_a_sampled_figure_says_so_in_its_column_and_above_its_table(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rows = {"a": {"val_hit@5": 0.25}}
    sampled = {"val": {"uniform-100": {"a": {"val_uniform-100_hit@5": 0.75}}}}
    content = {"seconds": 1.0, "epochs": 1, "figures": {"val": rows}, "sampled_figures": sampled}
    closing_tables.write_json(folder.metrics, content)
    assert closing_tables.closing(folder).splitlines()[2:8] == [
        "validation, every item ranked",
        "   HIT@5",
        "a 0.2500",
        "",
        "validation, target among 100 items drawn uniformly: not comparable with the ranking of every item",
        "   HIT@5 uniform-100",
    ]


def test_intervals_of_the_model_stand_below_its_table(tmp_path: Path) -> None:
    ends = {"hit@5": [0.2, 0.3], "mrr": [0.11, 0.12345]}
    details = {"val": {"intervals": {"full": {"a": {}, "b": ends}, "uniform-100": {"b": {}}}}}
    content = {"figures": {"val": {"a": {"val_hit@5": 0.25}}}, "details": details}
    assert (
        closing_tables.figures(content).splitlines()[-1] == "95% interval: HIT@5 0.2000 to 0.3000, MRR 0.1100 to 0.1235"
    )


def test_closing_names_the_figures_and_the_files_that_are_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    row = {"val_hit@5": 0.25, "val_mrr": 0.125}
    test_row = {key.replace("val", "test"): value / 2 for key, value in row.items()}
    content = {"seconds": 61.5, "epochs": 7, "figures": {"val": {"a": row}, "test": {"a": test_row, "b": test_row}}}
    closing_tables.write_json(folder.metrics, content)
    folder.checkpoints.mkdir()
    folder.last.write_bytes(b"")
    assert closing_tables.closing(folder).splitlines() == [
        "trained 7 epochs in 62 s",
        "",
        "validation, every item ranked",
        "   HIT@5    MRR",
        "a 0.2500 0.1250",
        "",
        "test, every item ranked",
        "   HIT@5    MRR",
        "a 0.1250 0.0625",
        "b 0.1250 0.0625",
        "",
        f"checkpoints {folder.last}",
        f"figures     {folder.metrics}",
    ]
    folder.best.write_bytes(b"")
    folder.logs.mkdir()
    folder.report.write_text("")
    folder.predictions.write_text("user,item\n")
    assert closing_tables.closing(folder).splitlines()[-6:] == [
        f"checkpoints {folder.last}",
        f"            {folder.best}",
        f"logs        {folder.logs}",
        f"figures     {folder.metrics}",
        f"report      {folder.report}",
        f"predictions {folder.predictions}",
    ]


def test_closing_of_a_run_without_evaluation(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    closing_tables.write_json(folder.metrics, {"seconds": 1.0, "epochs": 2, "figures": {}})
    assert closing_tables.closing(folder).splitlines() == [
        "trained 2 epochs in 1 s",
        "",
        f"figures     {folder.metrics}",
    ]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    content: dict[str, Any] = {"figures": {"val": {"x": 0.5}}, "none": None, "list": [1, "a"]}
    closing_tables.write_json(path, content)
    assert json.loads(path.read_text()) == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]
    with pytest.raises(TypeError):
        closing_tables.write_json(path, {"fine": 1, "bad": object()})
    assert json.loads(path.read_text()) == content

    def is_cut_off(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", is_cut_off)
    with pytest.raises(OSError, match="no space left"):
        closing_tables.write_json(path, {"new": 1})
    assert json.loads(path.read_text()) == content


def content_with(lead: list[float], model: float = 0.3) -> dict[str, Any]:
    rows = {"popularity": 0.1, "item-item": 0.25, "BERT4Rec (best.ckpt)": model, "best reachable": 0.4}
    ends = {"popularity": {"ndcg@5": [0.1, 0.3]}, "item-item": {"ndcg@5": lead}}
    return {
        "figures": {"val": {}, "test": {name: {"test_ndcg@5": value} for name, value in rows.items()}},
        "details": {"val": {}, "test": {"lead": {"full": ends}}},
        "settings": {"data": {"window_stride": None}},
    }


@pytest.mark.parametrize(
    ("lead", "model", "expected"),
    [
        (
            [0.01, 0.09],
            0.3,
            "verdict: BERT4Rec (best.ckpt) beats popularity and item-item; its lead over item-item is NDCG@5 +0.0500,"
            " 95% interval +0.0100 to +0.0900",
        ),
        (
            [-0.01, 0.03],
            0.26,
            "verdict: BERT4Rec (best.ckpt) and item-item cannot be told apart (NDCG@5 +0.0100, 95% interval -0.0100 to"
            " +0.0300): try experiment=best, or train longer",
        ),
        (
            [-0.09, -0.01],
            0.2,
            "verdict: BERT4Rec (best.ckpt) is behind item-item (NDCG@5 -0.0500, 95% interval -0.0900 to -0.0100): try"
            " experiment=best, or train longer",
        ),
    ],
)
def test_the_verdict_says_by_how_much_and_whether_it_is_more_than_chance(
    lead: list[float], model: float, expected: str
) -> None:
    assert closing_tables.verdict(content_with(lead, model), [5, 10]) == expected


def test_there_is_no_verdict_without_figures_or_intervals() -> None:
    assert closing_tables.verdict({"figures": {}, "details": {}}, [5]) is None
    without = content_with([0.0, 0.1])
    without["details"]["test"] = {}
    assert closing_tables.verdict(without, [5]) is None


@pytest.mark.parametrize("width", [40, 80, 10_000])
def test_commands_are_folded_between_words_and_stay_one_command(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "python predict_bert4rec.py 'output_dir=my runs/of today' inference.topk=20 inference.with_scores=true"
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, head, *lines = closing_tables.next_steps({"more, scored": command, "again": "python x.py"}).splitlines()
    assert head == "next"
    assert max(len(line) for line in lines) <= max(width, 55)
    first, *rest = lines[:-1]
    assert first.startswith("  more, scored python ")
    assert lines[-1] == "  again        python x.py"
    pasted = "\n".join([first.removeprefix("  more, scored "), *rest])
    told = subprocess.run(["sh", "-c", pasted.replace("python", "printf '%s\\n'", 1)], capture_output=True, text=True)
    assert told.stdout.splitlines() == shlex.split(command)[1:]
