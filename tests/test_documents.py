"""Every command of README and docs works as it stands.

Each is checked to exist, with overrides that compose and fit the schema. Then those of our own scripts are run, for one
epoch of a tiny model, on tiny tables under the names that the documents use (`SMALL`, `FEW_RUNS` and `sandbox`): what
they do is as documented, what they cost is not. Commands that differ in numbers, tables and folders alone are run once
(`deed`). Installing, cloning, benchmarks and commands for several machines are not run, reports not written.
"""

import copy
import functools
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from src.batch import TrainBatch
from src.command_line import help
from src.command_line.words import quote_text
from src.data import sample
from src.prediction.predict import predict
from src.settings import known_keys, parse
from src.training.train import train
from tests.scripts.conftest import ROOT, Outcome, call, make_rows, write_table
from tests.settings.test_config import composed

GUIDE = ROOT / "docs" / "README_bert4rec.md"
# The guide last, whose commands others explain.
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")], key=lambda path: (path == GUIDE, path))
# What stands in these documents beside our own scripts; a new kind of command has to be looked at before it is listed.
OTHERS = ("git", "source", "pip", "awk", "head", "curl")
INSTALLED = ("bert4rec-train", "bert4rec-predict")
# They start our scripts on several machines, which a test does not have.
CLUSTER = ("torchrun", "srun")
SHELL = ("train", "predict", "both", "sample", "test")
SMALL = (
    "model.hidden_units=8",
    "model.num_heads=2",
    "model.num_layers=1",
    "model.max_len=6",
    "data.window_stride=null",
    "training.num_epochs=1",
    "training.max_steps=null",
    "training.val_check_interval=1",
    "training.accelerator=cpu",
    "training.devices=1",
    "training.num_nodes=1",
    "training.strategy=auto",
    "evaluation.bootstrap=20",
    "evaluation.report=false",
)
# Instead of the 4, 9 and 30 runs of the sweeps.
FEW_RUNS = {
    "model.num_layers=2,3": ("model.num_layers=1",),
    "sweep=grid": ("training.lr=0.001,0.003", "model.dropout_rate=0.1"),
    "sweep=search": ("hydra.sweeper.n_trials=2",),
}
# Any text is possible as their value.
FOLDERS = ("data.data_dir=", "data.data_file=", "output_dir=")


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(document: Path) -> list[str]:
    """Each line of the bash blocks that has a command; lines that end in a backslash joined."""
    lines = [line for block in blocks(document, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if shlex.split(line, comments=True)]


ALL = [(document.name, command) for document in DOCUMENTS for command in commands(document)]


def script_and_words(command: str) -> list[tuple[str, list[str]]]:
    """Which of the two scripts a command starts, each with its words; nothing for other commands."""
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "./run_bert4rec.sh":
        assert words[1] in SHELL, command
        preset = ["experiment=sample"] if words[1] == "sample" else []
        scripts = {"train": ["train"], "predict": ["predict"], "test": []}.get(words[1], ["train", "predict"])
        return [(script, [*preset, *words[2:]]) for script in scripts]
    if words[0] in CLUSTER:
        words = ["python", *words[next(n for n, word in enumerate(words) if word.endswith("_bert4rec.py")) :]]
    if words[0] in INSTALLED:
        return [(words[0].removeprefix("bert4rec-"), words[1:])]
    if words[:2] == ["python", "-m"]:
        importlib.import_module(words[2])  # it is there, and so is what it imports
        return []
    if words[0] == "python" and words[1] in ("train_bert4rec.py", "predict_bert4rec.py"):
        return [(words[1].partition("_")[0], words[2:])]
    assert words[0] in OTHERS, f"what is {command}?"
    return []


def runs(document: Path) -> bool:
    """Whether there is anything in a document to run."""
    return bool(blocks(document, "python")) or any(map(script_and_words, commands(document)))


def test_there_are_commands_to_test() -> None:
    assert len(ALL) > 40
    assert {name for name, _ in ALL} >= {"README.md", "README_bert4rec.md", "tour.md", "prediction.md"}
    assert len(MISTAKES) >= 4


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist_and_their_overrides_fit(document: Path) -> None:
    for command in commands(document):
        for script, words in script_and_words(command):
            if words[:1] == ["--help"]:
                assert not help.text(f"{script}_bert4rec.py", "", words[1:]).startswith("no setting")
                continue
            if any(word.startswith("--config-dir=") for word in words):  # a folder that only the sandbox has
                continue
            given = [word for word in words if "=" in word and not word.startswith(("hydra", "sweep=", *FOLDERS))]
            overrides = frozenset(first_value(quote_text(word, "-m" in words)) for word in given)
            if overrides not in fitting:
                assert_fits(overrides)
            fitting.add(overrides)


with_preset = functools.cache(composed)
fitting: set[frozenset[str]] = set()


def assert_fits(words: frozenset[str]) -> None:
    """See that settings with these words are possible, without composing all anew, which takes three times as long."""
    preset = {word for word in words if word.startswith("experiment=")}
    settings = copy.deepcopy(with_preset(*preset))
    for override in OverridesParser.create().parse_overrides(list(words - preset)):
        OmegaConf.update(settings, override.key_or_group, override.value())
    parse(settings)


def first_value(word: str) -> str:
    """The override itself, or of a sweep, one with its first value."""
    [override] = OverridesParser.create().parse_overrides([word])
    if not override.is_sweep_override():
        return word
    key = override.get_key_element()
    if not override.is_discrete_sweep():
        return f"{key}={override.value().start}"  # type: ignore[union-attr]
    return f"{key}={next(iter(override.sweep_string_iterator()))}"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data under every name that the documents use, and a trained model in each output folder."""
    folder = tmp_path_factory.mktemp("documents")
    table = write_table(folder / "FOLDER" / "FILE", make_rows())
    names = [
        "FOLDER/FILE.csv",
        "FILE",
        "new_users.csv",
        "data/train/train_ratings.csv",
        "data/train/new_users.csv",
        "ratings.csv",
        "data/ratings.csv",
    ]
    names += [f"FOLDER/{name}.csv" for name in ("train", "validation", "test")]
    names += [f"FOLDER/{name}.csv" for name in ("ml-1m", "ml-100k", "ml-20m", "steam", "beauty")]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(table.path, folder / name)
    for name, separator in (("ml-100k/u.data", "\t"), ("ml-1m/ratings.dat", "::")):
        (folder / name).parent.mkdir()
        rows = [(user.replace(",", ""), item.replace(",", ""), time) for user, item, time in table.rows]
        lines = [separator.join([user, item, "5", str(time)]) for user, item, time in rows if '"' not in item]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for block in (block for document in DOCUMENTS for kind in ("python", "yaml") for block in blocks(document, kind)):
        if named := re.match(r"(?:# @package _global_\n)?# (conf/\S+)\n", block):  # a file of the reader's own
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(block, encoding="utf-8")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))  # kernels
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sample, "USERS", 300)
    for words in (["data.data_dir=FOLDER", "data.data_file=FILE"], ["experiment=sample"]):
        assert run_small("train", words).code == 0
        done.add(deed("train", words))
    for output_dir in ("saved/ml-1m", "saved/ml-100k", "saved/beauty"):
        shutil.copytree("saved/bert4rec", output_dir)
    shutil.copy("saved/bert4rec/checkpoints/best.ckpt", "FOLDER/best.ckpt")
    yield folder
    monkeypatch.undo()


def run_small(script: str, words: list[str]) -> Outcome:
    """Run a command of the documents; a later word wins over an earlier one, except over the values of a sweep."""
    given = {word.partition("=")[0] for word in words if "," in word} if "-m" in words else set()
    small = [word for word in SMALL if word.partition("=")[0] not in given]
    for word in words:
        small += FEW_RUNS.get(word, ())
    if "--help" in words or "--cfg" in words:
        small = []
    if any(word.startswith("training.resume=") for word in words):
        small += ["training.num_epochs=3"]  # something is left to be done
    return call(train if script == "train" else predict, *words, *small)


# What has been done in the sandbox: the deed of every command, and every block.
done: set[tuple[str, ...]] = set()


def is_new(*what: str) -> bool:
    """Whether it has not been done yet; from now on it has."""
    known = what in done
    done.add(what)
    return not known


def deed(script: str, words: list[str]) -> tuple[str, ...]:
    """What a command does, on whatever table, in whatever folder, and with whatever numbers for `SMALL` to replace.

    A sweep and a prediction are the same with any preset.
    """
    ignored = (*FOLDERS, *(f"{word.partition('=')[0]}=" for word in SMALL if not word.startswith("model.")))
    ignored += ("experiment=",) if "-m" in words or script == "predict" else ()
    ignored += ("inference.",) if script == "train" else ()
    numbers = r"((model|training|inference|hydra)\.\S+|data\.(batch_size|window_stride))=[\d.]+"
    kept = [word for word in words if not word.startswith(ignored) and not re.fullmatch(numbers, word)]
    return script, *(re.sub(r"=saved/[\w/]+/", "=", word) for word in kept)


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if runs(d)], ids=lambda path: path.name)
def test_each_command_and_each_python_block_runs(
    document: Path, sandbox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands(document):
        if command.startswith(("awk ", "head ")):
            subprocess.run(["bash", "-c", command], check=True)
        ends = not command.startswith(CLUSTER) and "inference.serve=true" not in command  # a service does not
        for script, words in script_and_words(command) if ends else ():
            if "시각" in command:  # the folder of an earlier run, which by then is there
                earlier = min(Path("saved/bert4rec/previous").glob("*/checkpoints")).parent.name
                words = [word.replace("시각", earlier) for word in words]
            if is_new(*deed(script, words)):
                outcome = run_small(script, words)
                assert outcome.code == 0, (command, outcome.err)
    for number, block in enumerate(blocks(document, "python")):
        if not is_new(block) or ("import faiss" in block and find_spec("faiss") is None):
            continue
        path = sandbox / f"block{number}.py"
        small = '"training.num_epochs": 1, "evaluation.report": False'
        path.write_text(re.sub(r'"training.num_epochs": \d+', small, block), encoding="utf-8")
        runpy.run_path(str(path))


MISTAKES = [
    (document.name, command, line)
    for document in DOCUMENTS
    for command, line in re.findall(r"^\$ (.*)\n(error: .*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize(("document", "command", "line"), MISTAKES)
def test_a_mistake_gives_the_line_that_the_document_shows(document: str, command: str, line: str) -> None:
    [(script, words)] = script_and_words(command)
    outcome = call(train if script == "train" else predict, *words)
    assert (outcome.code, outcome.err) == (1, line + "\n")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_compile(document: Path) -> None:
    for block in blocks(document, "python"):
        compile(block, document.name, "exec")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def anchors(document: Path) -> set[str]:
    """What a link can name after #: the headings of a document, as GitHub and GitLab write them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_headings_lead_to_one(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text(encoding="utf-8")):
        assert anchor in anchors(document.parent / target if target else document), (target, anchor)


def test_links_of_the_korean_guide_lead_to_korean_or_are_marked_as_english() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)(\(영어\))?", text)
    assert len(links) > 30
    for target, mark in links:
        assert target.startswith("#") or mark, target
    for link in re.findall(r"https?://", text):
        assert text.count(f"]({link}") == text.count(link)  # none stands bare, without its mark


