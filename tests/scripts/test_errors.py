"""A mistake is one line that names the way out, with exit code 1, and costs nothing of what was there."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.command_line import cli
from src.errors import UserError
from src.prediction.predict import predict
from src.settings import Config
from src.training.train import train
from tests.scripts.conftest import (
    TINY,
    Outcome,
    Run,
    Table,
    call,
    checkpoint,
    compose,
    files_below,
    launch,
    make_rows,
    train_here,
    write_table,
)

Task = Callable[[Config], float | None]


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of a trained run, for what must leave it as it is."""
    shutil.copytree(trained.folder, tmp_path / "run")
    return Run(tmp_path / "run", "")


def assert_one_line(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 1, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert "Traceback" not in outcome.out + outcome.err
    for part in parts:
        assert part in outcome.err


def fails(task: Task, folder: Path, *overrides: str) -> Outcome:
    """Run a task that must fail and leave every file in `folder` as it was."""
    before = files_below(folder)
    outcome = call(task, f"output_dir={folder}", *TINY, *overrides)
    assert before.items() <= files_below(folder).items()
    return outcome


def file_with(path: Path, content: str) -> tuple[str, str]:
    path.write_text(content, encoding="utf-8")
    return f"data.data_dir={path.parent}", f"data.data_file={path.name}"


def test_a_missing_file_in_a_process_of_its_own(run: Run, tmp_path: Path) -> None:
    before = files_below(run.folder)
    overrides = ("data.data_dir=no such folder", "data.data_file=no.csv", "output_dir=run", *TINY)
    outcome = launch("train_bert4rec.py", *overrides, cwd=tmp_path)
    assert_one_line(outcome, "no such folder/no.csv", "data.data_dir=", "data.data_file=", "experiment=sample")
    assert outcome.out == ""
    assert files_below(run.folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_missing_checkpoint_in_a_process_of_its_own(tmp_path: Path) -> None:
    write_table(tmp_path / "r.csv", make_rows())
    outcome = launch("predict_bert4rec.py", "data.data_dir=.", "data.data_file=r.csv", *TINY, cwd=tmp_path)
    assert_one_line(outcome, "saved/bert4rec/checkpoints/last.ckpt", "train_bert4rec.py", "inference.checkpoint_path=")
    assert outcome.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_a_missing_file_at_prediction(run: Run, tmp_path: Path) -> None:
    outcome = fails(predict, run.folder, f"data.data_dir={tmp_path}", "data.data_file=no.csv")
    assert_one_line(outcome, f"{tmp_path}/no.csv", "data.data_dir=", "data.data_file=", "experiment=sample")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["is empty", "user,item,time"]),
        ("user,item,time\n", ["no rows"]),
        ("person,film,time\n1,2,3\n", ["user", "item", "person, film, time"]),
        ("user,movie\n1,2\n", ["item", "user, movie"]),
        ("item,when\n1,2\n", ["user", "item, when"]),
        ("user,item,time\na,,3\n", ["item", "row 1"]),
        ("user,item,time\na,b,3\na,c,soon\n", ["time"]),
        ("user,item,time\na,b\n", ["r.csv"]),
    ],
)
def test_a_table_that_cannot_be_used(content: str, parts: list[str], run: Run, tmp_path: Path) -> None:
    outcome = fails(train, run.folder, *file_with(tmp_path / "r.csv", content))
    assert_one_line(outcome, str(tmp_path / "r.csv"), *parts)


def test_prediction_has_the_same_errors(run: Run, tmp_path: Path) -> None:
    assert_one_line(
        fails(predict, run.folder, f"data.data_dir={tmp_path}/none", "inference.topk=0"), "inference.topk=0"
    )
    assert_one_line(fails(predict, run.folder, "inference.topp=3"), "inference.topp:", "inference.topk?")
    assert_one_line(fails(predict, run.folder, *file_with(tmp_path / "r.csv", "user,movie\n1,2\n")), "user, movie")
    assert_one_line(fails(predict, run.folder, *file_with(tmp_path / "r.csv", "")), "r.csv is empty")


def test_no_user_long_enough(run: Run, table: Table) -> None:
    outcome = fails(train, run.folder, *table.overrides, "data.min_interactions=8")
    assert_one_line(outcome, str(table.path), "data.min_interactions=8", "7")


def test_no_user_to_evaluate(run: Run, tmp_path: Path) -> None:
    two_each = "user,item\na,x\na,y\nb,y\nb,x\n"
    outcome = fails(train, run.folder, *file_with(tmp_path / "r.csv", two_each), "data.min_interactions=2")
    assert_one_line(outcome, "data.holdout=2", "data.holdout=0")


