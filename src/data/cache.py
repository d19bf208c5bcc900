"""Arrays kept on the disk between runs, mapped into memory, so that all processes of a machine share one copy."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from ..atomic_files import part_of

VERSION = 3  # of what is stored and of how tables are read; another one is made anew
SMALLEST = 2**23  # bytes; a smaller table is read before its cache would be checked
META = "meta.json"

Kept = TypeVar("Kept")


def cached(
    kind: Callable[..., Kept],
    make: Callable[[], Kept],
    *,
    folder: Path | None,
    name: str,
    files: Sequence[Path],
    settings: dict[str, Any],
) -> Kept:
    """What `make` gives for these files and settings: from `folder` if it is there and they are as they were then.

    One process makes it while the others wait. A copy that is damaged, or of other files, is made anew; one that cannot
    be written, for want of room or of permission, is done without, and so is a folder that is None.

    Args:
        kind: a dataclass whose fields are arrays, columns of ids, and facts that JSON can hold.
    """
    if folder is None or sum(file.stat().st_size for file in files) < SMALLEST:
        return make()
    settings = {"version": VERSION, "files": [str(file.resolve()) for file in files], **settings}
    place = folder / f"{name}-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
    key = {"settings": settings, "stats": [[file.stat().st_size, file.stat().st_mtime_ns] for file in files]}
    lock = FileLock(f"{place}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        print(f"warning: no cache of the prepared data in {folder}: {error.strerror or error}")
        return make()
    try:
        content = _read(kind, place, key)
        if content is None:
            content = make()
            _write(place, key, content)
            content = _read(kind, place, key) or content
        return content
    finally:
        lock.release()


def _read(kind: Callable[..., Kept], place: Path, key: dict[str, Any]) -> Kept | None:
    """What is kept, or None if there is nothing, or something of another key, or something damaged."""
    try:
        meta = json.loads((place / META).read_text())
        files = {place / name: checksum for name, checksum in meta["checksums"].items()}
        if meta["key"] != key or any(_checksum(file) != checksum for file, checksum in files.items()):
            return None
        columns = {file.stem: _read_column(file) for file in files}
        facts = {name: tuple(fact) if isinstance(fact, list) else fact for name, fact in meta["facts"].items()}
        return kind(**columns, **facts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException):
        return None


def _write(place: Path, key: dict[str, Any], content: Any) -> None:
    part = part_of(place)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    facts = {}
    try:
        for name, value in vars(content).items():
            if isinstance(value, np.ndarray):
                np.save(part / f"{name}.npy", value)
            elif isinstance(value, pa.Array):
                table = pa.table({"id": value})
                with (
                    pa.OSFile(str(part / f"{name}.arrow"), "wb") as file,
                    pa.ipc.new_file(file, table.schema) as writer,
                ):
                    writer.write_table(table)
            else:
                facts[name] = value
        checksums = {file.name: _checksum(file) for file in sorted(part.iterdir())}
        (part / META).write_text(json.dumps({"key": key, "checksums": checksums, "facts": facts}))
        shutil.rmtree(place, ignore_errors=True)  # whoever has it mapped keeps it
        os.replace(part, place)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        print(f"warning: no cache of the prepared data in {place.parent}: {error.strerror or error}")


def _read_column(path: Path) -> NDArray[Any] | pa.StringArray:
    if path.suffix == ".npy":
        return np.asarray(np.load(path, mmap_mode="r"))
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["id"]
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _checksum(path: Path) -> int:
    with pa.memory_map(str(path)) as file:
        return zlib.crc32(file.read_buffer())
