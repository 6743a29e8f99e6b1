"""Judge a downloaded file by its content: whether it is a picture that training can decode, and how large. Scale large ones down.

A file is decoded as training decodes it, once, whatever its name and Content-Type say: a torn picture is found out here and not in a run.
A large JPEG is decoded at an eighth to half of its size, which reads all of its data.
"""

import hashlib
import io
from typing import Any

from PIL import Image

from plait.data import image_files
from plait.data.download.limits import PictureLimits
from plait.data.formats.encodings import other_kind
from plait.data.formats.image_metadata import JPEG
from plait.data.formats.png import PNG
from plait.errors import BadSample

_DRAFT = (256, 256)  # a JPEG of four times that is decoded smaller
_QUALITY = 95
_ENDINGS = {"TIFF": "tif", "JPEG2000": "jp2"}
_HASHES = {32: "md5", 64: "sha256"}  # by their hexadecimal digits


class Refused(Exception):
    """Raised for a link that gives no picture to save. `status`: its outcome (outcomes.py); `detail`: why, in a few words."""

    def __init__(self, status: str, detail: str = "") -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


def judge(body: bytes, expected_hash: str | None, limits: PictureLimits) -> tuple[bytes, dict[str, Any]]:
    """Return the file to save and its facts: kind (its ending), width, height (pixels, upright), bytes, sha256 (of `body`).

    `expected_hash`: SHA-256 or MD5, in hexadecimal digits. Raises Refused for one that is not to be saved.
    """
    if not body:
        raise Refused("empty")
    _check_hash(body, expected_hash, limits)
    width, height = _decoded_size(body, limits)
    if min(width, height) < limits.min_side:
        raise Refused("too_small", f"{width} x {height}")
    sha256, kind = hashlib.sha256(body).hexdigest(), _kind(body)
    if limits.max_side is not None and max(width, height) > limits.max_side:
        body, width, height = _scaled(body, limits.max_side, limits.max_pixels)
        kind = "jpg"
    return body, {"kind": kind, "width": width, "height": height, "bytes": len(body), "sha256": sha256}


def _check_hash(body: bytes, expected: str | None, limits: PictureLimits) -> None:
    """Raise Refused if a file's hash is not `expected`. What has not the digits of a known hash is none that can be checked."""
    kind = _HASHES.get(len(expected)) if expected and limits.check_hash else None
    if kind is not None and expected is not None and hashlib.new(kind, body).hexdigest() != expected.lower():
        raise Refused("hash", kind)


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


def _kind(body: bytes) -> str:
    """Return the ending of the name of a picture's file, by its content."""
    if body.startswith((JPEG, PNG)):  # also with damaged metadata, which Pillow would refuse
        return "jpg" if body.startswith(JPEG) else "png"
    with Image.open(io.BytesIO(body), formats=image_files.FORMATS) as image:
        name = str(image.format)
    return _ENDINGS.get(name, name.lower())


def _scaled(body: bytes, side: int, max_pixels: int) -> tuple[bytes, int, int]:
    """Return the picture as a JPEG whose longer side is `side` pixels, and its width and height."""
    pixels = image_files.decode_rgb(body, max_pixels=max_pixels, at_least=(side, side))
    width, height = image_files.size(body)
    factor = side / max(width, height)
    width, height = max(1, round(width * factor)), max(1, round(height * factor))
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue(), width, height
