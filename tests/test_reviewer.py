"""A reviewer's check: the ranks of a trained model, worked out again in plain numpy from the specification alone.

Nothing of the package takes part in the second computation but the weights and the list of ids in the checkpoint: the
CSV is read with `csv`, histories are lists, every sequence is padded to the full length on its own, the network is
written out in float64, and a rank is counted item by item.
"""

import csv
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from src import ranking
from src.models import BERT4Rec
from src.settings import parse
from src.training.build import build_data
from src.training.train import train

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MAX_LEN, HIDDEN, HEADS = 7, 12, 3

Floats = NDArray[np.float64]


# The data set ---------------------------------------------------------------------------------------------------------


def write_ratings(path: Path) -> None:
    """41 users with 3 to 16 interactions, two with fewer, 23 items; ties in time, repeats, rows in disorder."""
    generator = random.Random(11)
    items = [f"0{n}" if n % 4 == 0 else f"film, part {n}" for n in range(23)]
    rows = []
    for user in range(41):
        place = generator.randrange(23)
        for n in range(3 + user % 14):
            step = generator.choice((1, 1, 1, 5, 9))  # something to learn: most films have one successor
            place = (place + step) % 23
            rows.append((f"u{user:02d}", items[place], (n // 2) * 10))  # two by two at the same time
    rows += [("short", items[0], 1), ("short", items[5], 2), ("shorter", "known to nobody else", 3)]
    random.Random(12).shuffle(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("user", "item", "time"), *rows])


# The second computation -----------------------------------------------------------------------------------------------


def read_histories(path: Path) -> dict[str, list[str]]:
    """Users with at least 3 interactions in order of appearance, items by time, ties in the order of the file."""
    with path.open(newline="") as file:
        rows = [(row["user"], row["item"], int(row["time"])) for row in csv.DictReader(file)]
    histories: dict[str, list[tuple[int, str]]] = {}
    for user, item, time in rows:
        histories.setdefault(user, []).append((time, item))
    return {
        user: [item for _, item in sorted(pairs, key=lambda pair: pair[0])]
        for user, pairs in histories.items()
        if len(pairs) >= 3
    }


def layer_norm(x: Floats, weights: dict[str, Floats], name: str) -> Floats:
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Floats, weights: dict[str, Floats], name: str) -> Floats:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: Floats) -> Floats:
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def scores_of_next_item(
    weights: dict[str, Floats], output: str, num_layers: int, num_items: int, history: list[int]
) -> Floats:
    """[num_items + 2] scores for what follows `history`, with [MASK] appended and the last MAX_LEN tokens read."""
    tokens = [*history, num_items + 1][-MAX_LEN:]
    sequence = np.array([0] * (MAX_LEN - len(tokens)) + tokens)  # padded on the left
    x = weights["item_embedding.weight"][sequence] + weights["position_embedding.weight"]  # [L, D]
    x = layer_norm(x, weights, "embedding_norm")
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        query = linear(x, weights, f"{block}.attention.query")
        key, value = np.split(linear(x, weights, f"{block}.attention.key_value"), 2, axis=1)
        heads = []
        for columns in np.split(np.arange(HIDDEN), HEADS):
            logits = query[:, columns] @ key[:, columns].T / math.sqrt(HIDDEN / HEADS)  # [L, L]
            logits[:, sequence == 0] = -np.inf  # padding is seen by nobody
            likely = np.exp(logits - logits.max(axis=1, keepdims=True))
            heads.append(likely / likely.sum(axis=1, keepdims=True) @ value[:, columns])
        attended = linear(np.concatenate(heads, axis=1), weights, f"{block}.attention_output")
        x = layer_norm(x + attended, weights, f"{block}.attention_norm")
        inner = linear(gelu(linear(x, weights, f"{block}.ffn.0")), weights, f"{block}.ffn.3")
        x = layer_norm(x + inner, weights, f"{block}.ffn_norm")
    return weights[output] @ x[-1]


def rank_by_counting(scores: Floats, target: int, seen: set[int], num_items: int) -> tuple[int, float]:
    """0-based rank of the target among the candidates, ties against it, and the distance of the nearest other score.

    A target that was seen before is no candidate, so no list could ever have it.
    """
    if target in seen:
        return 2**31 - 1, math.inf
    others = [scores[item] for item in range(1, num_items + 1) if item not in seen and item != target]
    gap = min((abs(other - scores[target]) for other in others), default=math.inf)
    return sum(other >= scores[target] for other in others), float(gap)


def figures_of(ranks: list[int], stage: str) -> dict[str, float]:
    return {
        f"{stage}_hit@10": sum(rank < 10 for rank in ranks) / len(ranks),
        f"{stage}_ndcg@10": sum(1.0 / math.log2(rank + 2) for rank in ranks if rank < 10) / len(ranks),
        f"{stage}_mrr": sum(1.0 / (rank + 1) for rank in ranks) / len(ranks),
    }


# The comparison -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reviewed:
    """A trained model, its data, and for both stages what the package and what the reviewer says of each user."""

    metrics: dict[str, Any]
    histories: dict[str, list[str]]
    package_ranks: dict[str, list[int]]  # stage -> rank of each user, in the order of `histories`
    ranks: dict[str, list[int]]
    popularity_ranks: dict[str, list[int]]
    score_difference: float  # largest, over all users and candidates
    gap: float  # smallest distance between a target's score and another candidate's


