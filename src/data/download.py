"""Public data sets, fetched once from where their owners publish them and written as a CSV of this package's columns.

GroupLens publishes MD5 sums. The BERT4Rec authors' files have no published sum: theirs are checked by size and by the
counts of users, items and interactions in the paper's Table 1.
"""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from filelock import FileLock
from tqdm import tqdm

from ..atomic_files import part_of
from ..errors import UserError

TRIES = 3  # a broken download resumes where it stopped
TIMEOUT = 30.0  # seconds without an answer
BLOCK = 2**18
GROUPLENS = "https://files.grouplens.org/datasets/movielens"
AUTHORS = "https://raw.githubusercontent.com/FeiSun/BERT4Rec/master/data"


@dataclass(frozen=True)
class Archive:
    """Where a data set is published and what it looks like."""

    url: str  # of a zip archive or a plain text
    licence: str  # address of the terms
    member: str | None  # the table in the archive, None where the file is the table
    delimiter: str  # of the table
    columns: tuple[str, ...]  # their names in their order
    has_header: bool = False  # whether a header line is to be skipped
    md5: str | None = None  # of the file, where it is published
    size: int | None = None  # of the file, where it has no published sum
    users: int | None = None  # distinct ones, likewise
    items: int | None = None  # distinct ones, likewise


def _movielens(size: str, readme: str, table: str, delimiter: str, md5: str, has_header: bool = False) -> Archive:
    stem, columns = f"{GROUPLENS}/ml-{size}", ("user", "item", "rating", "time")
    return Archive(f"{stem}.zip", f"{stem}-{readme}", f"ml-{size}/{table}", delimiter, columns, has_header, md5)


def _authors(name: str, size: int, users: int, items: int) -> Archive:
    terms = "https://cseweb.ucsd.edu/~jmcauley/datasets.html"
    return Archive(f"{AUTHORS}/{name}.txt", terms, None, " ", ("user", "item"), size=size, users=users, items=items)


ARCHIVES = {
    "ml-100k": _movielens("100k", "README.txt", "u.data", "\t", "0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": _movielens("1m", "README.txt", "ratings.dat", "::", "c4d9eecfca2ab87c1945afe126590906"),
    "ml-20m": _movielens("20m", "README.html", "ratings.csv", ",", "cd245b17a1ae2cc31bb14903e1204af3", has_header=True),
    "beauty": _authors("beauty", size=3_912_093, users=40_226, items=54_542),
    "steam": _authors("steam", size=38_226_650, users=281_428, items=13_044),
}


def fetch(name: str, folder: Path, url: str | None = None) -> Path:
    """The data set as `folder/NAME.csv`, downloaded, from another address if given, unless it is there.

    Raises:
        UserError: if the server cannot be reached, breaks off again and again, or serves another file.
    """
    archive = ARCHIVES[name]
    table = folder / f"{name}.csv"
    if table.exists():
        return table
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # of several processes one downloads
            if not table.exists():
                print(f"{name}: published under the terms at {archive.licence}", flush=True)
                file = folder / (archive.url.rsplit("/", 1)[1])
                if not file.exists():
                    _download(archive, url or archive.url, file)
                _convert(archive, file, table)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
    return table


def _download(archive: Archive, url: str, file: Path) -> None:
    """Fetch into `file`, which appears under its name when it is whole and checked."""
    part = part_of(file)
    elsewhere = f"give another address with data.download_url=URL, or put the file at {file}"
    for attempt in range(1, TRIES + 1):
        try:
            _fetch_rest(url, part)
            break
        except urllib.error.HTTPError as error:
            raise UserError(f"{url} answers {error.code} {error.reason}: {elsewhere}") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException, ValueError) as error:
            if attempt == TRIES or isinstance(error, ValueError):
                reason = " ".join(str(getattr(error, "reason", error)).split())
                have = _size(part)
                kept = f"; {have:,} bytes are kept in {part}, and the same command resumes there" if have else ""
                raise UserError(f"{url} cannot be downloaded ({reason}){kept}; or {elsewhere}") from error
            time.sleep(0.5 * attempt)
    wrong = _what_is_wrong(archive, part)
    if wrong:
        part.unlink()
        raise UserError(
            f"{url} served another file than expected ({wrong}), which was deleted: try again, or give another address"
            " with data.download_url=URL"
        )
    os.replace(part, file)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _fetch_rest(url: str, part: Path) -> None:
    """Download what is missing of `part`; a server that cannot resume there is asked for all of it."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        part.unlink()  # there is nothing behind what we have: it is whole, or not of this file
        response = urllib.request.urlopen(url, timeout=TIMEOUT)
    with response:
        if getattr(response, "status", None) != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with part.open("ab" if have else "wb") as file, bar:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"it broke off at {_size(part):,} of {total:,} bytes")


def _what_is_wrong(archive: Archive, file: Path) -> str | None:
    if archive.size not in (None, _size(file)):
        return f"{_size(file):,} bytes instead of {archive.size:,}"
    with file.open("rb") as content:
        md5 = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return f"MD5 {md5} instead of {archive.md5}" if archive.md5 not in (None, md5) else None


def _convert(archive: Archive, file: Path, table: Path) -> None:
    """Write the table as CSV; the archive stays."""
    delimiter = archive.delimiter
    try:
        if archive.member is None:
            text = file.read_bytes()
        else:
            with zipfile.ZipFile(file) as zipped:
                text = zipped.read(archive.member)
        if delimiter == "::":
            text, delimiter = text.replace(b"::", b"\t"), "\t"
        rows = pyarrow.csv.read_csv(
            pa.BufferReader(text),
            pyarrow.csv.ReadOptions(column_names=archive.columns, skip_rows=int(archive.has_header)),
            pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False),
            pyarrow.csv.ConvertOptions(column_types={"user": pa.string(), "item": pa.string()}),
        )
    except (zipfile.BadZipFile, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not the archive that was expected ({reason}): delete it and try again") from error
    for role, expected in (("user", archive.users), ("item", archive.items)):
        found = pc.count_distinct(rows[role]).as_py()
        if expected not in (None, found):
            raise UserError(f"{file} has {found:,} {role}s instead of {expected:,}: delete it and try again")
    part = part_of(table)
    pyarrow.csv.write_csv(rows, part, pyarrow.csv.WriteOptions(quoting_style="none"))
    os.replace(part, table)
