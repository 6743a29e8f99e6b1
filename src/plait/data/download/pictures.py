"""Judge a downloaded file by its content: whether it is a picture that training can decode, and how large. Scale large ones down.

A file is decoded as training decodes it, once, whatever its name and Content-Type say: a torn picture is found out here and not in a run.
A large JPEG is decoded at an eighth to half of its size, which reads all of its data.
"""

import hashlib
from typing import Any

from plait.data import image_files
from plait.data.download import hashes
from plait.data.download.limits import PictureLimits
from plait.data.formats.encodings import other_kind
from plait.data.shard_sets import encoding
from plait.errors import BadSample

_DRAFT = (256, 256)  # a JPEG of four times that is decoded smaller
_QUALITY = 95


class Refused(Exception):
    """Raised for a link that gives no picture to save. `status`: its outcome (outcomes.py); `detail`: why, in a few words."""

    def __init__(self, status: str, detail: str = "") -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


def judge(body: bytes, expected_hash: str | None, limits: PictureLimits) -> tuple[bytes, dict[str, Any]]:
    """Return the file to save and its facts: kind (its ending), width, height (pixels, upright), bytes, sha256 (of `body`).

    `expected_hash`: SHA-256, SHA-1 or MD5 (hashes.py). Raises Refused for one that is not to be saved.
    """
    if not body:
        raise Refused("empty")
    _check_hash(body, expected_hash, limits)
    width, height = _decoded_size(body, limits)
    if min(width, height) < limits.min_side:
        raise Refused("too_small", f"{width} x {height}")
    sha256, kind = hashlib.sha256(body).hexdigest(), encoding.kind(body)
    if limits.max_side is not None and max(width, height) > limits.max_side:
        body, (width, height) = encoding.encode(body, "jpg", _QUALITY, side=limits.max_side, max_pixels=limits.max_pixels)
        kind = "jpg"
    return body, {"kind": kind, "width": width, "height": height, "bytes": len(body), "sha256": sha256}


def _check_hash(body: bytes, expected: str | None, limits: PictureLimits) -> None:
    """Raise Refused if a file's hash is not `expected`."""
    if expected and limits.check_hash and (wrong := hashes.mismatch(body, expected)):
        raise Refused("hash", wrong)


def _decoded_size(body: bytes, limits: PictureLimits) -> tuple[int, int]:
    """Decode a file and return its (width, height), upright. Raises Refused with the reason where that fails."""
    try:
        height, width, _ = image_files.decode_rgb(body, max_pixels=limits.max_pixels, at_least=_DRAFT).shape
        return image_files.size(body) if min(width, height) >= 2 * _DRAFT[0] else (width, height)
    except image_files.OverLimit as error:
        raise Refused("too_many_pixels", str(error)) from None
    except BadSample as error:
        reason = str(error)
    try:
        image_files.size(body)
    except BadSample:
        kind = other_kind(body).removeprefix(", ")
        raise Refused("html" if kind.startswith("HTML") else "not_a_picture", "" if kind.startswith("HTML") else kind) from None
    raise Refused("damaged", reason.partition(": ")[2] or reason)
