"""Several checkpoints in `inference.checkpoint_path`: the mean of their scores, in tables, in figures, from Python."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from src import Recommender, ranking
from src.prediction.predict import predict
from tests.scripts.conftest import TINY, Outcome, Run, Table, call, train_here, write_table
from tests.scripts.test_errors import assert_one_line
from tests.scripts.test_predict_script import predict_here, read_csv

ALL = 100  # items in a list: every candidate
OTHERWISE_BUILT = ("model.max_len=3", "model.num_layers=2", "model.hidden_units=4", "training.num_epochs=2", "seed=1")


@pytest.fixture(scope="module")
def other(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model of the same items with a shorter memory and another network."""
    return train_here(table, tmp_path_factory.mktemp("other"), *OTHERWISE_BUILT, "training.lr=0.02")


def together(*paths: Path) -> str:
    return f"inference.checkpoint_path=[{','.join(map(str, paths))}]"


def test_scores_are_the_means_of_those_of_each(
    table: Table, trained: Run, other: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [other.last, trained.best, trained.last]
    histories = [items for user, items in table.histories.items() if user != "lonely"]
    expected: list[dict[str, float]] = [defaultdict(float) for _ in histories]
    for path in paths:
        for means, row in zip(
            expected, Recommender.from_checkpoint(path).recommend_with_scores(histories, ALL), strict=True
        ):
            for item, score in row:
                means[item] += score / len(paths)
    ensemble = Recommender.from_checkpoint(paths)
    assert ensemble.max_len == 6
    got = ensemble.recommend_with_scores(histories, ALL)
    assert [dict(row) for row in got] == [pytest.approx(means, abs=1e-5) for means in expected]
    assert all(row == sorted(row, key=lambda pair: -pair[1]) for row in got)

    monkeypatch.setattr(ranking, "rows_at_a_time", lambda tokens: 3)  # a batch in several chunks
    scored = ("inference.with_scores=true", f"inference.topk={ALL}", "inference.batch_size=10")
    outcome = predict_here(table, trained, tmp_path / "p.csv", together(*paths), *scored)
    assert f"model       {', '.join(map(str, paths))}, 17 items" in outcome.out
    lists: dict[str, dict[str, float]] = defaultdict(dict)
    for user, item, _, score in read_csv(tmp_path / "p.csv")[1:]:
        if user != "lonely":
            lists[user][item] = float(score)
    of_user = dict(zip((user for user in table.histories if user != "lonely"), expected, strict=True))
    assert lists == {user: pytest.approx(means, abs=1e-5) for user, means in of_user.items()}


def test_a_list_of_one_checkpoint_is_that_checkpoint(table: Table, trained: Run, tmp_path: Path) -> None:
    scored = "inference.with_scores=true"
    predict_here(table, trained, tmp_path / "list.csv", together(trained.best), scored)
    predict_here(table, trained, tmp_path / "plain.csv", f"inference.checkpoint_path={trained.best}", scored)
    assert (tmp_path / "list.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()


def test_an_ensemble_is_evaluated_as_one_model(table: Table, trained: Run, other: Run, tmp_path: Path) -> None:
    """Twice the same model is that model; two models have figures of their own."""
    figures = []
    for paths in ([trained.best], [trained.best, trained.best], [trained.best, other.last]):
        words = (together(*paths), "inference.evaluate=true", f"inference.output_path={tmp_path / 'e.json'}")
        outcome = call(predict, *table.overrides, f"output_dir={tmp_path}", *TINY, *words)
        assert (outcome.code, outcome.err) == (0, "")
        content = json.loads((tmp_path / "e.json").read_text())
        assert content["checkpoint"] == ", ".join(map(str, paths))
        figures.append(list(content["figures"]["test"].items())[-1])
    assert [name for name, _ in figures] == ["BERT4Rec (best.ckpt)", *["BERT4Rec (2 checkpoints)"] * 2]
    assert figures[0][1] == figures[1][1] != figures[2][1]


def refused(table: Table, folder: Path, *words: str) -> Outcome:
    return call(predict, *table.overrides, f"output_dir={folder}", *TINY, *words)


def test_models_of_other_items_are_one_line(table: Table, trained: Run, tmp_path: Path) -> None:
    smaller = train_here(
        write_table(tmp_path / "few.csv", [row for row in table.rows if row[1] != "item 1"]),
        tmp_path / "few",
        "training.num_epochs=1",
    )
    outcome = refused(table, tmp_path, together(trained.best, smaller.best))
    assert_one_line(
        outcome,
        str(trained.best),
        str(smaller.best),
        "do not have the same items, 17 and 16, 'item 1' is in one of them alone",
    )
    assert not (tmp_path / "predictions.csv").exists()


@pytest.mark.parametrize("job", ["export={}/m.onnx", "embeddings={}/v.csv", "user_vectors={}/v.csv", "similar={}/s"])
def test_what_takes_one_model_is_one_line(job: str, table: Table, trained: Run, tmp_path: Path) -> None:
    outcome = refused(table, tmp_path, together(trained.best, trained.last), f"inference.{job.format(tmp_path)}")
    assert_one_line(outcome, "it takes one model", "inference.checkpoint_path")


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("[]", "give the path of a checkpoint, or a list of them"),
        ("[a.ckpt,,b.ckpt]", "give the path of a checkpoint, or a list of them"),
        ("[{},{}x]", "there is no checkpoint {}x"),
    ],
)
def test_a_list_that_cannot_be_is_one_line(value: str, part: str, table: Table, trained: Run, tmp_path: Path) -> None:
    path = str(trained.best)
    outcome = refused(table, tmp_path, f"inference.checkpoint_path={value.replace('{}', path)}")
    assert_one_line(outcome, part.replace("{}", path))
