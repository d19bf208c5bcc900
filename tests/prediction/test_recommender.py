"""Recommendations from Python: the lists of the model's own `predict`, in the ids of the table, from any thread."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src import Recommender
from src.batch import mask_token
from src.data.vocabulary import Vocabulary
from src.errors import UserError
from src.models import BERT4Rec
from tests.models.test_bert4rec import ITEMS, MAX_LEN, make_model

IDS = ["0012", "12", "film,3", 'the "best"', "été", *(f"item {n}" for n in range(ITEMS - 5))]
COUNTS = np.array([3, 9, 1, 9, 4, 2, 7, 7, 0, 5, 6, 8, 11])
POPULAR = ["item 7", "12", 'the "best"', "item 6", "item 1", "item 2"]


def make_recommender() -> tuple[Recommender, BERT4Rec]:
    model = make_model(seed=3).eval()
    return Recommender(model.network, Vocabulary(pa.array(IDS), COUNTS)), model


RECOMMENDER, MODEL = make_recommender()


def expected(history: list[str], topk: int, excluded: set[str]) -> list[str]:
    tokens = [IDS.index(item) + 1 for item in history]
    [best] = MODEL.predict([tokens], topk, [{IDS.index(item) + 1 for item in excluded}])
    return [IDS[token - 1] for token in best]


histories = st.lists(st.sampled_from(IDS), min_size=1, max_size=2 * MAX_LEN)


@settings(max_examples=25, deadline=None)
@given(st.lists(histories, min_size=1, max_size=6), st.integers(1, ITEMS + 3))
def test_lists_are_those_of_the_model(many: list[list[str]], topk: int) -> None:
    assert RECOMMENDER.recommend(many, topk) == [expected(history, topk, set(history)) for history in many]
    with_seen = RECOMMENDER.recommend(many, topk, exclude_seen=False)
    assert with_seen == [expected(history, topk, set()) for history in many]


@settings(max_examples=25, deadline=None)
@given(histories, st.sets(st.sampled_from(IDS), min_size=1), st.sets(st.sampled_from(IDS)))
def test_allow_and_block_lists(history: list[str], allowed: set[str], blocked: set[str]) -> None:
    [got] = RECOMMENDER.recommend(
        [history], ITEMS, candidates=[*allowed, "unheard of"], exclude=[*blocked, "nor of this"]
    )
    assert got == expected(history, ITEMS, (set(IDS) - allowed) | blocked | set(history))


def test_scores_are_the_logits() -> None:
    history = ["12", "été", "0012"]
    [row] = RECOMMENDER.recommend_with_scores([history], 4)
    tokens = torch.tensor([[*(IDS.index(item) + 1 for item in history), mask_token(ITEMS)]])
    with torch.no_grad():
        logits = MODEL(tokens)[0, -1]
    assert [score for _, score in row] == pytest.approx([logits[IDS.index(item) + 1].item() for item, _ in row])
    assert [score for _, score in row] == sorted((score for _, score in row), reverse=True)


@pytest.mark.parametrize("options", [{}, {"output_bias": True, "output_transform": True, "share_embeddings": False}])
def test_a_second_output_matrix_changes_no_list(options: dict[str, bool]) -> None:
    network = make_model(seed=5, **options).eval().network
    vocabulary = Vocabulary(pa.array(IDS), COUNTS)
    plain, for_few = Recommender(network, vocabulary), Recommender(network, vocabulary, for_few=True)
    assert for_few._networks[0].columns is not None
    for many in ([["12", "été"]], [[item] for item in IDS]):
        for got, expected in zip(for_few.recommend_with_scores(many), plain.recommend_with_scores(many), strict=True):
            assert [item for item, _ in got] == [item for item, _ in expected]
            assert [score for _, score in got] == pytest.approx([score for _, score in expected])


@pytest.mark.parametrize("name", ["output", "blocks.0.attention_norm"])
def test_what_is_fixed_is_no_layer_that_somebody_has_changed(name: str) -> None:
    model = make_model(seed=5).eval()
    model.network.get_submodule(name).register_forward_hook(lambda module, inputs, scores: -scores)
    vocabulary = Vocabulary(pa.array(IDS), COUNTS)
    lists = [Recommender(model.network, vocabulary, for_few=few).recommend([["12"]]) for few in (False, True)]
    assert lists[0] == lists[1]


def test_what_the_model_does_not_know_is_passed_over() -> None:
    assert RECOMMENDER.recommend([["12", "unheard of", "été"]]) == RECOMMENDER.recommend([["12", "été"]])


@pytest.mark.parametrize("history", [[], ["unheard of"]])
def test_without_a_known_item_the_most_popular_come(history: list[str]) -> None:
    assert RECOMMENDER.recommend([["12"], history], 6)[1] == POPULAR
    [row] = RECOMMENDER.recommend_with_scores([history], 3, exclude=["item 7"], candidates=POPULAR)
    assert [item for item, _ in row] == POPULAR[1:4]
    assert all(math.isnan(score) for _, score in row)


def test_numbers_are_ids_as_they_are_written() -> None:
    assert RECOMMENDER.recommend([[12, np.int64(12)]]) == RECOMMENDER.recommend([["12", "12"]])


def test_no_history_no_list() -> None:
    assert RECOMMENDER.recommend([]) == []


@pytest.mark.parametrize(
    ("histories", "options", "parts"),
    [
        (["12", "été"], {}, ["'12'", "list of histories"]),
        ([7], {}, ["7", "list of histories"]),
        ([["12"]], {"topk": 0}, ["topk=0", "at least 1"]),
        ([["12"]], {"candidates": ["unheard of"]}, ["none of the candidates"]),
    ],
)
def test_what_cannot_be_answered(histories: Any, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        RECOMMENDER.recommend(histories, **options)
    assert all(part in str(caught.value) for part in parts)


def test_threads_share_one() -> None:
    generator = np.random.default_rng(0)
    many = [[IDS[place] for place in generator.integers(0, ITEMS, 1 + n % 9)] for n in range(64)]
    alone = [RECOMMENDER.recommend([history], 5) for history in many]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda history: RECOMMENDER.recommend([history], 5), many * 3)) == alone * 3


def save(path: Path, model: BERT4Rec) -> None:
    content = {
        "state_dict": model.float().state_dict(),
        "hyper_parameters": dict(model.hparams),
        "BERT4RecDataModule": {"vocabulary": Vocabulary(pa.array(IDS), COUNTS).state_dict()},
    }
    torch.save(content, path)


def test_a_checkpoint_alone_is_enough(tmp_path: Path) -> None:
    model = make_model(seed=5).eval()
    save(tmp_path / "a.ckpt", model)
    recommender = Recommender.from_checkpoint(str(tmp_path / "a.ckpt"))
    assert recommender.items == tuple(IDS)
    assert recommender.max_len == MAX_LEN
    [best] = model.predict([[2, 5]], 5, [{2, 5}])
    assert recommender.recommend([[IDS[1], IDS[4]]], 5) == [[IDS[token - 1] for token in best]]


@pytest.mark.parametrize(("name", "content"), [("none.ckpt", None), ("text.ckpt", b"hello")])
def test_a_file_that_is_no_checkpoint(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        Recommender.from_checkpoint(tmp_path / name)


def test_a_service_needs_no_lightning_nor_compiler_and_the_package_no_torch(tmp_path: Path) -> None:
    """Importing them takes seconds, which a service that starts does not have."""
    save(tmp_path / "a.ckpt", make_model())
    code = (
        "import sys, src; light = 'torch' not in sys.modules;"
        f"r = src.Recommender.from_checkpoint({str(tmp_path / 'a.ckpt')!r}); r.recommend([['12']]);"
        "print(light, 'pytorch_lightning' in sys.modules, 'torch._dynamo.symbolic_convert' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["True", "False", "False"]
