"""Writing a file so that it is there whole or not at all."""

import contextlib
import os
from pathlib import Path

PART = ".part"  # what a file is called until it is whole


def part_of(path: Path) -> Path:
    """Where the content of `path` stands until it is whole: beside it, so that renaming it is a single step."""
    return path.with_name(path.name + PART)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file that, whatever happens meanwhile (a kill, a crash, a full disk), is either the old or the new one.

    Raises:
        OSError: if it cannot be written; what was there before is unharmed.
    """
    part = part_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power failure could leave the new name with none of the content
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
