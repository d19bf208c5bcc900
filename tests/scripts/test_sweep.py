"""Sweeps of the training script: a folder for each run, a closing with the best, runs that fail or fall behind."""

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from src.errors import StoppedError
from src.prediction.predict import predict
from src.settings import CONFIGS, Config
from src.sweep import seeds, sweep
from src.training.train import train
from tests.scripts.conftest import ROOT, TINY, Outcome, Table, call, compose, launch

FEW = ("training.num_epochs=2", "data.batch_size=16")


def sweep_here(table: Table, folder: Path, *overrides: str) -> Outcome:
    return call(train, "-m", *table.overrides, f"output_dir={folder}", *TINY, *FEW, *overrides)


def sweep_without_training(seen: list[Config], *words: str) -> Outcome:
    """A sweep whose runs note their settings, and are all as good."""

    def note(config: Config) -> float:
        seen.append(config)
        return 0.5

    return call(note, "-m", *words)


def figures(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def best_value(folder: Path) -> float:
    value = next(v for k, v in figures(folder)["figures"]["val"].items() if k.startswith("BERT4Rec"))["val_ndcg@10"]
    return float(value)


@pytest.fixture(scope="module")
def grid(table: Table, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("grid") / "my runs"
    outcome = sweep_here(table, folder, "training.lr=0.001,0.02", "training.warmup_steps=0,5")
    assert (outcome.code, outcome.err) == (0, "")
    return folder, outcome


def test_every_combination_has_a_run_in_a_folder_of_its_own(grid: tuple[Path, Outcome]) -> None:
    folder, _ = grid
    runs = [figures(folder / "sweep" / str(number))["settings"] for number in range(4)]
    assert [(run["training"]["lr"], run["training"]["warmup_steps"]) for run in runs] == [
        (0.001, 0),
        (0.001, 5),
        (0.02, 0),
        (0.02, 5),
    ]
    assert all((folder / "sweep" / str(n) / "checkpoints" / "best.ckpt").is_file() for n in range(4))
    assert {path.name for path in folder.iterdir()} == {".lock", "sweep"}


def test_the_closing_names_the_best_run_its_command_and_its_checkpoint(
    grid: tuple[Path, Outcome], table: Table, tmp_path: Path
) -> None:
    folder, outcome = grid
    values = {number: best_value(folder / "sweep" / str(number)) for number in range(4)}
    best = max(values, key=lambda number: values[number])
    closing = outcome.out[outcome.out.index("4 runs, best first") :].splitlines()
    assert closing[1].split() == ["run", "val_ndcg@10", "state", "seconds", "lr", "warmup_steps"]
    assert closing[2].split()[:3] == [str(best), f"{values[best]:.4f}", "done"]
    assert [row.split()[0] for row in closing[2:6]] == [str(n) for n in sorted(values, key=lambda n: -values[n])]
    said = {line.split("  ")[0]: line.partition("  ")[2].strip() for line in closing[6:] if "  " in line}
    assert said["checkpoint"] == str(folder / "sweep" / str(best) / "checkpoints" / "best.ckpt")
    assert "training.warmup_steps" in Path(said["plots"]).read_text()
    with Path(said["table"]).open(newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["run", *(row.split()[0] for row in closing[2:6])]

    words = shlex.split(said["best"])
    assert words[:2] == ["python", "train_bert4rec.py"]
    again = call(train, *words[2:], f"output_dir={tmp_path}")
    assert (again.code, again.err) == (0, "")
    assert best_value(tmp_path) == values[best]


def test_a_run_has_two_lines_and_the_rest_in_a_file(grid: tuple[Path, Outcome]) -> None:
    folder, outcome = grid
    lines = outcome.out[: outcome.out.index("4 runs, best first")].splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("run ")] == [
        f"run {n} ({n + 1} of 4)" for n in range(4)
    ]
    assert "training.lr=0.001" in lines[0]
    assert figures(folder / "sweep" / "1")["command"].endswith("training.lr=0.001 training.warmup_steps=5")
    for number in range(4):
        value = f"    val_ndcg@10 {best_value(folder / 'sweep' / str(number)):.4f}, "
        file = folder / "sweep" / str(number) / "output.txt"
        assert any(line.startswith(value) and line.endswith(str(file)) for line in lines)
        assert "test, every item ranked" in file.read_text()
    assert len([line for line in lines if line]) == 8


def test_several_seeds_close_with_mean_and_deviation(table: Table, tmp_path: Path) -> None:
    outcome = sweep_here(table, tmp_path, "seed=3,4", "training.max_steps=1")
    assert (outcome.code, outcome.err) == (0, "")
    one, other = (
        next(v for k, v in figures(tmp_path / "sweep" / str(n))["figures"]["test"].items() if k.startswith("BERT4Rec"))
        for n in range(2)
    )
    means = [f"{(one[k] + other[k]) / 2:.4f} ± {abs(one[k] - other[k]) / 2**0.5:.4f}" for k in one]
    lines = outcome.out.splitlines()
    start = lines.index("test, mean ± standard deviation over seeds")
    assert lines[start + 1].split() == ["seeds", "HIT@10", "NDCG@10", "MRR"]
    assert lines[start + 2].split() == ["2", *" ".join(means).split()]
    with (tmp_path / "sweep" / "seeds.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert float(row["hit@10_mean"]) == pytest.approx((one["test_hit@10"] + other["test_hit@10"]) / 2)


def test_seeds_of_each_setting_are_summed_up_by_themselves(tmp_path: Path) -> None:
    """By hand: .1, .2 and .6 have mean .3 and deviation .2646. Stopped runs and single ones do not count."""
    runs = [("1", 1, 0.1), ("1", 2, 0.2), ("2", 1, 0.5), ("1", 3, 0.6), ("2", 2, 0.9), ("3", 1, 0.7), ("2", 3, 0.1)]
    records = []
    for number, (layers, seed, hit) in enumerate(runs):
        (tmp_path / str(number)).mkdir()
        rows = {"popularity": {"val_hit@10": 0.9}, "BERT4Rec (best.ckpt)": {"val_hit@10": hit}}
        (tmp_path / str(number) / "metrics.json").write_text(json.dumps({"figures": {"val": rows}}))
        state = "stopped" if number == 6 else "done"
        records.append(sweep.Record(number, [f"model.num_layers={layers}", f"seed={seed}"], hit, state, 1.0))
    title, shown, _ = seeds.summarize(records, ["model.num_layers", "seed"], tmp_path)
    assert title == "validation, mean ± standard deviation over seeds"
    assert [line.split() for line in shown.splitlines()] == [
        ["num_layers", "seeds", "HIT@10"],
        ["1", "3", "0.3000", "±", "0.2646"],
        ["2", "2", "0.7000", "±", "0.2828"],
    ]
    assert (tmp_path / "seeds.csv").read_text().splitlines()[0] == (
        "model.num_layers,seeds,hit@10_mean,hit@10_deviation"
    )
    assert seeds.summarize(records[4:], ["model.num_layers", "seed"], tmp_path) == []
    assert seeds.summarize(records, ["model.num_layers"], tmp_path) == []


def test_an_earlier_sweep_makes_room(tmp_path: Path) -> None:
    sweep_without_training([], f"output_dir={tmp_path}", "training.lr=0.001,0.02")
    second = sweep_without_training([], f"output_dir={tmp_path}", "training.lr=0.003")
    [earlier] = (tmp_path / "previous").iterdir()
    assert f"the earlier sweep went to {earlier}" in second.out
    assert sorted(path.name for path in (earlier / "sweep").iterdir() if path.is_dir()) == ["0", "1"]
    assert [path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()] == ["0"]


def test_a_run_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    outcome = sweep_without_training([], f"output_dir={tmp_path}", "model.hidden_units=8", "model.num_heads=3,2")
    assert outcome.code == 0
    assert "error: model.hidden_units=8 is not possible" in outcome.err
    rows = outcome.out[outcome.out.index("2 runs, best first") :].splitlines()
    assert rows[2].split()[::2] == ["1", "done", "2"]
    assert [*rows[3].split()[:2], rows[3].split()[-1]] == ["0", "failed", "3"]


def test_a_run_for_which_the_memory_does_not_suffice_is_one_that_failed(tmp_path: Path) -> None:
    def run_if_small(config: Config) -> float:
        if config.model.num_layers == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return 0.5

    outcome = call(run_if_small, "-m", f"output_dir={tmp_path / 'run'}", "model.num_layers=2,1")
    assert outcome.code == 0
    assert "error: the memory does not suffice (DefaultCPUAllocator: " in outcome.err
    rows = outcome.out[outcome.out.index("2 runs, best first") :].splitlines()
    assert [row.split()[-1] for row in rows[2:4]] == ["1", "2"]
    assert rows[3].split()[1] == "failed"


@pytest.mark.parametrize(
    ("override", "part"),
    [("data.data_file=no.csv", "no.csv"), ("data.holdout=0", "data.holdout=0 leaves nothing to compare")],
)
def test_when_all_runs_fail_so_does_the_sweep(override: str, part: str, table: Table, tmp_path: Path) -> None:
    outcome = sweep_here(table, tmp_path, override, "training.lr=0.1,0.2")
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: all 2 runs of the sweep failed: ")
    assert part in last


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["output_dir=x/${hydra:job.num}", "training.lr=1,2"], ["give a plain folder", "sweep/NUMBER"]),
        (["sweep=random"], ["there is no sweep=random", "grid, search"]),
        (["sweep=search", "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials=0"]),
        (["hydra/sweeper=search", "training.lr=0.1"], ["nothing to search"]),
        (["training.lrr=1,2"], ["training.lrr", "training.lr?"]),
    ],
)
def test_a_sweep_that_cannot_be(words: list[str], parts: list[str], table: Table, tmp_path: Path) -> None:
    outcome = sweep_here(table, tmp_path, *words)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert all(part in outcome.err for part in parts)


