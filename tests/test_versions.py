"""The versions that the package admits, those that CI tests it with, and the lowest: three files that have to agree."""

import re
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

from tests.scripts.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRA = [Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra]
TOOLS = {"mypy", "ruff", "setuptools"}  # no test runs them at their lowest


def pinned(name: str) -> dict[str, Version]:
    """Distribution -> version, of a file of constraints."""
    lines = (ROOT / ".ci" / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(key): Version(version) for key, version in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lower_bounds() -> dict[str, Version]:
    requirements = [requirement for requirement in NEEDED + EXTRA if requirement.name != PROJECT["name"]]
    bounds = {}
    for requirement in requirements:
        [lowest] = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        bounds[canonical(requirement.name)] = lowest
    return bounds


def test_ci_has_a_version_of_everything_and_it_is_admitted() -> None:
    tested = pinned("constraints.txt")
    for requirement in NEEDED + EXTRA:
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(tested[canonical(requirement.name)]), requirement


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    lowest = pinned("lowest.txt")
    bounds = lower_bounds()
    assert lowest.keys() == bounds.keys() - TOOLS
    for name, version in lowest.items():
        assert version.release[: len(bounds[name].release)] == bounds[name].release, name


def test_what_reaches_into_a_library_has_an_upper_bound() -> None:
    bounded = {r.name for r in NEEDED if any(part.operator in ("<", "<=", "~=") for part in r.specifier)}
    assert bounded == {"pytorch-lightning", "hydra-core"}
