"""How to install what only some settings need: the extras of `pyproject.toml`."""

import os
import shlex
import sys
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "bert4rec-lightning"


def how_to_install(extra: str) -> str:
    """The command for the packages of an extra, such as `pip install -e '.[sweep]'`.

    An installed package has no folder to name, and is in no registry: its command names the packages.
    """
    # The shell script has a Python of its own, which is not what `pip` belongs to.
    pip = f"{shlex.quote(sys.executable)} -m pip" if "RUN_BERT4REC" in os.environ else "pip"
    if (Path(__file__).resolve().parent.parent / "pyproject.toml").exists():
        return f"{pip} install -e '.[{extra}]'"
    return f"{pip} install {shlex.join(packages(extra))}"


def packages(extra: str) -> list[str]:
    """The requirements of an extra of the installed package, such as `optuna>=4.0`."""
    entries = (entry.partition(";") for entry in metadata.requires(DISTRIBUTION) or [])
    return [wanted.strip() for wanted, _, marker in entries if f'extra == "{extra}"' in marker.replace("'", '"')]
