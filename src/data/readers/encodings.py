"""Texts in other encodings, as UTF-8."""

import codecs

import pyarrow as pa

from ...errors import UserError
from ..table import TableOptions, one_line
from .sources import Source

AT_A_TIME = 2**23  # bytes


def as_utf8(source: Source, options: TableOptions) -> tuple[Source, list[str]]:
    """The text in UTF-8, without a mark at its beginning, and what there is to say about it.

    Raises:
        UserError: if the encoding is unknown or another one.
    """
    content = source.content
    assert content is not None
    try:
        name = codecs.lookup(options.encoding).name
    except LookupError as error:
        raise UserError(f"data.encoding={options.encoding} is not known: utf-8, latin-1, cp949, utf-16, ...") from error
    start = bytes(content[:1024])
    if name == "utf-8":
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{source.path} is UTF-16: say so with data.encoding=utf-16")
        for encoding in ("utf-16-le", "utf-16-be"):
            if b"\0" in start and len(start) > 3 and start[int(encoding == "utf-16-le") :: 2].count(0) * 3 > len(start):
                raise UserError(f"{source.path} is UTF-16: say so with data.encoding={encoding}")
        return Source(source.path, content.slice(3) if start.startswith(codecs.BOM_UTF8) else content), []
    decoder, sink = codecs.getincrementaldecoder(name)(), pa.BufferOutputStream()
    try:
        for begin in range(0, len(content), AT_A_TIME):
            is_last = begin + AT_A_TIME >= len(content)
            sink.write(decoder.decode(bytes(content[begin : begin + AT_A_TIME]), final=is_last).encode())
    except (UnicodeError, LookupError) as error:
        raise UserError(
            f"{source.path} is not {options.encoding} ({one_line(error)}): name its encoding, such as"
            " data.encoding=cp949"
        ) from error
    notes = []
    if not name.startswith("utf") and _is_utf8(start):
        notes = [f"warning: {source.path} looks like UTF-8, but is read as data.encoding={options.encoding}"]
    decoded = sink.getvalue()
    return Source(source.path, decoded.slice(3) if bytes(decoded[:3]) == codecs.BOM_UTF8 else decoded), notes


def _is_utf8(start: bytes) -> bool:
    """Whether letters beyond ASCII are there, all of them in UTF-8."""
    try:
        return not start.isascii() and bool(codecs.getincrementaldecoder("utf-8")().decode(start))
    except UnicodeError:
        return False
