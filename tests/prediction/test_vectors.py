"""Products of the vectors are the model's scores, whatever its output layer has; neighbours are by brute force."""

import numpy as np
import pytest
import torch
from torch import nn

from src.errors import UserError
from src.models.network import Architecture, Network
from src.prediction.similar_items import nearest_items
from src.prediction.vectors import item_vectors, user_vectors

SMALL = {"hidden_units": 8, "num_heads": 2, "num_layers": 2, "max_len": 6}


def network(num_items: int = 20, **parts: bool) -> Network:
    torch.manual_seed(1)
    made = Network(num_items, Architecture(**SMALL, **parts)).eval()  # type: ignore[arg-type]
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)  # biases too
    return made


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"output_bias": True},
        {"output_transform": True, "output_bias": True, "embedding_norm_first": True},
        {"share_embeddings": False, "output_bias": True},
    ],
    ids=lambda parts: "+".join(parts) or "plain",
)
@torch.inference_mode()
def test_products_of_vectors_are_the_scores_of_the_model(parts: dict[str, bool]) -> None:
    model = network(**parts)
    inputs = torch.tensor([[0, 0, 3, 7, 21], [5, 1, 20, 2, 21], [0, 0, 0, 4, 21]])
    items, users = item_vectors(model), user_vectors(model, inputs)
    assert items.shape == (20, 8 + parts.get("output_bias", False))
    torch.testing.assert_close(users @ items.T, model(inputs)[:, -1, 1:-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_narrowed", [False, True])
@torch.inference_mode()
def test_neighbours_are_those_of_brute_force(is_narrowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.ranking.LEAST_ROWS", 3)  # several chunks
    monkeypatch.setattr("src.ranking.SCORES_AT_A_TIME", 1)
    model = network(20, output_bias=True, share_embeddings=False)
    barred = torch.zeros(22, dtype=torch.bool)
    barred[2:5] = is_narrowed
    tokens = torch.tensor([20, 1, 3, 1, 9, 14, 2])
    chunks = list(nearest_items(model, tokens, 4, barred if is_narrowed else None))
    assert [rows for rows, *_ in chunks] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    found, cosines = (torch.cat(parts).numpy() for parts in list(zip(*chunks, strict=True))[1:])
    weight = model.output.weight.double().numpy()
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    for row, token in enumerate(tokens.tolist()):
        others = [item for item in range(1, 21) if item != token and not barred[item]]
        expected = sorted(others, key=lambda item: -(unit[token] @ unit[item]))[:4]
        assert found[row].tolist() == expected
        assert cosines[row] == pytest.approx(unit[expected] @ unit[token], abs=1e-6)


@torch.inference_mode()
def test_a_twin_is_not_nearer_than_an_angle_allows_and_few_candidates_give_few_neighbours() -> None:
    model = network(3)
    model.output.weight[1] = model.output.weight[3] * 3.7
    [(_, items, cosines)] = nearest_items(model, torch.tensor([1]), 10, None)
    assert items[0].tolist()[:2] == [3, 2]
    assert not items[0, 2:].any()
    assert 0.999999 < cosines[0, 0] <= 1.0


@torch.inference_mode()
def test_a_diverged_model_has_no_neighbours() -> None:
    model = network()
    model.output.weight[4] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        list(nearest_items(model, torch.tensor([1]), 10, None))
