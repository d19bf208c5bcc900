"""The training script as a user runs it: what it writes, says, keeps and continues."""

import json
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.command_line.words import quote_text
from src.evaluation import report_page
from src.models import BERT4Rec
from src.prediction.predict import predict
from src.training.train import train
from tests.scripts.conftest import (
    LONELY_ITEM,
    REGULARS,
    ROOT,
    TINY,
    Outcome,
    Run,
    Sessions,
    Table,
    call,
    checkpoint,
    compose,
    files_below,
    make_rows,
    same_weights,
    train_here,
    write_table,
)

VALIDATION = {"val_hit@10", "val_ndcg@10", "val_mrr"}
TEST = {"test_hit@10", "test_ndcg@10", "test_mrr"}
TWO_EPOCHS = "training.num_epochs=2"
BOTH_LOGGERS = "training.logger=[tensorboard,csv]"


@dataclass(frozen=True)
class Launched:
    """A run in a process of its own, from a folder that is not the repository's, with relative paths."""

    cwd: Path
    folder: Path
    overrides: tuple[str, ...]
    outcome: Outcome


@pytest.fixture(scope="module")
def launched(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    cwd = tmp_path_factory.mktemp("where the user stands")
    write_table(cwd / "my data" / "my ratings.csv", make_rows())
    overrides = (
        "data.data_dir=my data",
        "data.data_file=my ratings.csv",
        "output_dir=my runs/one",
        *TINY,
        TWO_EPOCHS,
        BOTH_LOGGERS,
    )
    outcome = sessions.launch("train", *overrides, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return Launched(cwd, cwd / "my runs" / "one", overrides, outcome)


@pytest.fixture(scope="module")
def short(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs with all defaults; not to be written to."""
    return train_here(table, tmp_path_factory.mktemp("short"), TWO_EPOCHS)


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a scalar in the TensorBoard logs."""
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def test_files_are_where_the_specification_has_them(launched: Launched) -> None:
    assert {path.name for path in launched.folder.iterdir()} == {".lock", "checkpoints", "logs", "metrics.json"}
    assert {path.name for path in (launched.folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


def test_nothing_else_is_left_where_the_user_stands(launched: Launched) -> None:
    assert {path.name for path in launched.cwd.iterdir()} == {"my data", "my runs"}
    assert {path.name for path in (launched.cwd / "my data").iterdir()} == {"my ratings.csv"}
    assert {path.name for path in (launched.cwd / "my runs").iterdir()} == {"one"}


def test_tensorboard_has_the_loss_of_each_epoch_and_the_metrics(launched: Launched) -> None:
    losses = curve(launched.folder, "train_loss")
    assert len(losses) == 2
    assert all(0.0 < loss < 10.0 for _, loss in losses)
    for name in VALIDATION | TEST:
        assert all(0.0 <= value <= 1.0 for _, value in curve(launched.folder, name))
    assert len(curve(launched.folder, "val_ndcg@10")) >= 2


def test_metrics_json_has_all_figures_and_the_settings_that_made_them(launched: Launched) -> None:
    content = metrics(launched.folder)
    assert content["epochs"] == 2
    assert content["settings"] == asdict(compose(*launched.overrides))
    assert set(content["figures"]) == {"val", "test"}
    for stage, names in (("val", VALIDATION), ("test", TEST)):
        assert list(content["figures"][stage]) == ["popularity", "item-item", "BERT4Rec (best.ckpt)"]
        for figures in content["figures"][stage].values():
            assert set(figures) == names
            assert all(0.0 < value <= 1.0 for value in figures.values())


def test_sampled_protocols_stand_apart_under_names_of_their_own(short: Run, table: Table, tmp_path: Path) -> None:
    protocols = "evaluation.protocols=[full,uniform-100,popularity-100]"
    run = train_here(table, tmp_path / "sampled", TWO_EPOCHS, protocols, "evaluation.batch_size=5")
    assert metrics(run.folder)["figures"] == metrics(short.folder)["figures"]
    assert metrics(short.folder)["sampled_figures"] == {"val": {}, "test": {}}
    sampled = metrics(run.folder)["sampled_figures"]
    closing = run.out[run.out.index("trained 2 epochs") :]
    for stage in ("val", "test"):
        assert list(sampled[stage]) == ["uniform-100", "popularity-100"]
        for protocol, rows in sampled[stage].items():
            assert list(rows) == list(metrics(run.folder)["figures"][stage])
            for figures in rows.values():
                assert list(figures) == [f"{stage}_{protocol}_{name}" for name in ("hit@10", "ndcg@10", "mrr")]
        # 17 items: every item that the user has not is a negative, so that uniform-100 ranks like the full protocol.
        for name, figures in metrics(run.folder)["figures"][stage].items():
            wanted = {key.replace("_", "_uniform-100_", 1): value for key, value in figures.items()}
            assert sampled[stage]["uniform-100"][name] == pytest.approx(wanted)
    assert closing.count("100 items drawn uniformly: not comparable") == 2
    assert closing.count("HIT@10 popularity-100") == 2
    assert "23 of 23 users have fewer than 100 items left to draw for uniform-100" in run.out


def test_the_summary_says_what_was_read_and_what_was_left_out(launched: Launched) -> None:
    summary = launched.outcome.out.split("Epoch 0")[0]
    assert "115 interactions of 25 users with 18 items" in summary
    assert "2 users with fewer than data.min_interactions=3 interactions (3 interactions, 1 item" in summary
    assert "66 interactions of 23 users with 17 items" in summary  # each has two items held out
    assert f"{sum(v.numel() for v in BERT4Rec(17, 8, 2, 1, 6).parameters()):,} parameters" in summary


def test_the_closing_table_shows_the_figures_the_paths_and_the_next_command(launched: Launched) -> None:
    closing = launched.outcome.out[launched.outcome.out.index("trained 2 epochs") :]
    figures = metrics(launched.folder)["figures"]
    lines = [line.split() for line in closing.splitlines()]
    for stage in ("val", "test"):
        for name, row in figures[stage].items():
            wanted = [f"{row[f'{stage}_{metric}']:.4f}" for metric in ("hit@10", "ndcg@10", "mrr")]
            assert [*name.split(), *wanted] in lines
    for path in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "logs", "metrics.json"):
        assert f"my runs/one/{path}" in closing
    assert "predictions.csv" not in closing


def test_the_last_lines_are_commands_to_go_on_with(launched: Launched) -> None:
    lines = launched.outcome.out.splitlines()
    steps = {line[2:14].strip(): line[15:] for line in lines[lines.index("next") + 1 :]}
    assert list(steps) == ["recommend", "of the best", "evaluate", "curves", "longer", "on all data"]
    for script, name in (("predict", "recommend"), ("predict", "of the best"), ("train", "longer")):
        words = shlex.split(steps[name])
        assert words[:2] == [sys.executable, str(ROOT / f"{script}_bert4rec.py")]  # as it was called
        given = compose(*map(quote_text, words[2:]))
        assert (given.output_dir, given.data.data_dir) == ("my runs/one", "my data")
        assert given.data.data_file == "my ratings.csv"
    assert shlex.split(steps["of the best"])[-1] == "inference.checkpoint_path=my runs/one/checkpoints/best.ckpt"
    longer = compose(*map(quote_text, shlex.split(steps["longer"])[2:]))
    assert (longer.training.resume, longer.training.num_epochs, longer.model.hidden_units) == (True, 4, 8)


def test_a_clean_run_says_nothing_about_errors(launched: Launched) -> None:
    assert "Traceback" not in launched.outcome.err
    assert "error" not in launched.outcome.err.lower()


def test_best_checkpoint_is_of_the_best_epoch_and_last_of_the_last(trained: Run) -> None:
    validated = dict(curve(trained.folder, "val_ndcg@10")[:6])  # what follows is the evaluation at the end
    assert list(validated) == [3, 7, 11, 15, 19, 23]
    best_epoch = list(validated.values()).index(max(validated.values()))
    assert checkpoint(trained.best)["epoch"] == best_epoch
    assert checkpoint(trained.last)["epoch"] == 5
    assert not same_weights(trained.best, trained.last)
    figures = metrics(trained.folder)["figures"]["val"]["BERT4Rec (best.ckpt)"]
    assert figures["val_ndcg@10"] == pytest.approx(max(validated.values()), abs=1e-6)


def test_monitor_metric_decides_which_epoch_is_best(trained: Run, table: Table, tmp_path: Path) -> None:
    settings = metrics(trained.folder)["settings"]
    run = train_here(
        table,
        tmp_path,
        "training.num_epochs=6",
        "training.lr=0.02",
        "data.batch_size=6",
        f"seed={settings['seed']}",
        "evaluation.topk=[1,3]",
        "training.monitor_metric=val_hit@3",
    )
    validated = [value for _, value in curve(run.folder, "val_hit@3")[:6]]
    assert checkpoint(run.best)["epoch"] == validated.index(max(validated))
    assert same_weights(run.last, trained.last)  # what is evaluated does not touch training
    figures = metrics(run.folder)["figures"]["test"]["BERT4Rec (best.ckpt)"]
    assert set(figures) == {"test_hit@1", "test_ndcg@1", "test_hit@3", "test_ndcg@3", "test_mrr"}


def test_train_returns_the_best_value_of_the_monitored_metric(table: Table, tmp_path: Path) -> None:
    value = train(compose(*table.overrides, f"output_dir={tmp_path}", *TINY, TWO_EPOCHS))
    assert value == metrics(tmp_path)["figures"]["val"]["BERT4Rec (best.ckpt)"]["val_ndcg@10"]


def test_a_new_run_archives_the_earlier_ones_whole_and_mixes_with_nothing(table: Table, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine\n")
    written = []
    for seed in (1, 2, 3):
        run = train_here(table, tmp_path, TWO_EPOCHS, f"seed={seed}")
        if seed == 1:
            assert "previous" not in run.out
            (tmp_path / "predictions.csv").write_text("user,item\n")
        else:
            assert str(tmp_path / "previous") in run.out
        written.append({k: v for k, v in files_below(tmp_path).items() if not k.startswith("previous/")})
        assert written[-1].pop("notes.txt") == b"mine\n"
        assert {"metrics.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= written[-1].keys()
    assert "predictions.csv" in written[0]
    assert "predictions.csv" not in written[1] | written[2]
    assert len({sum(name.startswith("logs/") for name in files) for files in written}) == 1
    archives = [files_below(place) for place in sorted((tmp_path / "previous").iterdir())]
    assert len(archives) == 2
    assert all(files in archives for files in written[:2])


def test_resume_goes_on_to_the_same_weights_as_a_run_in_one_go(table: Table, tmp_path: Path) -> None:
    settings = ("training.lr=0.02", "data.batch_size=6", "model.dropout_rate=0.0")
    whole = train_here(table, tmp_path / "whole", "training.num_epochs=5", *settings)
    first = train_here(table, tmp_path / "parts", TWO_EPOCHS, *settings)
    before = checkpoint(first.last)
    parts = train_here(table, tmp_path / "parts", "training.num_epochs=5", "training.resume=true", *settings)
    after = checkpoint(parts.last)
    assert (before["epoch"], after["epoch"]) == (1, 4)
    assert (before["global_step"], after["global_step"]) == (8, 20)
    assert metrics(parts.folder)["epochs"] == 5
    (place,) = (parts.folder / "previous").iterdir()
    assert [path.name for path in place.iterdir()] == ["metrics.json"]  # that of two epochs
    assert {path.name for path in (parts.folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert [step for step, _ in curve(parts.folder, "train_loss")] == [3, 7, 11, 15, 19]
    assert same_weights(parts.last, whole.last)
    assert same_weights(parts.best, whole.best)
    assert metrics(parts.folder)["figures"] == metrics(whole.folder)["figures"]


def test_resume_chooses_the_best_of_all_epochs_before_and_after(trained: Run, table: Table, tmp_path: Path) -> None:
    settings = ("training.lr=0.02", "data.batch_size=6", f"seed={metrics(trained.folder)['settings']['seed']}")
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    run = train_here(table, folder, "training.num_epochs=7", "training.resume=true", *settings)
    validated = [value for step, value in curve(folder, "val_ndcg@10") if step % 4 == 3]
    assert len(validated) == 7
    assert checkpoint(run.best)["epoch"] == validated.index(max(validated))


def test_resume_from_elsewhere_leaves_that_run_and_archives_what_stands_in_the_output_folder(
    short: Run, trained: Run, table: Table, tmp_path: Path
) -> None:
    there = files_below(trained.folder)
    before = files_below(shutil.copytree(short.folder, tmp_path, dirs_exist_ok=True))
    run = train_here(table, tmp_path, "training.num_epochs=8", "data.batch_size=6", f"training.resume={trained.last}")
    assert checkpoint(run.last)["epoch"] == 7
    assert files_below(trained.folder) == there
    places = list((tmp_path / "previous").iterdir()) if (tmp_path / "previous").exists() else []
    assert [files_below(place) for place in places] == [before]


def test_resume_from_an_archived_run_has_a_best_checkpoint_of_its_own(short: Run, table: Table, tmp_path: Path) -> None:
    archived = tmp_path / "previous" / "2026-01-01"
    for folder in (tmp_path, archived):
        shutil.copytree(short.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("previous"))
    still = (f"training.resume={archived / 'checkpoints' / 'last.ckpt'}", "training.lr=1e-12")  # nothing gets better
    run = train_here(table, tmp_path, "training.num_epochs=4", *still)
    assert checkpoint(run.best)["epoch"] == 2


@pytest.mark.parametrize(("holdout", "stages"), [(0, set()), (1, {"val"}), (2, {"val", "test"})])
def test_holdout_decides_what_is_evaluated(
    holdout: int, stages: set[str], short: Run, table: Table, tmp_path: Path
) -> None:
    run = short if holdout == 2 else train_here(table, tmp_path, TWO_EPOCHS, f"data.holdout={holdout}")
    content = metrics(run.folder)
    assert set(content["figures"]) == stages
    assert content["data"]["train_rows"] == 112 - 23 * holdout
    assert run.last.exists()
    assert run.best.exists() == (holdout > 0)
    scalars = EventAccumulator(str(run.folder / "logs"))
    scalars.Reload()
    names = {name for name in scalars.Tags()["scalars"] if name.startswith(("val_", "test_"))}
    assert names == (VALIDATION if "val" in stages else set()) | (TEST if "test" in stages else set())


def test_the_same_seed_gives_identical_weights_and_figures_and_another_does_not(
    short: Run, table: Table, tmp_path: Path
) -> None:
    one = short
    same, other = (train_here(table, tmp_path / f"{seed}", TWO_EPOCHS, f"seed={seed}") for seed in (42, 6))
    assert same_weights(one.last, same.last)
    assert same_weights(one.best, same.best)
    assert metrics(one.folder)["figures"] == metrics(same.folder)["figures"]
    assert curve(one.folder, "train_loss") == curve(same.folder, "train_loss")
    assert not same_weights(one.last, other.last)
    assert curve(one.folder, "train_loss") != curve(other.folder, "train_loss")


def test_the_report_shows_the_run_and_stands_in_the_closing_table(table: Table, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,title\n0012,Twelve & more\n", encoding="utf-8")
    titles = f"data.items_file={tmp_path / 'items.csv'}"
    run = train_here(table, tmp_path / "run", TWO_EPOCHS, "evaluation.report=true", titles)
    text = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"report      {run.folder / 'report.html'}" in run.out
    for alt in ("Training loss", "Validation, every item ranked", "Learning rate", "Training sequences per second"):
        assert f'aria-label="{alt}"' in text
    assert "Twelve &amp; more" in text
    assert "training.num_epochs" in text
    content = metrics(run.folder)
    assert content["command"].startswith("python train_bert4rec.py data.data_dir=")
    values = report_page.read_curves(run.folder / "logs")["val_ndcg@10"]
    by_step = {step + 1: value for step, value in zip(*values, strict=True)}
    best = content["figures"]["val"]["BERT4Rec (best.ckpt)"]["val_ndcg@10"]
    assert by_step[content["best_step"]] == pytest.approx(best, abs=1e-6)
    assert content["parameters"] > 0
    assert f"{metrics(run.folder)['figures']['test']['item-item']['test_mrr']:.4f}" in text
    nothing = train_here(table, tmp_path / "all", TWO_EPOCHS, "evaluation.report=true", "data.holdout=0")
    assert 'aria-label="Training loss"' in (nothing.folder / "report.html").read_text(encoding="utf-8")


def test_a_missing_items_file_is_found_before_training(table: Table, tmp_path: Path) -> None:
    outcome = call(train, *table.overrides, f"output_dir={tmp_path / 'run'}", *TINY, "data.items_file=no such.csv")
    assert outcome.code == 1
    assert outcome.err.startswith("error: there is no file no such.csv")
    assert not (tmp_path / "run").exists()


def test_logs_have_rates_throughput_settings_and_embeddings(table: Table, tmp_path: Path) -> None:
    run = train_here(table, tmp_path / "run", TWO_EPOCHS, "training.lr=0.03", BOTH_LOGGERS)
    assert [value for _, value in curve(run.folder, "lr-Adam")] == pytest.approx([0.03, 0.03])
    assert all(value > 0 for _, value in curve(run.folder, "sequences_per_second"))
    final = metrics(run.folder)["figures"]["test"]["BERT4Rec (best.ckpt)"]["test_mrr"]
    assert curve(run.folder, "final/test_mrr")[0][1] == pytest.approx(final)
    assert (run.folder / "logs" / "projector_config.pbtxt").is_file()
    lines = (run.folder / "logs" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"train_loss", "val_ndcg@10", "test_mrr", "sequences_per_second"} <= set(lines[0].split(","))
    silent = train_here(table, tmp_path / "silent", TWO_EPOCHS, "training.logger=[]", "evaluation.report=true")
    assert not (silent.folder / "logs").exists()
    assert "Training loss" not in (silent.folder / "report.html").read_text(encoding="utf-8")


def test_early_stopping_stops_after_the_patience_and_only_when_asked(table: Table, tmp_path: Path) -> None:
    still = ("training.num_epochs=5", "training.lr=1e-12")  # so small a step that no rank changes
    stopped = train_here(
        table, tmp_path / "stopped", *still, "training.early_stopping=true", "training.early_stopping_patience=2"
    )
    assert metrics(stopped.folder)["epochs"] == 3  # the first is the best, the next two are no better
    assert checkpoint(stopped.last)["epoch"] == 2
    assert checkpoint(stopped.best)["epoch"] == 0
    assert metrics(train_here(table, tmp_path / "whole", *still).folder)["epochs"] == 5


@pytest.mark.parametrize(
    ("interval", "steps"),
    [("1", [4, 8, 12]), ("2.0", [8]), ("0.5", list(range(2, 13, 2)))],
)
def test_val_check_interval_counts_epochs_or_parts_of_one(
    interval: str, steps: list[int], table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[int] = []
    original = BERT4Rec.on_validation_epoch_end

    def record(model: BERT4Rec) -> None:
        if model.trainer.state.fn == "fit":  # not the evaluation at the end
            validated.append(model.global_step)
        original(model)

    monkeypatch.setattr(BERT4Rec, "on_validation_epoch_end", record)
    settings = ("training.num_epochs=3", "data.batch_size=6", f"training.val_check_interval={interval}")
    run = train_here(table, tmp_path, *settings)
    assert validated == steps
    assert checkpoint(run.last)["global_step"] == 12


def test_an_interval_that_never_validates_is_refused_before_anything_moves(
    short: Run, table: Table, tmp_path: Path
) -> None:
    before = files_below(shutil.copytree(short.folder, tmp_path, dirs_exist_ok=True))
    settings = ("training.num_epochs=1", "training.val_check_interval=2")
    outcome = call(train, *table.overrides, f"output_dir={tmp_path}", *TINY, *settings)
    assert outcome.code == 1
    assert outcome.err.startswith("error: training.val_check_interval=2")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("least", [2, 3, 6])
def test_users_with_few_interactions_are_left_out_of_training(
    least: int, short: Run, table: Table, tmp_path: Path
) -> None:
    run = short if least == 3 else train_here(table, tmp_path, TWO_EPOCHS, f"data.min_interactions={least}")
    kept = {user: items for user, items in table.histories.items() if len(items) >= least}
    assert len(kept) == {2: 24, 3: 23, 6: 8}[least]
    vocabulary = checkpoint(run.last)["BERT4RecDataModule"]["vocabulary"]
    assert set(vocabulary["ids"]) == {item for items in kept.values() for item in items}
    assert LONELY_ITEM not in vocabulary["ids"]
    evaluated = [items for items in kept.values() if len(items) > 2]
    assert sum(vocabulary["counts"]) == sum(map(len, kept.values())) - 2 * len(evaluated)
    assert metrics(run.folder)["data"]["short_users"] == 25 - len(kept)
    assert metrics(run.folder)["data"]["evaluated_users"] == len(evaluated)
    assert f"{25 - len(kept)} users with fewer than data.min_interactions={least}" in run.out


def test_a_table_without_times_is_taken_in_its_order(table: Table, tmp_path: Path) -> None:
    by_time = sorted(table.rows, key=lambda row: row[2])
    lines = [f'"{user}","{item}"' for user, item, _ in ((u, i.replace('"', '""'), t) for u, i, t in by_time)]
    (tmp_path / "plain.csv").write_text("\n".join(["user,item", *lines]) + "\n", encoding="utf-8")
    timed = write_table(tmp_path / "timed.csv", by_time)
    plain = Table(tmp_path / "plain.csv", by_time)
    with_times = train_here(timed, tmp_path / "timed", TWO_EPOCHS)
    without = train_here(plain, tmp_path / "plain", TWO_EPOCHS)
    assert same_weights(with_times.last, without.last)
    assert "no time column" in without.out
    assert "no time column" not in with_times.out


def test_repeated_targets_are_named_in_a_warning(table: Table, tmp_path: Path) -> None:
    user = REGULARS[0]
    first = table.histories[user][0]
    repeating = write_table(tmp_path / "again.csv", [*table.rows, (user, first, 9000)])
    run = train_here(repeating, tmp_path / "run", TWO_EPOCHS)
    assert "warning: 1 of 23 test items are repeats" in run.out
    assert "evaluation.filter_seen=false" in run.out
    ranked = train_here(repeating, tmp_path / "ranked", TWO_EPOCHS, "evaluation.filter_seen=false")
    assert "warning" not in ranked.out
    assert metrics(ranked.folder)["figures"] != metrics(run.folder)["figures"]


def test_the_proposed_evaluation_gives_the_figures_above_it(table: Table, tmp_path: Path) -> None:
    settings = ("evaluation.filter_seen=false", "evaluation.protocols=[full,popularity-100]", "seed=7", TWO_EPOCHS)
    run = train_here(table, tmp_path / "run", *settings)
    [line] = [line for line in run.out.splitlines() if line.startswith("  evaluate")]
    words = overrides_of(line)
    assert f"inference.checkpoint_path={run.best}" in words
    assert call(predict, *words, "training.accelerator=cpu", "evaluation.report=false").code == 0
    again = json.loads((run.folder / "evaluation.json").read_text())
    name = "BERT4Rec (best.ckpt)"
    there = metrics(run.folder)
    assert again["figures"]["test"][name] == pytest.approx(there["figures"]["test"][name], abs=1e-12)
    sampled = there["sampled_figures"]["test"]["popularity-100"][name]
    assert again["sampled_figures"]["test"]["popularity-100"][name] == pytest.approx(sampled, abs=1e-12)


def test_longer_is_longer_after_a_run_that_max_steps_ended(table: Table, tmp_path: Path) -> None:
    """23 users in batches of 6 are 4 steps an epoch: 6 steps are one and a half."""
    settings = ("data.batch_size=6", "training.num_epochs=5", "training.max_steps=6")
    run = train_here(table, tmp_path / "run", *settings)
    assert "trained 1 epochs, 6 steps, in" in run.out
    assert set(metrics(run.folder)["figures"]) == {"val", "test"}
    [line] = [line for line in run.out.splitlines() if line.startswith("  longer")]
    outcome = call(train, *overrides_of(line))
    assert (outcome.code, outcome.err) == (0, "")
    assert metrics(run.folder)["steps"] == 12


def test_on_all_data_takes_as_many_steps_as_the_best_checkpoint_had(table: Table, tmp_path: Path) -> None:
    settings = ("data.batch_size=6", "training.num_epochs=2", "training.early_stopping=true")
    run = train_here(table, tmp_path / "run", *settings)
    [line] = [line for line in run.out.splitlines() if line.startswith("  on all data")]
    outcome = call(train, *overrides_of(line))
    assert (outcome.code, outcome.err) == (0, "")
    there, here = metrics(run.folder), metrics(tmp_path / "run-all")
    assert here["steps"] == there["best_step"]
    counts = [
        sum(checkpoint(folder / "checkpoints" / "last.ckpt")["BERT4RecDataModule"]["vocabulary"]["counts"])
        for folder in (run.folder, tmp_path / "run-all")
    ]
    assert counts[1] - counts[0] == 2 * there["data"]["evaluated_users"]


def overrides_of(line: str) -> list[str]:
    """The overrides of a proposed command."""
    return [word for word in shlex.split(line) if "=" in word]


def test_a_compiled_step_trains_as_a_plain_one(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the part of torch.compile that reads the step; what a compiler makes of it takes minutes on a CPU."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    settings = (TWO_EPOCHS, "model.dropout_rate=0", "data.batch_size=10", "native=false")
    plain = train_here(table, tmp_path / "plain", *settings, "data.on_device=true")
    compiled = train_here(table, tmp_path / "compiled", *settings, "training.compile=true", "training.tf32=true")
    for name, weight in checkpoint(plain.last)["state_dict"].items():
        torch.testing.assert_close(checkpoint(compiled.last)["state_dict"][name], weight)
    assert torch.get_float32_matmul_precision() == "highest"