def rows_of(section: str) -> list[list[str]]:
    """Cells of the table rows of a section of the guide that begin with a key."""
    [text] = re.findall(rf"^## {section}\n(.*?)^## ", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip().removesuffix(" 등").strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_the_korean_guide_lists_every_setting_with_its_default() -> None:
    settings = yaml.safe_load((ROOT / "configs" / "bert4rec.yaml").read_text(encoding="utf-8"))
    defaults: dict[str, Any] = {}
    for key in known_keys():
        value: Any = settings
        for name in key.split("."):
            value = value[name]
        defaults["data.columns.user" if key.startswith("data.columns.") else key] = value  # a row for the four of them
    listed = {key: yaml.safe_load(default) for key, default, *_ in rows_of("설정 키") if key != "experiment"}
    assert listed == defaults
    ranges = [row for row in rows_of("프리셋과 권장 크기") if "." in row[0]]
    assert len(ranges) >= 8
    for key, *_, default in ranges:
        assert yaml.safe_load(default) == defaults[key], key


def test_the_file_tree_of_the_korean_guide_is_there() -> None:
    [tree] = re.findall(r"^## 파일 구성\n\n```\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    paths = [line.split()[0] for line in tree.splitlines()]
    assert len(paths) >= 10
    for path in paths:
        assert (ROOT / path).exists(), path
        assert (ROOT / path).is_dir() == path.endswith("/"), path


def test_the_loss_in_the_korean_guide_is_that_of_the_model() -> None:
    [block] = [block for block in blocks(GUIDE, "python") if "ignore_index=0" in block]
    names: dict[str, Any] = {}
    exec(compile(block, GUIDE.name, "exec"), names)
    model, inputs, labels = (names[name] for name in ("model", "inputs", "labels"))
    model.eval()
    expected = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten(), ignore_index=0)
    chosen = labels[0].nonzero()[:, 0]
    batch = TrainBatch(inputs, chosen, labels[0, chosen], None, 1)
    torch.testing.assert_close(model.loss(batch), expected)
    assert names["loss"].isfinite()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_a_document_names_exist(document: Path) -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"\b(test_\w+\.py)\b|`(test_\w+_\w+)`", document.read_text(encoding="utf-8"))
    for name in (file or function for file, function in named):
        assert name in files or any(f"def {name}(" in text for text in files.values()), name
