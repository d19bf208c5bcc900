"""docs/notebook.ipynb: its cells run, on a smaller sample, and it holds nothing of another machine."""

import ast
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from src.data import sample

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
CONTENT = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in CONTENT["cells"] if cell["cell_type"] == "code"]


def test_it_is_a_notebook_without_outputs() -> None:
    assert (CONTENT["nbformat"], CONTENT["nbformat_minor"]) == (4, 5)
    assert {cell["cell_type"] for cell in CONTENT["cells"]} == {"markdown", "code"}
    assert len({cell["id"] for cell in CONTENT["cells"]}) == len(CONTENT["cells"])
    for cell in CONTENT["cells"]:
        assert "".join(cell["source"]).strip()
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
    assert [cell.count("%pip install") for cell in CELLS] == [1] + [0] * (len(CELLS) - 1)


def run(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does; the value of its last line, if that is an expression.

    The package is called `src` here, and what begins with % is not for Python.
    """
    lines = [line for line in cell.replace("from bert4rec", "from src").splitlines() if not line.startswith("%")]
    tree = ast.parse("\n".join(lines))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, NOTEBOOK.name, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)


def test_its_cells_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "USERS", 60)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = [run(cell, names) for cell in CELLS]
    assert names["package"] == ".."
    frame, metrics, lists, neighbours, [best] = (each for each in shown if each is not None)
    assert list(frame) == ["user", "item", "time"]
    assert metrics["test_ndcg@10"] > 0
    assert lists.shape == (5, 10)
    items = set(names["frame"]["item"])
    assert set(lists.to_numpy().ravel()) <= items
    assert not any(set(lists.loc[user]) & set(history) for user, history in names["histories"].items())
    assert neighbours["cosine"].is_monotonic_decreasing
    assert len(neighbours) == 5
    assert len(best) == 3
    assert isinstance(metrics, pd.Series)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
