"""A wrong path is found before anything slow is imported, and the nearest right one is named."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from src.command_line.named_files import require_for_prediction, require_for_training
from src.errors import UserError
from src.settings import Config
from tests.scripts.conftest import ROOT
from tests.settings.test_config import changed

Check = Callable[[Config], None]


def given(*words: str) -> Config:
    return changed(dict(word.split("=", 1) for word in words))


def refusal(check: Check, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        check(given(*words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("data/ml-100k.csv", "data/Ratings.csv", "data/notes.md", "parts/a.csv", "run/checkpoints/last.ckpt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("user,item\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("where", "file", "parts"),
    [
        ("data", "ml100k.csv", ["there is no file {}/data/ml100k.csv (did you mean {}/data/ml-100k.csv?)"]),
        ("data", "ML_100K.csv", ["did you mean {}/data/ml-100k.csv?"]),
        ("data", "ratings.csv", ["did you mean {}/data/Ratings.csv?"]),
        ("data", "other.csv", ["there is no file {}/data/other.csv ({}/data has Ratings.csv, ml-100k.csv)"]),
        ("dat", "ml-100k.csv", ["there is no folder {}/dat, so no file", "did you mean {}/data?"]),
        ("no/such", "x.csv", ["there is no folder {}/no, so no file {}/no/such/x.csv:"]),
        ("empty", ".", ["there is no file in the folder {}/empty"]),
        ("data", "*.tsv", ["there is no file {}/data/*.tsv"]),
        ("data/ml-100k.csv", "x", ["is a file: write data.data_dir={}/data data.data_file=ml-100k.csv"]),
    ],
)
@pytest.mark.parametrize("check", [require_for_training, require_for_prediction])
def test_a_table_that_is_not_there(check: Check, where: str, file: str, parts: list[str], folder: Path) -> None:
    words = (f"data.data_dir={folder}/{where}", f"data.data_file={file}", f"output_dir={folder}/run")
    message = refusal(check, *words)
    for part in parts:
        assert part.replace("{}", str(folder)) in message


@pytest.mark.parametrize(
    ("check", "word", "part"),
    [
        (require_for_training, "data.items_file={}/item.csv", "data.items_file=FILE"),
        (require_for_training, "training.resume={}/x.ckpt", "to resume from: start anew with training.resume=false"),
        (
            require_for_training,
            "training.init_from={}/run/checkpoints/lasst.ckpt",
            "training.init_from: there is no checkpoint {}/run/checkpoints/lasst.ckpt (did you mean {}/run/check",
        ),
        (
            require_for_prediction,
            "inference.checkpoint_path={}/x.ckpt",
            "there is no checkpoint {}/x.ckpt: train first",
        ),
        (
            require_for_prediction,
            "inference.checkpoint_path={}/run/checkpoints/lasst.ckpt",
            "did you mean {}/run/checkpoints/last.ckpt?",
        ),
        (require_for_prediction, "inference.users={}/u.txt", "inference.users: there is no file {}/u.txt"),
        (require_for_prediction, "inference.candidates={}/c.txt", "a table with the column item, or a .txt"),
        (require_for_prediction, "inference.exclude={}/e.txt", "inference.exclude: there is no file"),
        (require_for_prediction, "inference.similar={}/s.txt", "inference.similar: there is no file"),
        (require_for_prediction, "inference.history={}/h.csv", "inference.history: there is no file {}/h.csv"),
    ],
)
def test_any_other_file_that_is_not_there(check: Check, word: str, part: str, folder: Path) -> None:
    here = (f"data.data_dir={folder}/data", "data.data_file=ml-100k.csv", f"output_dir={folder}/run")
    check(given(*here))
    assert part.replace("{}", str(folder)) in refusal(check, *here, word.replace("{}", str(folder)))


def test_what_is_made_or_not_read_need_not_be_there(folder: Path) -> None:
    for words in (
        ("data.generate_sample=true",),
        ("data.download=ml-1m",),
        (f"data.data_dir={folder}/parts", "data.data_file=."),
        (f"data.data_dir={folder}/data", "data.data_file=*.csv"),
    ):
        require_for_training(given(*words))
    for word in ("inference.export=m.onnx", "inference.embeddings=i.csv"):
        words = (f"output_dir={folder}/run", word, "data.data_dir=/nope")
        require_for_prediction(given(*words))


@pytest.mark.parametrize(("script", "called"), [("train", ()), ("predict", ()), ("predict", ("RUN_BERT4REC",))])
def test_it_needs_neither_torch_nor_pandas_and_proposes_what_was_called(
    script: str, called: tuple[str, ...], tmp_path: Path
) -> None:
    code = (
        f"import sys; sys.argv = ['{script}_bert4rec.py', 'data.data_dir=nowhere'];"
        f"from src.{'training' if script == 'train' else 'prediction'} import {script} as script\n"
        "try:\n"
        f"    script.cli.run(script.{script})\n"
        "finally:\n"
        "    print({'torch', 'pytorch_lightning', 'pandas', 'pyarrow', 'bokeh'} & set(sys.modules))"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("RUN_BERT4REC", "HYDRA_FULL_ERROR")}
    environment |= {"PYTHONPATH": str(ROOT)} | dict.fromkeys(called, "./run_bert4rec.sh")
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stdout == "set()\n"
    assert ended.stderr.count("\n") == 1
    if script == "predict":
        proposed = "./run_bert4rec.sh train" if called else "python train_bert4rec.py"
        assert re.search(rf"there is no checkpoint .*: train first with {proposed} data.data_dir=nowhere", ended.stderr)
    assert list(tmp_path.iterdir()) == []
