"""Where figures come from: the time, the command, the version and the commit of the run that makes them."""

import subprocess
from datetime import datetime
from pathlib import Path

from .proposals import DISTRIBUTION, version_of

ROOT = Path(__file__).resolve().parents[2]


def describe(command: str) -> dict[str, str]:
    """What a report and its JSON say of their origin. Call it at the start: a checkout may change during a run.

    Args:
        command: as it was run.

    Returns:
        started, command, version and, in a git checkout of this project, commit: `1a2b3c4`, or `1a2b3c4 with changes`.
    """
    found = {"started": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z").strip(), "command": command}
    found["version"] = version_of(DISTRIBUTION)
    if commit := _commit():
        found["commit"] = commit
    return found


def _commit() -> str | None:
    if not (ROOT / ".git").exists():  # an installed package, whatever project its folder lies in
        return None
    try:
        commit = _git("rev-parse", "--short", "HEAD").strip()
        changes = _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no").strip()
        return f"{commit} with changes" if changes else commit
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout of somebody else's
        return None


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=5
    ).stdout
