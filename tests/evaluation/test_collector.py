"""Ranks and lists of each user, however the users are dealt out to batches."""

import numpy as np
import torch

from src import ranking
from src.data.batching import EvaluationSet
from src.data.sequences import evaluation_spans
from src.evaluation.collector import Observer
from src.models import BERT4Rec
from tests.data import sequences_of

SCORES = torch.tensor(
    [
        [9.0, 0.5, 0.4, 0.3, 0.3, 0.1, 9.0],
        [9.0, 0.1, 0.2, 0.3, 0.4, 0.5, 9.0],
        [9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0],
    ]
)
TARGETS = torch.tensor([3, 2, 5])
NEGATIVES = {"uniform-100": np.array([[4, 1], [1, 5], [4, 0]]), "popularity-100": np.array([[5, 0], [5, 3], [0, 0]])}


def candidates() -> torch.Tensor:
    return ranking.candidate_scores(SCORES.clone(), torch.tensor([0, 1]), torch.tensor([2, 4]))


def observe(*batches: list[int]) -> Observer:
    observer = Observer(NEGATIVES, 3)
    for batch in batches:
        scores, targets = candidates()[batch], TARGETS[batch]
        observer.update(torch.tensor(batch), ranking.target_ranks(scores, targets), scores, targets)
    return observer


def test_ranks_and_lists_are_in_the_order_of_the_users() -> None:
    for observer in (observe([0, 1, 2]), observe([2, 0], [1])):
        outcomes = observer.compute()
        assert {name: ranks.tolist() for name, ranks in outcomes.ranks.items()} == {
            "full": [2, 2, 4],
            "uniform-100": [2, 1, 1],  # ties count against the target, an empty place does not
            "popularity-100": [0, 2, 0],
        }
        assert outcomes.lists[:2].tolist() in ([[1, 3, 4], [5, 3, 2]], [[1, 4, 3], [5, 3, 2]])
        assert outcomes.lists.shape == (3, 3)


def test_what_two_processes_gathered_adds_up_to_the_same() -> None:
    """Lightning joins the states of all processes; each has rows of its own."""
    one, two = observe([2]), observe([1, 0])
    joined = observe([0])
    for name in ("users", "ranks", "lists"):
        setattr(joined, name, [torch.cat(getattr(one, name)), torch.cat(getattr(two, name))])
    assert joined.compute().ranks["uniform-100"].tolist() == [2, 1, 1]


def test_it_goes_where_the_model_goes() -> None:
    """Else what a process without users has to join would stay behind on the CPU."""
    model = BERT4Rec(num_items=5, hidden_units=4, num_heads=2, num_layers=1, max_len=3)
    model.observer = Observer(NEGATIVES, 3)
    model.to("meta")
    assert {state[0].device.type for state in (model.observer.users, model.observer.ranks, model.observer.lists)} == {
        "meta"
    }
    assert not any("observer" in name for name in model.state_dict())


def test_an_excluded_target_is_unranked_among_its_negatives_too() -> None:
    scores = ranking.candidate_scores(SCORES[:1].clone(), torch.tensor([0]), torch.tensor([3]))
    negatives = torch.tensor([[1, 4]])
    assert ranking.sampled_ranks(scores, torch.tensor([3]), negatives).tolist() == [ranking.UNRANKED]
    assert ranking.sampled_ranks(scores, torch.tensor([5]), negatives).tolist() == [2]


def test_a_target_is_ranked_no_worse_among_negatives_than_among_all() -> None:
    generator = np.random.default_rng(2)
    histories = [generator.permutation(np.arange(1, 61))[:9].tolist() for _ in range(30)]
    sequences = sequences_of(histories)
    _, spans, targets = evaluation_spans(sequences, 1, 1)
    dataset = EvaluationSet(sequences.tokens, spans, 60, 5, True, targets)
    negatives = np.array([[item for item in range(1, 61) if item not in history][:20] for history in histories])
    observer = Observer({"uniform-100": negatives}, 5)
    batch = dataset[np.arange(30)]
    scores = torch.from_numpy(generator.normal(size=(len(batch.users), 62)))
    scores = ranking.candidate_scores(scores, batch.seen_rows, batch.seen_items)
    observer.update(batch.users, ranking.target_ranks(scores, batch.targets), scores, batch.targets)
    ranks = observer.compute().ranks
    assert (ranks["uniform-100"] <= ranks["full"]).all()
    assert (ranks["uniform-100"] <= 20).all()
    assert ranks["uniform-100"].min() == 0
