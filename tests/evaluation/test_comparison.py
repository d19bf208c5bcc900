"""What a contest says about a model, put together from parts that are tested on their own."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from src.batch import EvalBatch
from src.data.batching import EvaluationSet
from src.data.sequences import evaluation_spans, training_spans
from src.evaluation.collector import observe
from src.evaluation.comparison import Contest, tables_of
from tests.data import sequences_of

ITEMS, USERS = 30, 24


@pytest.fixture(scope="module")
def contest() -> Contest:
    generator = np.random.default_rng(3)
    histories = [(generator.permutation(ITEMS)[: 3 + user % 6] + 1).tolist() for user in range(USERS)]
    sequences = sequences_of(histories)
    _, spans, targets = evaluation_spans(sequences, 1, 1)
    dataset = EvaluationSet(sequences.tokens, spans, ITEMS, 5, True, targets)
    training = training_spans(sequences, 1)
    counts = np.bincount(np.concatenate([history[:-1] for history in histories]), minlength=ITEMS + 1)[1:]
    ids = pa.array([f"u{user}" for user in range(USERS)])
    found = Contest(dataset, ids, counts, ["full", "uniform-100", "full"], seed=2, topk=[1, 5])
    found.add_baselines(training)

    def knows_half(batch: EvalBatch) -> torch.Tensor:
        scores = torch.rand(len(batch.users), ITEMS + 2, generator=torch.Generator().manual_seed(1))
        is_easy = batch.users % 2 == 0
        scores[is_easy, batch.targets[is_easy]] = 2.0
        return scores

    found.outcomes["model"] = observe(knows_half, dataset, found.observer())
    return found


def test_figures_are_named_by_protocol(contest: Contest) -> None:
    full = contest.figures("full", "test_")
    assert list(full) == ["popularity", "item-item", "model"]
    assert list(full["model"]) == ["test_hit@1", "test_ndcg@1", "test_hit@5", "test_ndcg@5", "test_mrr"]
    assert next(iter(contest.figures("uniform-100", "test_")["model"])) == "test_uniform-100_hit@1"
    assert full["model"]["test_hit@1"] >= 0.5
    assert full["popularity"]["test_hit@1"] < 0.3


def test_intervals_hold_the_figures_and_the_lead_is_that_of_the_model(contest: Contest) -> None:
    details = contest.details(resamples=500)
    assert list(details["intervals"]) == list(details["lead"]) == ["full", "uniform-100"]
    for protocol, by_name in details["intervals"].items():
        figures = contest.figures(protocol, "")
        for name, by_metric in by_name.items():
            for metric, (low, high) in by_metric.items():
                value = figures[name].get(metric, figures[name].get(f"{protocol}_{metric}"))
                assert 0.0 <= low <= value <= high <= 1.0
    assert list(details["lead"]["full"]) == ["popularity", "item-item"]
    low, high = details["lead"]["full"]["popularity"]["ndcg@5"]
    full = contest.figures("full", "")
    assert 0.0 < low < full["model"]["ndcg@5"] - full["popularity"]["ndcg@5"] < high


def test_no_resamples_no_intervals(contest: Contest) -> None:
    assert set(contest.details(resamples=0)) == {"users", "beyond_accuracy", "slices"}


def test_slices_add_up_to_the_whole(contest: Contest) -> None:
    details = contest.details(resamples=0)
    assert details["users"] == USERS
    whole = contest.figures("full", "")
    for by in ("history_length", "target_popularity"):
        groups = details["slices"][by]
        assert sum(group["users"] for group in groups) == USERS
        for name in whole:
            total = sum(group["users"] * group["figures"][name]["mrr"] for group in groups)
            assert total / USERS == pytest.approx(whole[name]["mrr"])
    assert [group["label"] for group in details["slices"]["history_length"]] == ["2 to 3", "4", "5", "6", "7"]


def test_beyond_accuracy_is_of_the_longest_list(contest: Contest) -> None:
    found = contest.details(resamples=0)["beyond_accuracy"]
    assert list(found) == ["popularity", "item-item", "model"]
    assert set(found["model"]) == {"coverage@5", "gini@5", "popularity@5", "popularity_lift@5"}
    assert found["popularity"]["popularity_lift@5"] > max(0.0, found["model"]["popularity_lift@5"])
    assert found["popularity"]["coverage@5"] < found["model"]["coverage@5"]


def test_tables_keep_sampled_figures_apart(contest: Contest) -> None:
    tables = tables_of({"test": contest}, 0)
    assert tables["figures"] == {"test": contest.figures("full", "test_")}
    assert tables["sampled_figures"] == {"test": {"uniform-100": contest.figures("uniform-100", "test_")}}


def test_too_few_items_to_draw_is_said(contest: Contest, capsys: pytest.CaptureFixture[str]) -> None:
    Contest(contest.evaluation_set, contest.user_ids, contest.counts, ["full", "popularity-100"], 1, [5])
    assert capsys.readouterr().out.startswith("warning: 24 of 24 users have fewer than 100 items left to draw for pop")
