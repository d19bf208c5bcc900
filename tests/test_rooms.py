"""The layout: which room may import which, as their docstrings say, and that every room is in the wheel."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
# Single files that every room may import.
SHARED = {"errors", "batch", "ranking", "metrics", "atomic_files", "kept_memory", "compiled"}
ROOMS = {
    "settings": set(),
    "data": set(),
    "models": set(),
    "kernels": set(),
    "runs": {"settings", "models"},
    "sweep": {"settings", "runs"},
    "command_line": {"settings", "runs"},
    "evaluation": {"settings", "data", "models", "runs", "command_line"},
    "prediction": {"settings", "data", "models", "kernels", "runs", "command_line", "evaluation"},
    "service": {"settings", "runs", "prediction"},
    "training": {"settings", "data", "models", "kernels", "runs", "command_line", "evaluation", "sweep"},
}
# What single files may import beyond that: who -> which modules.
BESIDES = {
    "data.from_settings": {"settings", "runs.folder"},
    "models.bert4rec": {"kernels.door"},
    "kernels.door": {"models.losses", "models.network"},
    "kernels.encoder": {"models.dropout", "models.network"},
    "prediction.predict": {"service.server"},
    "runs.checkpoint": {"data.vocabulary"},
    "runs.devices": {"kernels.compiler"},
    "sweep.sweep": {"command_line.words", "evaluation.plots"},
    "command_line.cli": {"sweep.sweep"},
    "command_line.named_files": {"training.resume"},
    "prediction.recommender": {"training.from_frame"},
}


def modules() -> dict[str, Path]:
    """Dotted name below src -> file."""
    found = {}
    for path in SRC.rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a module imports anywhere, also within functions and for types alone."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            for alias in node.names:
                for target in (".".join(filter(None, [*base, alias.name])), ".".join(filter(None, base))):
                    if target in known:
                        found.add(target)
                        break
    return found - {name}


def test_every_import_is_one_that_its_room_allows() -> None:
    known = modules()
    wrong = []
    for name, path in known.items():
        room = name.partition(".")[0]
        for target in imports(name, path, known):
            other = target.partition(".")[0]
            if not name or other == room or other in SHARED:
                continue
            allowed = BESIDES.get(name, set())
            if not (other in ROOMS.get(room, set()) or target in allowed or other in allowed):
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_no_exception_is_left_that_nothing_needs() -> None:
    known = modules()
    for name, targets in BESIDES.items():
        found = imports(name, known[name], known)
        for target in targets:
            assert any(target in (each, each.partition(".")[0]) for each in found), (name, target)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_says_what_comes_in_what_goes_out_and_what_it_may_import(room: str) -> None:
    docstring = ast.get_docstring(ast.parse((SRC / room / "__init__.py").read_text(encoding="utf-8")))
    assert docstring
    assert [word for word in ("In: ", "Out: ", "May import: ") if word not in docstring] == []


def test_every_folder_is_a_room_and_in_the_wheel() -> None:
    folders = {path.parent.relative_to(SRC).as_posix() for path in SRC.rglob("*.py")}
    assert {folder.partition("/")[0] for folder in folders} - {"."} == set(ROOMS)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    expected = {"bert4rec" if folder == "." else f"bert4rec.{folder.replace('/', '.')}" for folder in folders}
    assert set(packages) == expected | {"bert4rec.configs"}


def test_no_file_is_too_long_to_read() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > 350} == {}
