"""Every word of a command line arrives as it was typed, or is refused in one line that names it."""

import os
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.command_line import cli, words
from src.errors import UserError
from src.runs import proposals
from src.settings import Config, known_keys, parse
from src.settings.keys import annotations
from tests.scripts.conftest import Outcome, call
from tests.settings.test_config import composed, flat

TEXTS = [key for key, kind in annotations().items() if kind in (str, str | None)]
UNIONS = [key for key, kind in annotations().items() if kind is Any]
PRINTABLE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=12)
ODD = st.text(st.sampled_from("\\'\"$ {}ab,()[]~=:#%|@&*?!;.-+1eé영<>^`/"), min_size=1, max_size=9)
RAW = re.compile(r"mismatched|extraneous|no viable|EOF|https?://|token recog|DataConfig|ListConfig|Traceback|of type")


def arrives(key: str, text: str, is_sweep: bool = False) -> Any:
    """The value of a setting given as `text`, after Hydra's grammar and OmegaConf's."""
    override = OverridesParser.create().parse_override(words.quote_text(f"{key}={text}", is_sweep))
    return OmegaConf.to_container(OmegaConf.create({"value": override.value()}), resolve=True)["value"]  # type: ignore


def is_plain(text: str) -> bool:
    """Whether it is none of the forms that mean something else: quotes around it all, ${...}, null, ???."""
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return not is_quoted and "${" not in text and text not in ("null", "???")


def test_text_settings_are_found_in_the_schema() -> None:
    assert {"data.delimiter", "data.encoding", "training.monitor_metric", "output_dir", "inference.users"} <= set(TEXTS)
    assert {"data.columns.user", "training.devices", "training.resume"} <= set(UNIONS)


@pytest.mark.parametrize("key", ["data.delimiter", "data.data_file"])
@given(text=(PRINTABLE | ODD).filter(is_plain))
@example(text=",")
@example(text=";")
@example(text="::")
@example(text="007")
@example(text="1e3")
@example(text="true")
@example(text="C:\\data\\")
@example(text="\\'")
@example(text="it's")
@example(text=" a b ")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_any_printable_text_arrives_unchanged(key: str, text: str) -> None:
    assert arrives(key, text) == text
    if "," not in text and not text.endswith(")"):
        assert arrives(key, text, is_sweep=True) == text


@given(text=(PRINTABLE | ODD).filter(is_plain))
@settings(max_examples=100, deadline=None)
def test_a_column_may_have_any_name_that_is_no_other_value(text: str) -> None:
    if not re.fullmatch(r"(?i:true|false)|(?i:null)|[+-]?\d+|\[[\s\d,+-]*\]", text):
        assert arrives("data.columns.user", text) == text


@given(text=ODD.map(lambda text: text + "${"))
@settings(max_examples=100, deadline=None)
def test_an_interpolation_that_is_none_is_text(text: str) -> None:
    if is_plain(text[:-2]) and text[-3:] != "\\${":  # the way to write a plain ${
        assert arrives("data.data_file", text) == text


GOT = [
    ("data.delimiter=null", "data.delimiter", None),
    ("data.delimiter=,", "data.delimiter", ","),
    ("data.delimiter=','", "data.delimiter", ","),
    ("data.delimiter='", "data.delimiter", "'"),
    ("data.delimiter=|", "data.delimiter", "|"),
    ("data.delimiter=\t", "data.delimiter", "\t"),
    ("data.delimiter=\\t", "data.delimiter", "\t"),
    ('data.delimiter="::"', "data.delimiter", "::"),
    ("++data.delimiter=,", "data.delimiter", ","),
    ("+data.delimiter=;", "data.delimiter", ";"),
    ("data.data_file=007", "data.data_file", "007"),
    ("data.data_file=run-${seed}.csv", "data.data_file", "run-42.csv"),
    ("data.data_file=\\${seed}", "data.data_file", "${seed}"),
    ("data.data_file=${seed", "data.data_file", "${seed"),
    ("data.columns.user=User ID", "data.columns.user", "User ID"),
    ("data.columns.user=user,id", "data.columns.user", "user,id"),
    ("data.columns.user='1'", "data.columns.user", "1"),
    ("data.columns.time=False", "data.columns.time", False),
    ("training.devices=[0,1]", "training.devices", [0, 1]),
    ("training.devices=2", "training.devices", 2),
    ("training.resume=true", "training.resume", True),
    ("training.resume=a=b, c/last.ckpt", "training.resume", "a=b, c/last.ckpt"),
    ("inference.users=ids of (all).txt", "inference.users", "ids of (all).txt"),
]


