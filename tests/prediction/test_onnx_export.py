"""The exported graph in onnxruntime gives the items that the model gives, whatever the batch and the length."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest

from src import Recommender
from src.data.vocabulary import Vocabulary
from src.errors import UserError
from src.models import BERT4Rec
from src.prediction.onnx_export import NextItems, write_onnx
from tests.models.test_bert4rec import make_model

ITEMS, MAX_LEN, TOPK = 13, 7, 5
IDS = ["0012", "12", "été", *(f"item {n}" for n in range(ITEMS - 3))]
VOCABULARY = Vocabulary(pa.array(IDS), np.arange(ITEMS))
MODEL: BERT4Rec = make_model(seed=4, output_transform=True, output_bias=True, embedding_norm_first=True).float().eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export for all tests here: it takes seconds."""
    folder = tmp_path_factory.mktemp("not there yet") / "served"
    assert write_onnx(MODEL.network, VOCABULARY, folder / "m.onnx", TOPK) == [folder / "m.onnx", folder / "m.json"]
    return folder


@pytest.fixture(scope="module")
def session(folder: Path) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(folder / "m.onnx", full_check=True)
    return onnxruntime.InferenceSession(folder / "m.onnx")


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 6), (2, 3), (5, 6), (17, 2)])
def test_items_and_scores_are_those_of_the_model(rows: int, length: int, session: onnxruntime.InferenceSession) -> None:
    generator = np.random.default_rng(rows)
    histories = generator.integers(1, ITEMS + 1, (rows, length))
    histories[np.arange(length) < generator.integers(0, length, rows)[:, None]] = 0  # padded on the left
    items, scores = session.run(None, {"histories": histories, "excluded": histories})
    known = [[IDS[token - 1] for token in row if token] for row in histories]
    wanted = Recommender(MODEL.network, VOCABULARY).recommend_with_scores(known, TOPK)
    assert [[IDS[token - 1] for token in row] for row in items] == [[item for item, _ in row] for row in wanted]
    np.testing.assert_allclose(scores, [[score for _, score in row] for row in wanted], rtol=1e-4, atol=1e-4)
    assert (items.dtype, scores.dtype) == (np.int64, np.float32)


def test_excluded_items_need_not_be_those_of_the_history(session: onnxruntime.InferenceSession) -> None:
    history = np.array([[3, 9]])
    free, _ = session.run(None, {"histories": history, "excluded": np.array([[0]])})
    assert free[0].tolist() == MODEL.predict([[3, 9]], TOPK)[0]
    blocked, _ = session.run(None, {"histories": history, "excluded": free[:, :2]})
    assert blocked[0].tolist() == MODEL.predict([[3, 9]], TOPK, [free[0, :2].tolist()])[0]


def test_fewer_candidates_than_places_end_in_zeros(session: onnxruntime.InferenceSession) -> None:
    items, scores = session.run(None, {"histories": np.array([[1]]), "excluded": np.arange(1, ITEMS - 1)[None]})
    assert sorted(items[0].tolist()[:2]) == [ITEMS - 1, ITEMS]
    assert items[0].tolist()[2:] == [0, 0, 0]
    assert np.isneginf(scores[0][2:]).all()


def test_what_a_caller_needs_to_know_stands_beside_it(folder: Path) -> None:
    content = json.loads((folder / "m.json").read_text(encoding="utf-8"))
    assert content == {"max_len": MAX_LEN, "topk": TOPK, "items": IDS, "most_popular": IDS[:-6:-1]}
    assert sorted(path.name for path in folder.iterdir()) == ["m.json", "m.onnx"]


def test_the_serving_example_of_the_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs onnxruntime and numpy alone, and gives what the recommender gives."""
    document = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text(encoding="utf-8")
    [example] = [part for part in re.findall(r"^```python\n(.*?)^```", document, re.S | re.M) if "onnxruntime" in part]
    assert len(example.splitlines()) <= 25
    imports = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import json", "import numpy as np", "import onnxruntime"]
    for end in ("onnx", "json"):
        shutil.copy(folder / f"m.{end}", folder.parent / f"model.{end}")
    monkeypatch.chdir(folder.parent)
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    for history in (["12"], ["été", "0012", "unheard of"], ["item 3"] * 9, []):
        assert [namespace["recommend"](history)] == Recommender(MODEL.network, VOCABULARY).recommend([history], TOPK)


def test_the_list_is_no_longer_than_the_catalogue() -> None:
    assert NextItems(MODEL.network, 100).topk == ITEMS


def test_without_its_library_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[export\]'"):
        write_onnx(MODEL.network, VOCABULARY, tmp_path / "m.onnx", TOPK)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_an_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_text("earlier")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        write_onnx(MODEL.network, VOCABULARY, tmp_path / "m.onnx", TOPK)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.onnx": "earlier"}
