"""Recognise text in UTF-16 or UTF-32, so that an error can name it: text files are read as UTF-8 only."""

import codecs

_MARKS = {"UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}
_ZEROS: dict[tuple[bool, ...], str] = {
    (True, False, False, False): "UTF-32LE",
    (False, False, False, True): "UTF-32BE",
    (True, False, True, False): "UTF-16LE",
    (False, True, False, True): "UTF-16BE",
}
"""Encodings without a mark by where the first four bytes of ASCII letters are not zero."""


def wide_encoding(body: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if `body`, a file's first bytes, begins with its byte order mark or has its zero bytes; else None."""
    for encoding, marks in _MARKS.items():
        if body.startswith(marks):
            return encoding
    return _ZEROS.get(tuple(byte > 0 for byte in body[:4]))
