"""Recognise compressed files, and text in UTF-16 or UTF-32, so that an error can name them. Files are read plain, text as UTF-8."""

import codecs

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = {"UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}
_ZEROS: dict[tuple[bool, ...], str] = {
    (True, False, False, False): "UTF-32LE",
    (False, False, False, True): "UTF-32BE",
    (True, False, True, False): "UTF-16LE",
    (False, True, False, True): "UTF-16BE",
}
"""Encodings without a mark by where the first four bytes of ASCII letters are not zero."""
_OTHER_KINDS = {
    b"<": "HTML or XML",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file it stands for with `git lfs pull`",
    b"{": "JSON",
    b"PK": "a ZIP archive",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"8BPS": "PSD",
}
"""Files that are given as pictures by mistake, by their first letters."""


def compression(body: bytes) -> str | None:
    """Return "gzip", "bzip2", "xz" or "zstd" if `body`, a file's first bytes, begins as data so compressed; else None."""
    return next((name for magic, name in _COMPRESSED.items() if body.startswith(magic)), None)


def wide_encoding(body: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if `body`, a file's first bytes, has its byte order mark or its zero bytes; else None."""
    for encoding, marks in _MARKS.items():
        if body.startswith(marks):
            return encoding
    return _ZEROS.get(tuple(byte > 0 for byte in body[:4]))


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return why text could not be decoded, and how to mend its file, as the end of a sentence."""
    return f"is not UTF-8 text: {error.reason} at byte {error.start}; where its file is in Latin-1: iconv -f LATIN1 -t UTF-8 OLD > NEW"


def other_kind(data: bytes) -> str:
    """Return a guess at what bytes that are no picture are, such as ", PDF"; "" without a guess. Their content is never quoted."""
    start = data[:200].lstrip()
    kind = next((kind for begins, kind in _OTHER_KINDS.items() if start.startswith(begins)), "" if data.strip(b"\0") else "all zero")
    return f", {kind}" if kind else ""
