"""Arrays kept on the disk between runs, mapped into memory, so that all processes of a machine share one copy."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

VERSION = 3  # of what is stored and of how tables are read; another one is made anew
SMALLEST = 2**23  # bytes; a smaller table is read before its cache would be checked
META = "meta.json"


@dataclass(frozen=True)
class Content:
    """What is kept: arrays and columns of ids by name, and facts that JSON can hold."""

    arrays: dict[str, NDArray[Any]]
    ids: dict[str, pa.StringArray]
    facts: dict[str, Any] = field(default_factory=dict)


def cached(
    folder: Path | None, name: str, files: Sequence[Path], settings: dict[str, Any], make: Callable[[], Content]
) -> Content:
    """What `make` gives for these files and settings: from `folder` if it is there and they are as they were then.

    One process makes it while the others wait. A copy that is damaged, or of other files, is made anew; one that cannot
    be written, for want of room or of permission, is done without.

    Args:
        folder: None keeps nothing.
        name: of the entry, along with the settings.
    """
    if folder is None or sum(file.stat().st_size for file in files) < SMALLEST:
        return make()
    settings = json.loads(
        json.dumps({"version": VERSION, "files": [str(file.resolve()) for file in files], **settings})
    )
    place = folder / f"{name}-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"
    key = {"settings": settings, "stats": _stats(files)}
    lock = FileLock(f"{place}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        print(f"warning: no cache of the prepared data in {folder}: {error.strerror or error}")
        return make()
    try:
        content = _read(place, key)
        if content is None:
            content = make()
            _write(place, key, content)
            content = _read(place, key) or content
        return content
    finally:
        lock.release()


def _stats(files: Sequence[Path]) -> list[list[int]]:
    return [[file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _read(place: Path, key: dict[str, Any]) -> Content | None:
    """The content, or None if there is none, or one of another key, or a damaged one."""
    try:
        meta = json.loads((place / META).read_text())
        if meta["key"] != key or any(_checksum(place / file) != crc for file, crc in meta["checksums"].items()):
            return None
        arrays = {name: np.asarray(np.load(place / f"{name}.npy", mmap_mode="r")) for name in meta["arrays"]}
        ids = {name: _read_ids(place / f"{name}.arrow") for name in meta["ids"]}
        return Content(arrays, ids, meta["facts"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException):
        return None


def _write(place: Path, key: dict[str, Any], content: Content) -> None:
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for name, array in content.arrays.items():
            np.save(part / f"{name}.npy", array)
        for name, column in content.ids.items():
            table = pa.table({"id": column})
            with pa.OSFile(str(part / f"{name}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        meta = {
            "key": key,
            "checksums": {file.name: _checksum(file) for file in sorted(part.iterdir())},
            "arrays": list(content.arrays),
            "ids": list(content.ids),
            "facts": content.facts,
        }
        (part / META).write_text(json.dumps(meta))
        shutil.rmtree(place, ignore_errors=True)  # whoever has it mapped keeps it
        os.replace(part, place)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        print(f"warning: no cache of the prepared data in {place.parent}: {error.strerror or error}")


def _read_ids(path: Path) -> pa.StringArray:
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["id"]
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _checksum(path: Path) -> int:
    with pa.memory_map(str(path)) as file:
        return zlib.crc32(file.read_buffer())
