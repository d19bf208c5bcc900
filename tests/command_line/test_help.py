"""`--help`: every setting, from the one place where it stands, and no torch on the way."""

import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from src.command_line import help
from src.command_line.cli import CONFIGS
from src.settings import known_keys, parse
from src.settings.keys import ALIASES, rules
from tests.scripts.conftest import ROOT, launch
from tests.settings.test_config import default, flat


@pytest.mark.parametrize("script", ["train_bert4rec.py", "predict_bert4rec.py"])
def test_every_setting_preset_and_sweep_is_there(script: str, tmp_path: Path) -> None:
    outcome = launch(script, "--help", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    for key in known_keys():
        assert any(line.startswith(f"  {key}=") for line in lines), key
    for group in ("experiment", "sweep"):
        for path in (CONFIGS / group).rglob("*.yaml"):
            name = path.relative_to(CONFIGS / group).with_suffix("").as_posix()
            assert any(line.split()[:1] == [name] for line in lines), name
    assert f"usage: {sys.executable} {ROOT / script} [KEY=VALUE ...]" in lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "purpose"),
    [
        (b"", ""),
        (b"training:\n  lr: 1\n", ""),
        (b"# @package _global_\n", ""),
        (b"#\n# My own: and more\n", "My own"),
        (b"# \xff\xfe\n\x00", "\ufffd\ufffd"),
        (b"a: [1\n", ""),
        (None, "cannot be read"),
    ],
)
def test_a_preset_of_the_users_own_may_hold_anything(
    content: bytes | None, purpose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(help, "CONFIGS", tmp_path / "configs")
    mine = tmp_path / "configs" / "experiment" / "of mine" / "first.yaml"
    mine.parent.mkdir()
    mine.mkdir() if content is None else mine.write_bytes(content)
    assert help.presets("experiment")["of mine/first"].startswith(purpose)
    assert "of mine/first" in help.text("train_bert4rec.py", "")
    shutil.rmtree(tmp_path / "configs" / "sweep")
    assert "Sweeps" in help.text("train_bert4rec.py", "")


def test_it_is_called_as_the_user_did(tmp_path: Path) -> None:
    assert "  ./run_bert4rec.sh train experiment=sample\n" in help.text(
        "train_bert4rec.py", "", call="./run_bert4rec.sh train"
    )


def test_it_needs_neither_torch_nor_lightning_nor_pandas() -> None:
    code = (
        "import sys; sys.argv = ['train_bert4rec.py', '-h'];"
        "from src.training import train as train_bert4rec; train_bert4rec.cli.run(train_bert4rec.train);"
        "print({'torch', 'pytorch_lightning', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"


def test_defaults_are_those_of_the_configuration() -> None:
    written = {setting.key: setting.default for setting in help.settings()}
    values = flat(asdict(parse(default())))
    assert values.keys() == written.keys()
    for key, value in values.items():
        said = written[key]
        if isinstance(value, bool) or value is None:
            assert said == {True: "true", False: "false", None: "null"}[value], key
        elif isinstance(value, int | float):
            assert float(said) == value, key


def test_the_comments_of_the_yaml_are_the_meanings_of_the_schema() -> None:
    comments, sections = {}, []
    for line in (CONFIGS / "bert4rec.yaml").read_text().splitlines():
        entry = re.match(r"( *)(\w+):(?: +[^#].*?)? *(?: # (.*))?$", line)
        if entry is not None:
            sections = [*sections[: len(entry[1]) // 2], entry[2]]
            comments[".".join(sections)] = entry[3]
    meanings = {key: rule.meaning for key, rule in rules().items()}
    assert {key: comments.get(key) for key in meanings} == meanings


def test_every_setting_has_a_meaning_and_what_it_admits() -> None:
    for setting in help.settings():
        assert len(setting.meaning) > 4, setting.key
        assert setting.admits, setting.key


@pytest.mark.parametrize(
    ("key", "admits"),
    [
        ("seed", "a whole number from 0 to 4294967295"),
        ("data.batch_size", "a whole number of at least 1"),
        ("data.data_dir", "a path"),
        ("data.window_stride", "a whole number of at least 1, or null"),
        ("model.dropout_rate", "a number from 0 up to, but not including, 1"),
        ("model.share_embeddings", "true or false"),
        ("training.optimizer", "choose from adam, adamw"),
        ("training.resume", "true, false, auto or a checkpoint path"),
        ("evaluation.topk", "whole numbers of at least 1, such as [5,10]"),
        ("inference.export", "the name of a file that ends in .onnx, or null"),
    ],
)
def test_ranges_are_the_words_of_the_schema(key: str, admits: str) -> None:
    assert {setting.key: setting.admits for setting in help.settings()}[key] == admits


def test_a_word_narrows_it(tmp_path: Path) -> None:
    shown = help.text("train_bert4rec.py", "", ["dropout"])
    assert "model.dropout_rate=0.3" in shown
    assert "data.batch_size" not in shown
    assert help.text("train_bert4rec.py", "", ["lr"]).startswith("  training.lr=0.0015\n")
    assert "already" not in help.text("train_bert4rec.py", "", ["lr"])
    assert help.text("train_bert4rec.py", "", ["zzz"]).startswith("no setting has zzz")


def test_aliases_lead_to_settings_that_exist() -> None:
    assert set(ALIASES.values()) <= {*known_keys(), "experiment"}
    assert not set(ALIASES) & {key.rpartition(".")[2] for key in known_keys()}