# One of each kind; tests/settings has the others.
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.lrr=0.1", ["training.lrr", "training.lr?"]),
        ("nonsense_altogether=1", ["nonsense_altogether", "--help lists every key"]),
        ("+training.lrr=1", ["training.lrr", "training.lr?"]),
        ("+nonsense_altogether=1", ["nonsense_altogether", "--help lists every key"]),
        ("training.num_epochs=many", ["training.num_epochs", "many"]),
        ("model.hidden_units=9", ["model.hidden_units=9", "model.num_heads=2"]),
        (
            "experiment=nonsense",
            ["experiment=nonsense", "ml-1m, paper/beauty, paper/ml-1m", "small, steam"],
        ),
        ("experiment=papre/steam", ["experiment=papre/steam", "did you mean paper/steam?"]),
        ("experiment=smal", ["did you mean small?"]),
        ("--training.lr=0.1", ["--training.lr", "KEY=VALUE", "training.lr=VALUE"]),
        ("--lr", ["--lr", "training.lr=VALUE"]),
        ("--epochs=3", ["--epochs", "training.num_epochs=VALUE"]),
        ("my data/ratings.csv", ["'data.data_dir=my data' data.data_file=ratings.csv"]),
        ("ratings.csv", ["data.data_dir=. data.data_file=ratings.csv"]),
        ("training.lr", ["training.lr"]),
        ("training.lr=0.1,0.2", ["training.lr"]),
    ],
)
def test_a_setting_that_cannot_be(override: str, parts: list[str], run: Run, tmp_path: Path) -> None:
    # The data does not exist: settings are checked before any data is read.
    assert_one_line(fails(train, run.folder, f"data.data_dir={tmp_path}/none", override), *parts)


@pytest.mark.parametrize(
    "override",
    [
        "training.accelerator=abacus",
        "training.precision=12-mixed",
        "training.strategy=guerrilla",
        "training.devices=[]",
    ],
)
def test_a_trainer_setting_that_cannot_be(override: str, run: Run, table: Table) -> None:
    assert_one_line(fails(train, run.folder, *table.overrides, override), override.split("=")[1])


def test_no_checkpoint_to_predict_with(table: Table, tmp_path: Path) -> None:
    outcome = fails(predict, tmp_path, *table.overrides)
    assert_one_line(outcome, f"{tmp_path}/checkpoints/last.ckpt", "train_bert4rec.py", "inference.checkpoint_path=")
    named = f"inference.checkpoint_path={tmp_path}/other.ckpt"
    assert_one_line(fails(predict, tmp_path, *table.overrides, named), f"{tmp_path}/other.ckpt")


def test_no_checkpoint_to_resume_from(run: Run, table: Table, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    outcome = fails(train, empty, *table.overrides, "training.resume=true")
    assert_one_line(outcome, f"{empty}/checkpoints/last.ckpt", "training.resume=false")
    outcome = fails(train, run.folder, *table.overrides, f"training.resume={tmp_path}/other.ckpt")
    assert_one_line(outcome, f"{tmp_path}/other.ckpt", "training.resume=false")


def foreign(kind: str, own: Path, path: Path) -> Path:
    """Write a file that is no checkpoint of this program."""
    if kind == "text":
        path.write_text("hello\n")
    elif kind == "code":
        torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, path)
    elif kind == "weights":
        torch.save(checkpoint(own)["state_dict"], path)
    elif kind == "other network":
        content = checkpoint(own)
        content["hyper_parameters"]["hidden_units"] = 4
        torch.save(content, path)
    return path


# tests/runs has others.
@pytest.mark.parametrize("kind", ["text", "code", "other network"])
def test_a_foreign_checkpoint_to_predict_with(kind: str, run: Run, table: Table, tmp_path: Path) -> None:
    (run.folder / "predictions.csv").write_text("user,item\n")
    path = foreign(kind, run.last, tmp_path / "foreign.ckpt")
    assert_one_line(fails(predict, run.folder, *table.overrides, f"inference.checkpoint_path={path}"), str(path))


@pytest.mark.parametrize("kind", ["text", "weights"])
def test_a_foreign_checkpoint_to_resume_from(kind: str, run: Run, table: Table, tmp_path: Path) -> None:
    path = foreign(kind, run.last, tmp_path / "foreign.ckpt")
    assert_one_line(fails(train, run.folder, *table.overrides, f"training.resume={path}"), str(path))


def test_resuming_with_a_network_of_another_size(run: Run, table: Table) -> None:
    overrides = ("training.resume=true", "training.num_epochs=8", "model.hidden_units=16")
    assert_one_line(fails(train, run.folder, *table.overrides, *overrides), "last.ckpt")


