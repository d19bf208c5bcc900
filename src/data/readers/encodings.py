"""Texts in other encodings, as UTF-8."""

import codecs

import pyarrow as pa

from ...errors import UserError
from ..table import one_line
from .sources import Source

AT_A_TIME = 2**23  # bytes


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
            for begin in range(0, len(content), AT_A_TIME):
                is_last = begin + AT_A_TIME >= len(content)
                sink.write(decoder.decode(bytes(content[begin : begin + AT_A_TIME]), final=is_last).encode())
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
