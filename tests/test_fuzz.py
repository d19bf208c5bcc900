"""Whatever bytes and values come in: an answer or one clear line, never a traceback, never a hang, and no code runs."""

import copy
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.command_line import cli
from src.data.interactions import read_interactions
from src.errors import UserError
from src.runs import checkpoint
from src.settings import known_keys, parse
from src.training import resume
from src.training.train import train
from tests.scripts.conftest import ROOT, TINY, call, make_rows, train_here, write_table

SECONDS = 20  # that no single case may take
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, 10**30, -0.0, 0.5, 1e308, float("nan"), float("inf"),
    "", " ", "x", "é", "\n", "\x00", "x" * 5000, "../../etc/passwd", "/dev/null", "$(touch ran)", "`touch ran`",
    "; touch ran", "__import__('os').mkdir('ran')",
    "${seed}", "${oc.env:HOME}", "${nothing}", "${", "???", "null", "=1+1",
    [], [0], [1, "a"], [[]], [None], {}, {"a": 1}, {1: 2}, b"bytes",
]  # fmt: skip


@contextmanager
def time_limit() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        raise TimeoutError(f"a case took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(attempt: Callable[[], object]) -> bool:
    """Whether it ends in one line for the user; anything else that is raised fails the test."""
    message = None
    with time_limit():
        try:
            attempt()
        except UserError as error:
            message = cli.one_line(error)
    assert message is None or (message and "\n" not in message)
    return message is not None


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Bytes with a few of them flipped, cut out, repeated, zeroed, or put in."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 5))):
        if not data:
            break
        start = generator.randrange(len(data))
        stop = min(len(data), start + generator.choice((1, 1, 2, 8, 100, 2000)))
        change = generator.randrange(6)
        if change == 0:
            data[start] ^= 1 << generator.randrange(8)
        elif change == 1:
            data[start:stop] = generator.randbytes(stop - start)
        elif change == 2:
            del data[start:stop]
        elif change == 3:
            data[start:start] = data[start:stop]
        elif change == 4:
            data[start:stop] = bytes(stop - start)
        else:
            del data[start:]
    return bytes(data)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in nested containers."""
    if path:
        yield path
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield from places(value, (*path, key))


def tampered(content: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """A checkpoint with one value gone, odd, or of another shape."""
    content = copy.deepcopy(content)
    *way, last = generator.choice(list(places(content)))
    container: Any = content
    for key in way:
        container = container[key]
    change = generator.randrange(4)
    if change == 0:
        del container[last]
    elif change == 1 and isinstance(container[last], torch.Tensor):
        shape = generator.choice([(), (0,), (1,), (3, 2), (1, 1, 1)])
        container[last] = torch.full(shape, generator.choice([0.0, float("nan"), 1e30]))
    elif change == 2 and isinstance(container[last], torch.Tensor):
        container[last] = container[last].to(generator.choice([torch.int64, torch.float16, torch.bool]))
    else:
        container[last] = copy.deepcopy(generator.choice(ODD))
    return content


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    table = write_table(folder / "ratings.csv", make_rows())
    return train_here(table, folder / "run", "training.num_epochs=1", "training.early_stopping=true").last


def fuzz_bytes(written: Path, tmp_path: Path, cases: int) -> int:
    generator, whole, path = random.Random(1), written.read_bytes(), tmp_path / "mutated.ckpt"

    def attempt() -> None:
        path.write_bytes(mutated(whole, generator))
        checkpoint.load(path)

    return sum(refused(attempt) for _ in range(cases))


def fuzz_contents(written: Path, tmp_path: Path, cases: int) -> int:
    generator, path = random.Random(2), tmp_path / "tampered.ckpt"
    whole = torch.load(written, weights_only=True)

    def attempt() -> None:
        torch.save(tampered(whole, generator), path)
        content = checkpoint.read(path)
        checkpoint.build(content, path)
        resume.require_state(content, path)

    return sum(refused(attempt) for _ in range(cases))


def fuzz_resumes(written: Path, tmp_path: Path, cases: int) -> int:
    """Training resumed from a checkpoint whose state of training is not what it was."""
    generator, path = random.Random(5), tmp_path / "state.ckpt"
    whole = torch.load(written, weights_only=True)
    heavy = {key: whole.pop(key) for key in ("state_dict", "hyper_parameters", "BERT4RecDataModule")}
    table = (f"data.data_dir={written.parents[2]}", "data.data_file=ratings.csv")

    def attempt() -> None:
        torch.save(tampered(whole, generator) | heavy, path)
        settings = (*table, *TINY, "training.num_epochs=2", "training.early_stopping=true")
        outcome = call(train, *settings, f"output_dir={tmp_path / 'resumed'}", f"training.resume={path}")
        assert (outcome.code, outcome.err.count("\n")) in ((0, 0), (1, 1)), outcome.err
        if outcome.code:
            raise UserError(outcome.err.strip())

    return sum(refused(attempt) for _ in range(cases))


def fuzz_settings(cases: int) -> int:
    generator = random.Random(3)
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        composed = hydra.compose("bert4rec")
    OmegaConf.set_struct(composed, False)

    def attempt() -> None:
        changed = copy.deepcopy(composed)
        try:
            for key in generator.sample(known_keys(), generator.choice((1, 1, 3))):
                OmegaConf.update(changed, key, copy.deepcopy(generator.choice(ODD)), merge=False)
        except OmegaConfBaseException as error:  # as Hydra would refuse it, and `cli.run` puts it in one line
            raise UserError(cli.one_line(error)) from error
        parse(changed)

    return sum(refused(attempt) for _ in range(cases))


def fuzz_tables(tmp_path: Path, cases: int) -> int:
    generator, path = random.Random(4), tmp_path / "mutated.csv"
    whole = write_table(path, make_rows()).path.read_bytes()

    def attempt() -> None:
        path.write_bytes(mutated(whole, generator))
        read_interactions(path)

    return sum(refused(attempt) for _ in range(cases))


def fuzz(written: Path, tmp_path: Path, cases: int) -> None:
    assert fuzz_bytes(written, tmp_path, cases) > cases // 2
    assert fuzz_contents(written, tmp_path, cases) > cases // 10
    assert fuzz_settings(cases) > cases // 10
    assert fuzz_tables(tmp_path, cases) > cases // 10
    assert fuzz_resumes(written, tmp_path, cases // 10) >= max(1, cases // 100)
    assert not Path("ran").exists()
    assert {path.suffix for path in tmp_path.iterdir()} <= {".ckpt", ".csv", ""}


def test_two_hundred_odd_inputs(written: Path, tmp_path: Path) -> None:
    fuzz(written, tmp_path, 50)


@pytest.mark.slow
def test_twelve_thousand_odd_inputs(written: Path, tmp_path: Path) -> None:
    fuzz(written, tmp_path, 3000)
