"""What messages say of the program itself: how a script is called here, how an extra is installed, its version."""

import os
import re
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "bert4rec-lightning"


def version_of(distribution: str) -> str:
    """The version of an installed package, or "unknown"."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def start(name: str) -> str:
    """How the user called this program, for `name`, "train" or "predict": what a proposed command begins with."""
    if "RUN_BERT4REC" in os.environ:  # set by the shell script, whose Python need not be on the PATH
        called = os.environ["RUN_BERT4REC"]
        return f"{shlex.quote(called) if '/' in called else './run_bert4rec.sh'} {name}"
    script = Path(sys.argv[0])
    if re.fullmatch(r"bert4rec-(train|predict)(\.exe)?", script.name):
        other = f"bert4rec-{name}"
        return other if shutil.which(other) else shlex.quote(str(script.with_name(other)))
    if re.fullmatch(r"(train|predict)_bert4rec\.py", script.name) and sys.argv[0] in sys.orig_argv:
        before = sys.orig_argv[: sys.orig_argv.index(sys.argv[0])]
        return shlex.join([*before, str(script.with_name(f"{name}_bert4rec.py"))])
    return f"python {name}_bert4rec.py"


def how_to_install(extra: str) -> str:
    """The command for the packages of an extra, such as `pip install -e '.[sweep]'`.

    An installed package has no folder to name, and is in no registry: its command names the packages.
    """
    # The shell script has a Python of its own, which is not what `pip` belongs to.
    pip = f"{shlex.quote(sys.executable)} -m pip" if "RUN_BERT4REC" in os.environ else "pip"
    if (Path(__file__).resolve().parents[2] / "pyproject.toml").exists():
        return f"{pip} install -e '.[{extra}]'"
    return f"{pip} install {shlex.join(packages(extra))}"


def packages(extra: str) -> list[str]:
    """The requirements of an extra of the installed package, such as `optuna>=4.0`."""
    entries = (entry.partition(";") for entry in metadata.requires(DISTRIBUTION) or [])
    return [wanted.strip() for wanted, _, marker in entries if f'extra == "{extra}"' in marker.replace("'", '"')]
