"""Which files a path means, and what they hold once unpacked and decoded.

What a file is follows from its first bytes, whatever it is called.
"""

import codecs
import glob
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ...errors import UserError
from ..table import one_line

GZIP, ZSTD, BZIP2, ZIP, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"PK\x03\x04", b"PAR1"
DECODED_AT_A_TIME = 2**23  # bytes
CODECS = {GZIP: "gzip", ZSTD: "zstd", BZIP2: "bz2"}


@dataclass(frozen=True)
class Source:
    """One table, unpacked."""

    path: Path  # the file, for messages
    content: pa.Buffer | None  # all its bytes; None for a Parquet file that is not packed, which is read piece by piece

    @property
    def is_parquet(self) -> bool:
        return self.content is None or bytes(self.content[: len(PARQUET)]) == PARQUET


def find(path: Path) -> list[Path]:
    """The file at `path`, or all files of the folder, or all that match the pattern; in order of their names.

    Files whose names begin with `.` or `_` are none of a folder's tables.

    Raises:
        UserError: if there is none, or the folder cannot be listed.
    """
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            files = [file for file in path.iterdir() if file.is_file() and file.name[0] not in "._"]
        else:
            files = [Path(match) for match in glob.glob(str(path)) if Path(match).is_file()]
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: permission denied; allow it with chmod, or copy it") from error
    if not files:
        place = f"in the folder {path}" if path.is_dir() else str(path)
        raise UserError(
            f"there is no file {place}: name yours with data.data_dir=FOLDER data.data_file=FILE,"
            " or try the built-in sample with experiment=sample"
        )
    return sorted(files)


def load(path: Path) -> Source:
    """Read a file, and unpack it if it is packed (gzip, zstd, bzip2, or zip with one file in it).

    Raises:
        UserError: if it cannot be read, is empty, is cut short, or is no table.
    """
    try:
        with pa.OSFile(str(path)) as file:
            if file.read(len(PARQUET)) == PARQUET:
                return Source(path, None)
            file.seek(0)
            content = _unpack(path, file.read_buffer())
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: permission denied; allow it with chmod, or copy it") from error
    except (OSError, pa.ArrowInvalid, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{path} cannot be unpacked, it is damaged or cut short ({one_line(error)}): fetch it again"
        ) from error
    if len(content) == 0:
        raise UserError(f"{path} is empty: it must begin with the line user,item,time")
    return Source(path, content)


def _unpack(path: Path, content: pa.Buffer) -> pa.Buffer:
    start = bytes(content[:4])
    for magic, codec in CODECS.items():
        if start.startswith(magic):
            return pa.py_buffer(pa.CompressedInputStream(pa.BufferReader(content), codec).read())
    return _only_member(path, content) if start == ZIP else content


def _only_member(path: Path, content: pa.Buffer) -> pa.Buffer:
    """The one table in a zip archive."""
    with zipfile.ZipFile(pa.BufferReader(content)) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if "[Content_Types].xml" in names:
            raise UserError(f"{path} is an office document: save the table as CSV and name that")
        tables = [name for name in names if not name.startswith("__MACOSX/") and Path(name).name[:1] not in (".", "_")]
        if len(tables) != 1:
            held = ", ".join(tables[:5]) + (", ..." if len(tables) > 5 else "")
            raise UserError(f"{path} holds {len(tables)} files ({held}): unpack it and name the one with the table")
        return pa.py_buffer(archive.read(tables[0]))


def as_utf8(source: Source, encoding: str) -> tuple[pa.Buffer, list[str]]:
    """The text in UTF-8, without a mark at its beginning, and what there is to say about it.

    Raises:
        UserError: if the encoding is unknown or another one.
    """
    content = source.content
    assert content is not None
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise UserError(f"data.encoding={encoding} is not known: utf-8, latin-1, cp949, utf-16, ...") from error
    start, notes = bytes(content[:1024]), []
    if name == "utf-8":
        if found := _utf16_in(start):
            raise UserError(f"{source.path} is UTF-16: say so with data.encoding={found}")
    else:
        decoder, sink = codecs.getincrementaldecoder(name)(), pa.BufferOutputStream()
        try:
            for begin in range(0, len(content), DECODED_AT_A_TIME):
                is_last = begin + DECODED_AT_A_TIME >= len(content)
                sink.write(decoder.decode(bytes(content[begin : begin + DECODED_AT_A_TIME]), final=is_last).encode())
        except (UnicodeError, LookupError) as error:
            raise UserError(
                f"{source.path} is not {encoding} ({one_line(error)}): name its encoding, such as data.encoding=cp949"
            ) from error
        content = sink.getvalue()
        if not name.startswith("utf") and _is_utf8(start):
            notes = [f"warning: {source.path} looks like UTF-8, but is read as data.encoding={encoding}"]
    return content.slice(3) if bytes(content[:3]) == codecs.BOM_UTF8 else content, notes


def _utf16_in(start: bytes) -> str | None:
    """The kind of UTF-16 that a text is in, by its mark or the zeros between its letters."""
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    zeros = {"utf-16-le": start[1::2].count(0), "utf-16-be": start[::2].count(0)}
    return next((name for name, count in zeros.items() if count * 3 > len(start) > 3), None)


def _is_utf8(start: bytes) -> bool:
    """Whether letters beyond ASCII are there, all of them in UTF-8."""
    try:
        return not start.isascii() and bool(codecs.getincrementaldecoder("utf-8")().decode(start))
    except UnicodeError:
        return False