def test_a_search_chooses_within_the_ranges_and_is_repeatable(tmp_path: Path) -> None:
    space = ("training.lr=tag(log,interval(0.001,0.02))", "model.num_layers=choice(1,2)", "model.dropout_rate=0.1")
    settings = ("hydra/sweeper=search", "hydra.sweeper.n_trials=3", "hydra.sweeper.prune=false", *space)
    runs: list[Config] = []
    outcomes = [sweep_without_training(runs, f"output_dir={tmp_path / name}", *settings) for name in "ab"]
    assert [(outcome.code, outcome.err) for outcome in outcomes] == [(0, ""), (0, "")]
    chosen = [(run.training.lr, run.model.num_layers) for run in runs]
    assert chosen[:3] == chosen[3:]
    assert len(set(chosen)) == 3
    assert all(0.001 <= lr <= 0.02 and layers in (1, 2) for lr, layers in chosen)
    assert {run.model.dropout_rate for run in runs} == {0.1}
    assert "3 runs, best first" in outcomes[0].out


def test_a_run_that_falls_behind_is_stopped(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run from the third on is told to be worse than any before."""
    monkeypatch.setattr("optuna.Trial.should_prune", lambda trial: trial.number >= 2)
    settings = ("hydra/sweeper=search", "hydra.sweeper.n_trials=3", "training.num_epochs=4", "seed=interval(1,99)")
    outcome = sweep_here(table, tmp_path, *settings)
    assert (outcome.code, outcome.err) == (0, "")
    assert [figures(tmp_path / "sweep" / str(n))["epochs"] for n in range(3)] == [4, 4, 1]
    records = sweep.read_records(tmp_path / "sweep")
    assert [record.state for record in records] == ["done", "done", "stopped"]
    study = sweep.open_study(tmp_path / "sweep")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert [len(trial.intermediate_values) for trial in study.trials] == [4, 4, 1]


def test_a_run_that_is_told_to_stop_ends_the_sweep(table: Table, tmp_path: Path) -> None:
    rates: list[float] = []

    def stops_at_the_second(config: Config) -> float:
        rates.append(config.training.lr)
        if len(rates) == 2:
            raise StoppedError("training was stopped at epoch 7", signal.SIGTERM)
        return 0.5

    words = ("-m", *table.overrides, f"output_dir={tmp_path}", "training.lr=0.001,0.01,0.02")
    outcome = call(stops_at_the_second, *words)
    assert (outcome.code, outcome.err) == (143, "error: training was stopped at epoch 7; the sweep ends with it\n")
    assert rates == [0.001, 0.01]


def test_prediction_does_not_sweep_and_leaves_the_sweep_of_the_training(table: Table, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    words = ("-m", *table.overrides, f"output_dir={tmp_path}", "inference.topk=1,2")
    outcome = call(predict, *words, can_sweep=False)
    assert (outcome.code, outcome.err) == (1, "error: -m is for training: this script runs once, for one checkpoint\n")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml")))
def test_sweeps_say_how_they_are_run_and_their_values_can_be(name: str) -> None:
    comments = [line for line in (CONFIGS / "sweep" / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(f"python train_bert4rec.py -m sweep={name} " in line for line in comments)
    assert compose(f"sweep={name}") == compose()


@pytest.mark.slow
def test_parallel_runs_in_processes_of_their_own(table: Table, tmp_path: Path) -> None:
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2", "hydra/sweeper=search")
    words = ("hydra.sweeper.n_trials=4", "training.lr=interval(0.001,0.02)", f"output_dir={tmp_path / 'run'}")
    outcome = launch("train_bert4rec.py", "-m", *table.overrides, *TINY, *FEW, *parallel, *words, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "4 runs, best first" in outcome.out
    study = sweep.open_study(tmp_path / "run" / "sweep")
    assert [len(trial.intermediate_values) for trial in study.trials] == [2, 2, 2, 2]


def test_an_import_leaves_the_search_path_of_modules_alone() -> None:
    code = "import sys; before = list(sys.path); import src.sweep.search; assert sys.path == before, sys.path"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_setting_names_a_class_of_a_package_that_has_two_names() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        assert not re.search(r"_target_: *\w", path.read_text(encoding="utf-8")), path