def test_what_the_program_gets() -> None:
    left = list(GOT)
    while left:  # one word of each key at a time
        together = {key: (word, value) for word, key, value in reversed(left)}
        left = [row for row in left if row[:1] != together[row[1]][:1]]
        values = flat(asdict(parse(composed(*(words.quote_text(word) for word, _ in together.values())))))
        assert {key: values[key] for key in together} == {key: value for key, (_, value) in together.items()}


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("training.optimizer=adam,adamw", ["adam", "adamw"]),
        ("data.data_file=a b.csv,~c.csv", ["a b.csv", "~c.csv"]),
        ("data.data_file='a,b.csv',c.csv", ["a,b.csv", "c.csv"]),
        ("data.data_file=choice(a.csv,b.csv)", ["a.csv", "b.csv"]),
        ("data.delimiter=,", [","]),
        ("data.data_dir=folder (1)", ["folder (1)"]),
        ("data.columns.time=false,when", [False, "when"]),
    ],
)
def test_in_a_sweep_commas_stand_between_values(word: str, values: list[object]) -> None:
    override = OverridesParser.create().parse_override(words.quote_text(word, is_sweep=True))
    if override.is_sweep_override():
        texts = list(override.sweep_string_iterator())
        key = word.partition("=")[0]
        assert [OverridesParser.create().parse_override(f"{key}={text}").value() for text in texts] == values
    else:
        assert [override.value()] == values


@given(text=(PRINTABLE | ODD).filter(is_plain))
@settings(max_examples=100, deadline=None)
def test_a_quoted_word_is_shown_as_it_was_typed(text: str) -> None:
    word = f"data.data_file={text}"
    assert words.unquoted(words.quote_text(word)) == word


def ran(*typed: str) -> Outcome:
    def task(config: Config) -> None:
        print("ran")

    return call(task, *typed)


def assert_runs_or_is_refused(*typed: str) -> None:
    outcome = ran(*typed)
    if outcome.code == 0:
        return
    assert outcome.code == 1, outcome
    assert outcome.err.startswith("error: "), outcome
    assert outcome.err.count("\n") == 1, outcome
    assert not RAW.search(outcome.err.replace(" ".join(typed), "")), outcome


KEYS = st.sampled_from(
    [*known_keys(), "data", "model", "experiment", "hydra", "hydra.mode", "learning_rate", "zzz", ""]
)
MARKS = st.sampled_from(["=", "=", "=", "", " =", "= ", "==", ".x=", ".0="])
VALUES = ODD | st.sampled_from(["", "null", "???", "${x}", "${seed}", "${", "[", "[1", "{a:1}", "1,2", "a,b", "1e999"])


@given(before=st.sampled_from(["", "", "", "+", "++", "~", "--", "-", "@"]), key=KEYS, mark=MARKS, value=VALUES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_malformed_word_ends_in_a_traceback_or_in_a_librarys_words(
    before: str, key: str, mark: str, value: str
) -> None:
    word = f"{before}{key}{mark}{value}"
    if not word.startswith(("--help", "-h")):
        assert_runs_or_is_refused(word)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("data=FILE", "data=FILE: data is a section of settings, not one: name a table with data.data_dir=FOLDER"),
        ("training.lr =0.1", "training.lr has a blank before the =: write training.lr=0.1"),
        ("'training.lr =0.1'", "'training.lr =0.1' has a blank before the =: write training.lr=0.1"),
        ("training.lr", "training.lr has no value: write training.lr=VALUE"),
        ("lr", "lr has no value: write training.lr=VALUE"),
        ("=0.1", "=0.1 has no name before the =: write KEY=VALUE without blanks"),
        ("sample", "sample is no setting: did you mean experiment=sample?"),
        ("train", "train is no setting: settings are given as KEY=VALUE, and --help shows them"),
        ("training.lr=fast", "training.lr=fast is not possible: give a number"),
        ("evaluation.topk=10", "evaluation.topk=10 is not possible: give a list, evaluation.topk=[10]"),
        ("evaluation.topk=[5", "evaluation.topk=[5 is not possible: give a list of whole numbers, such as [5,10]"),
        ("evaluation.topk=5,10", "or give one list, evaluation.topk=[5,10]"),
        ("training.lr=0.1,0.2", "training.lr=0.1,0.2 gives several values, which is a sweep: add -m to try them all"),
        ("~training.lr", "~training.lr: a setting cannot be removed"),
        ("training.lr=${x}", "training.lr=${x} takes the value of a setting that does not exist"),
        ("data.data_file=???", "data.data_file has no value: give text"),
        ("sweep=grid", "sweep=grid needs -m"),
        ("experiment=", "there is no experiment=: choose from auto"),
        ("hydra=1", "there is no setting hydra: --help lists every key"),
        ("@a=1", "there is no setting @a: --help lists every key"),
        ("--cfg=foo", "argument --cfg/-c: invalid choice: 'foo'"),
        ("--nope", "there is no option --nope"),
        ("-lr=3", "there is no option -lr: settings are given as KEY=VALUE, here training.lr=VALUE"),
        ("--config-dir=/nope", "/nope"),
        ("--resolve", "--resolve goes with --cfg job"),
        ("--shell-completion", "--shell-completion goes with install=bash"),
        ("--experimental-rerun=x", "--experimental-rerun is not possible here"),
        ("-m hydra/launcher=foo seed=1,2", "there is no hydra/launcher=foo here"),
        ("seed=1 -m training.lr=0.1,", "training.lr=0.1, is not possible: give a number"),
    ],
)
def test_the_line_names_the_word_and_the_way_out(typed: str, line: str) -> None:
    outcome = ran(*shlex.split(typed))
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert line in outcome.err
    assert not RAW.search(outcome.err)