def test_resuming_on_a_table_with_other_items(run: Run, tmp_path: Path) -> None:
    other = write_table(tmp_path / "other.csv", [(user, item.upper(), time) for user, item, time in make_rows()])
    overrides = ("training.resume=true", "training.num_epochs=8")
    assert_one_line(fails(train, run.folder, *other.overrides, *overrides), str(other.path), "training.resume=false")


def test_diverged_training_says_so_and_keeps_the_earlier_run(run: Run, table: Table) -> None:
    before = files_below(run.folder)
    overrides = ("training.lr=1e30", "training.num_epochs=3", "data.batch_size=6")
    outcome = call(train, *table.overrides, f"output_dir={run.folder}", *TINY, *overrides)
    assert_one_line(outcome, "step 2, epoch 0", "there is no checkpoint yet", "training.lr", "training.gradient_clip")
    assert not (run.folder / "checkpoints").exists() or not list((run.folder / "checkpoints").iterdir())
    (place,) = (run.folder / "previous").iterdir()
    assert files_below(place) == before


def test_an_output_folder_that_is_a_file(table: Table, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine\n")
    outcome = call(train, *table.overrides, f"output_dir={tmp_path / 'taken'}", *TINY, "training.num_epochs=1")
    assert_one_line(outcome, "taken")
    assert (tmp_path / "taken").read_text() == "mine\n"


def test_the_full_traceback_comes_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["script.py", f"data.data_dir={tmp_path}", *TINY])
    with pytest.raises(UserError, match="there is no file"):
        cli.run(train)


@pytest.mark.parametrize("name", ["a=b it's", "comma,comma", "(1)", "100% 영화"])
def test_odd_folder_names_work(name: str, trained: Run, tmp_path: Path) -> None:
    data = write_table(tmp_path / name / "ratings.csv", make_rows())
    shutil.copytree(trained.folder, tmp_path / name / "run")
    shutil.copy(trained.best, tmp_path / name / "one.ckpt")
    paths = {
        "output_dir": "run",
        "inference.checkpoint_path": "one.ckpt",
        "inference.output_path": "top.csv",
    }
    overrides = (f"{key}={tmp_path / name / file}" for key, file in paths.items())
    outcome = call(predict, *data.overrides, *overrides, *TINY, "inference.topk=3")
    assert (outcome.code, outcome.err) == (0, "")
    assert len((tmp_path / name / "top.csv").read_text().splitlines()) == 1 + 3 * 25


def test_file_names_with_an_equals_sign_work(trained: Run, tmp_path: Path) -> None:
    data = write_table(tmp_path / "ratings=all.csv", make_rows())
    shutil.copy(trained.best, tmp_path / "epoch=4-ndcg=0.31.ckpt")
    resumed = train_here(
        data,
        tmp_path / "run=2",
        f"training.resume={tmp_path}/epoch=4-ndcg=0.31.ckpt",
        "training.num_epochs=7",
        "data.batch_size=6",
    )
    assert checkpoint(resumed.last)["epoch"] == 6
    assert resumed.folder.name == "run=2"


@pytest.mark.parametrize("quote", ["", "'"])
def test_a_path_may_be_quoted_and_begin_with_the_home_folder(
    quote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_table(tmp_path / "data" / "r.csv", make_rows())
    paths = {"data.data_dir": "~/data/", "data.data_file": "r.csv", "output_dir": "~/runs/one"}
    overrides = (*(f"{key}={quote}{path}{quote}" for key, path in paths.items()), *TINY, "training.num_epochs=1")
    assert call(train, *overrides).err == ""
    best = f"inference.checkpoint_path={quote}~/runs/one/checkpoints/best.ckpt{quote}"
    assert call(predict, *overrides, best, f"inference.output_path={quote}~/top.csv{quote}").err == ""
    assert (tmp_path / "top.csv").exists()
    resumed = call(train, *overrides, f"training.resume={quote}~/runs/one/checkpoints/last.ckpt{quote}")
    assert (resumed.code, resumed.err) == (0, "")
    assert not any("~" in path.name for path in [*Path.cwd().iterdir(), *tmp_path.iterdir()])


def test_the_default_data_folder_is_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose().data.data_dir == "~/data/train/"
    outcome = call(train, f"output_dir={tmp_path}")
    assert_one_line(outcome, os.path.join(tmp_path, "data/train/train_ratings.csv"))


def test_ctrl_c_before_training_is_one_line(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("src.data.bert4rec_data.load_training_data", interrupt)
    outcome = call(train, *table.overrides, f"output_dir={tmp_path}", *TINY)
    assert (outcome.code, outcome.err) == (130, "error: stopped; nothing that was there is lost\n")