@pytest.fixture(scope="module", params=["tied, seen filtered, two layers", "untied, all ranked, one layer"])
def reviewed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reviewed:
    tied = request.param.startswith("tied")
    num_layers = 2 if tied else 1
    folder = tmp_path_factory.mktemp("reviewed")
    write_ratings(folder / "ratings.csv")
    overrides = [
        f"data.data_dir={folder}",
        "data.data_file=ratings.csv",
        "data.batch_size=8",
        f"model.hidden_units={HIDDEN}",
        f"model.num_heads={HEADS}",
        f"model.num_layers={num_layers}",
        f"model.max_len={MAX_LEN}",
        f"model.share_embeddings={tied}",
        "training.num_epochs=8",
        "training.lr=0.02",
        "training.accelerator=cpu",
        f"evaluation.filter_seen={tied}",
        "evaluation.batch_size=9",
        "evaluation.report=false",
        f"output_dir={folder}/run",
    ]
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = parse(hydra.compose("bert4rec", overrides))
    train(config)
    path = folder / "run" / "checkpoints" / "best.ckpt"

    content = torch.load(path, weights_only=True)
    weights = {k.removeprefix("network."): v.numpy().astype(np.float64) for k, v in content["state_dict"].items()}
    output = "item_embedding.weight" if tied else "output.weight"
    ids = content["BERT4RecDataModule"]["vocabulary"]["ids"]
    token = {item: place + 1 for place, item in enumerate(ids)}
    histories = read_histories(folder / "ratings.csv")
    sequences = [[token[item] for item in items] for items in histories.values()]
    counts = np.bincount([item for items in sequences for item in items[:-2]], minlength=len(ids) + 2)

    data = build_data(config)
    data.setup()
    model = BERT4Rec.load_from_checkpoint(path, map_location="cpu").eval()
    package_ranks, ranks, popularity_ranks = {}, {}, {}
    gaps, differences = [], []
    for stage, from_end, loader in (("val", 2, data.val_dataloader()), ("test", 1, data.test_dataloader())):
        package_ranks[stage], ranks[stage], popularity_ranks[stage] = [-1] * len(sequences), [], []
        package_scores = np.zeros((len(sequences), len(ids) + 2))
        for batch in loader:
            with torch.inference_mode():
                scores = torch.cat([some.clone() for _, some in model.candidate_scores(batch)])
                batch_ranks = ranking.target_ranks(scores, batch.targets)
            package_scores[batch.users.numpy()] = scores.numpy()
            for user, rank in zip(batch.users.tolist(), batch_ranks.tolist(), strict=True):
                assert package_ranks[stage][user] == -1  # each user once
                package_ranks[stage][user] = rank
        for user, sequence in enumerate(sequences):
            history, target = sequence[:-from_end], sequence[-from_end]
            seen = set(history) if tied else set()
            own = scores_of_next_item(weights, output, num_layers, len(ids), history)
            rank, gap = rank_by_counting(own, target, seen, len(ids))
            ranks[stage].append(rank)
            gaps.append(gap)
            popularity_ranks[stage].append(rank_by_counting(counts, target, seen, len(ids))[0])
            is_candidate = [item not in seen for item in range(1, len(ids) + 1)]
            assert np.isneginf(package_scores[user, 1:-1]).tolist() == [not is_one for is_one in is_candidate]
            differences.append(np.abs(own - package_scores[user])[1:-1][is_candidate].max())
    return Reviewed(
        json.loads((folder / "run" / "metrics.json").read_text()),
        histories,
        package_ranks,
        ranks,
        popularity_ranks,
        float(max(differences)),
        min(gaps),
    )


def test_scores_are_further_apart_than_the_two_computations(reviewed: Reviewed) -> None:
    assert reviewed.score_difference < 1e-5
    assert reviewed.gap > 10.0 * reviewed.score_difference, "too close to tell: take another seed"


@pytest.mark.parametrize("stage", ["val", "test"])
def test_every_rank_agrees_exactly(stage: str, reviewed: Reviewed) -> None:
    assert len(reviewed.histories) == 41
    assert len(set(reviewed.ranks[stage])) > 9  # ranks worth comparing
    assert reviewed.package_ranks[stage] == reviewed.ranks[stage]


@pytest.mark.parametrize("stage", ["val", "test"])
def test_figures_in_metrics_json_agree(stage: str, reviewed: Reviewed) -> None:
    figures = reviewed.metrics["figures"][stage]
    assert figures["BERT4Rec (best.ckpt)"] == pytest.approx(figures_of(reviewed.ranks[stage], stage), abs=1e-6)
    assert figures["popularity"] == pytest.approx(figures_of(reviewed.popularity_ranks[stage], stage), abs=1e-6)


def test_the_data_has_what_makes_it_hard(reviewed: Reviewed) -> None:
    lengths = [len(items) for items in reviewed.histories.values()]
    assert (min(lengths), max(lengths)) == (3, 16)  # shorter and longer than the model's window
    assert any(len(set(items)) < len(items) for items in reviewed.histories.values())  # repeats
    assert {"short", "shorter"}.isdisjoint(reviewed.histories)