@pytest.mark.parametrize(
    "typed", ["experiment=null", "+experiment=small", "++training.lr=1", "training={lr: 1}", "--run"]
)
def test_other_ways_to_say_the_same_work(typed: str) -> None:
    assert ran(typed).code == 0


def test_options_may_stand_anywhere(tmp_path: Path) -> None:
    outcome = ran("seed=5", "--cfg", "job", "data.delimiter=,", "--package=data")
    assert (outcome.code, outcome.err) == (0, "")
    assert "delimiter: ','" in outcome.out


def test_version_is_that_of_this_package() -> None:
    outcome = ran("--version")
    assert outcome.code == 0
    assert re.match(r"bert4rec-lightning \S+: torch \S+, pytorch-lightning \S+, hydra-core", outcome.out)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"a: [1\nb: 2\n", ["mine.yaml line", "YAML"]),
        (b"\xff\xfe\x00a: 1\n", ["YAML"]),
        (b"training:\n  lr: 1\n", ["no setting experiment", "configs/experiment", "# @package _global_"]),
        (b"# @package _global_\ntraining:\n  lrr: 1\n", ["training.lrr", "did you mean training.lr?"]),
        (b"# @package _global_\n- a\n", ["mine.yaml"]),
    ],
)
def test_a_preset_of_the_users_own_that_is_broken(content: bytes, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
    outcome = ran(f"--config-dir={tmp_path}", "experiment=mine")
    assert outcome.code == 1, outcome
    assert outcome.err.count("\n") == 1, outcome
    for part in parts:
        assert part in outcome.err


@pytest.mark.parametrize(
    ("argv", "original", "environment", "expected"),
    [
        (["train_bert4rec.py"], ["python", "train_bert4rec.py"], {}, "python predict_bert4rec.py"),
        (["a b/train_bert4rec.py"], [".venv/bin/python", "-u", "a b/train_bert4rec.py"], {}, None),
        (["script.py"], ["pytest"], {}, "python predict_bert4rec.py"),
        (["x.py"], ["python", "x.py"], {"RUN_BERT4REC": "1"}, "./run_bert4rec.sh predict"),
        (["x.py"], ["python", "x.py"], {"RUN_BERT4REC": "../b/run_bert4rec.sh"}, "../b/run_bert4rec.sh predict"),
        (["/opt/bin/bert4rec-train"], ["python", "/opt/bin/bert4rec-train"], {}, "/opt/bin/bert4rec-predict"),
    ],
)
def test_proposed_commands_begin_as_the_user_did(
    argv: list[str], original: list[str], environment: dict[str, str], expected: str | None
) -> None:
    kept = {key: value for key, value in os.environ.items() if key != "RUN_BERT4REC"}
    with (
        mock.patch.dict(os.environ, kept | environment, clear=True),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "orig_argv", original),
    ):
        assert proposals.start("predict") == (expected or ".venv/bin/python -u 'a b/predict_bert4rec.py'")


def test_a_mistake_is_found_without_torch() -> None:
    with pytest.raises(UserError):
        words.check(words.read(["data=FILE"]))
    assert cli.version().startswith("bert4rec-lightning ")
