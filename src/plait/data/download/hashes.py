"""Read the hashes that lists announce: SHA-256, SHA-1 or MD5, as hexadecimal digits, with the name before them, or as raw bytes."""

import hashlib
import re
from typing import Any

_BY_DIGITS = {32: "md5", 40: "sha1", 64: "sha256"}
_NAMED = re.compile(r"(?:(sha-?256|sha-?1|md5)[:=])?([0-9a-f]+)", re.IGNORECASE)


def announced(cell: Any) -> str | None:
    """Return a cell of a column of hashes as text, raw bytes as hexadecimal digits; None for an empty one."""
    if isinstance(cell, bytes):
        return cell.hex() if len(cell) * 2 in _BY_DIGITS else cell.decode("ascii", "backslashreplace").strip() or None
    return None if cell is None else str(cell).strip() or None


def parsed(text: str) -> tuple[str, str] | None:
    """Return (name for hashlib, small hexadecimal digits) of a hash; None for what is none that can be checked."""
    match = _NAMED.fullmatch(text)
    kind = _BY_DIGITS.get(len(match[2])) if match else None
    if match is None or kind is None or (match[1] or kind).lower().replace("-", "") != kind:
        return None
    return kind, match[2].lower()


def mismatch(body: bytes, expected: str) -> str:
    """Return "" if a file has this hash, else the name of the hash. `expected`: one that `parsed` reads."""
    kind, digits = parsed(expected) or ("no hash", "")
    return "" if digits and hashlib.new(kind, body).hexdigest() == digits else kind
