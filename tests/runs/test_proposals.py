"""What a message proposes to install, in a checkout and where only the wheel is."""

import sys
from pathlib import Path

import pytest

from src.runs import proposals

REQUIREMENTS = [
    "torch>=2.7",
    'optuna>=4.0; extra == "sweep"',
    "hydra-joblib-launcher>=1.2 ; extra == 'sweep'",
    'onnx>=1.17; python_version >= "3.11" and extra == "export"',
]


def test_a_checkout_is_installed_anew_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUN_BERT4REC", raising=False)
    assert proposals.how_to_install("sweep") == "pip install -e '.[sweep]'"


def test_the_shell_script_has_a_python_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_BERT4REC", "1")
    assert proposals.how_to_install("sweep") == f"{sys.executable} -m pip install -e '.[sweep]'"


def test_an_installed_package_names_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RUN_BERT4REC", raising=False)
    monkeypatch.setattr(proposals, "__file__", str(tmp_path / "bert4rec" / "runs" / "proposals.py"))
    monkeypatch.setattr(proposals.metadata, "requires", lambda name: REQUIREMENTS)
    assert proposals.how_to_install("sweep") == "pip install 'optuna>=4.0' 'hydra-joblib-launcher>=1.2'"
    assert proposals.packages("export") == ["onnx>=1.17"]
    assert proposals.packages("mlflow") == []
