"""Which encoding a text file of others has: UTF-8, UTF-16 or UTF-32, with or without a byte order mark."""

from __future__ import annotations

import codecs
from pathlib import Path

_MARKS = (  # the longer ones first: UTF-32's little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_ZEROS: dict[tuple[bool, ...], str] = {  # which bytes of four are zero in ASCII text
    (False, True, False, True): "utf-16-le", (True, False, True, False): "utf-16-be",
    (False, True, True, True): "utf-32-le", (True, True, True, False): "utf-32-be",
}  # fmt: skip
UTF8 = "utf-8-sig"


def encoding_of(head: bytes) -> str:
    """The encoding of a text by its first bytes, as `open` takes it; UTF-8 unless they say another.

    >>> encoding_of("id".encode("utf-16")), encoding_of("id".encode("utf-16-le")), encoding_of(b"id,answer")
    ('utf-16', 'utf-16-le', 'utf-8-sig')
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    return _ZEROS.get(tuple(byte == 0 for byte in head[:4]), UTF8)


def encoding_of_file(path: Path) -> str:
    """As `encoding_of`, of a file. Raises OSError."""
    with open(path, "rb") as file:
        return encoding_of(file.read(4))


def not_text(error: UnicodeError) -> str:
    """What is wrong with a text of another encoding, in words."""
    return f"not UTF-8, UTF-16 or UTF-32 text, but perhaps GBK or Latin-1: save it as UTF-8 ({str(error)[:80]})"
