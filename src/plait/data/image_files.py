"""Decode image files to NumPy pixels: every file becomes uint8 RGB (H, W, 3), upright, or raises a BadSample that says why.

Not here: tensors and resizing (images.py). Nothing here imports torch, so that reading a configuration does not either.
Transparent pixels are put over white, EXIF rotation is applied once, animations give their first frame, 16-bit greys are scaled (white
stays 255). Colour profiles are not applied; damaged or overlong metadata does not cause a picture to be rejected
(formats/pictures/image_metadata.py). Pillow finds out which of FORMATS a file has, whatever its name; plain JPEGs have a faster way.
"""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from plait.data.formats.encodings import other_kind
from plait.data.formats.pictures import image_metadata, plain_jpeg, png, png_pixels
from plait.data.formats.pictures.image_metadata import JPEG
from plait.data.formats.pictures.wide_grey import wide_grey
from plait.errors import BadSample

warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a file is told by its sample, not by a line from a worker

T = TypeVar("T")

MAX_PIXELS = 1 << 26  # 67 megapixels (200 MB of RGB): beyond any camera photo in a training set, below Pillow's own alarm
MAX_SIDE = 65_535
"""Pixels: the longest side that a JPEG can have. A line of 60,000,000 x 1, within MAX_PIXELS, takes 1.7 GB on its way to a batch."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
"""The formats that are read, by Pillow's names. No other is: an EPS would start Ghostscript; a PDF or PSD is no picture to train on."""

_ORIENTATION = 0x0112  # EXIF tag; values 2..8 and how to undo them (EXIF 2.3, 4.6.4)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # the values that swap width and height
_WITH_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
# What Pillow's decoders raise on broken input; anything else is a defect and keeps its traceback.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, TypeError, struct.error, zlib.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class OverLimit(BadSample):
    """An image with more pixels, or a longer side, than is decoded."""


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """Decode one image file to uint8 RGB (H, W, 3), upright.

    `at_least` (height, width): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as it stays at least twice that large
    (so that the antialiased resize that follows still does the filtering). Other formats ignore it.
    Raises BadSample for a file that is no image, is damaged, or has more than `max_pixels` pixels.
    """
    if data.startswith(JPEG) and (plain := plain_jpeg.decode(data, max_pixels, at_least)) is not None:
        return plain

    def decode(body: bytes) -> np.ndarray:
        if body.startswith(png.PNG) and (pixels := _decode_png(body, max_pixels)) is not None:
            return pixels
        with _open(body) as image:
            _check_header(image, image.size, max_pixels)
            return _decode_opened(image, at_least)

    return _with_pillow(data, decode)


def _decode_png(data: bytes, max_pixels: int) -> np.ndarray | None:
    """Decode a PNG as one of a row more than it declares. None if that fails. Raises BadSample as `decode_rgb` does.

    Pillow tells neither that rows are left nor that some are missing. They are counted where the row more is not empty, or the last is.
    """
    with contextlib.suppress(*_DECODER_ERRORS), _open(png.one_row_more(data)) as image:
        width, height = image.width, image.height - 1
        _check_header(image, (width, height), max_pixels)
        turn = _orientation(image)
        last, more = (image.crop((0, y, width, y + 1)).tobytes().strip(b"\0") for y in (height - 1, height))
        if (last and not more) or not png_pixels.misfit(data):
            return _rgb(image.crop((0, 0, width, height)).transpose(_UPRIGHT[turn])) if turn in _UPRIGHT else _rgb(image)[:height]
    if misfit := png_pixels.misfit(data):
        raise BadSample(f"not a readable image ({len(data)} bytes): {misfit}")
    return None


def _decode_opened(image: Image.Image, at_least: tuple[int, int] | None) -> np.ndarray:
    """Decode an image that Pillow has opened to uint8 RGB (H, W, 3), upright. Raises BadSample as `decode_rgb` does."""
    turn = _orientation(image)
    if at_least is not None and image.format == "JPEG":
        high, wide = at_least[::-1] if turn in _SIDEWAYS else at_least
        image.draft(None, (2 * wide, 2 * high))  # at 1/2, 1/4 or 1/8, never under this size
    image.load()
    return _rgb(image.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else image)


def over_limit(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> str | None:
    """Return why an image of `size` (width, height) is too large, as the end of a sentence ("has a side over ...").

    None if its sides are within MAX_SIDE (65,535) and its pixels (width x height) within `max_pixels`.
    """
    if max(size) > MAX_SIDE:
        return f"has a side over the limit of {MAX_SIDE}: cut it into several"
    return f"is over the limit of {max_pixels}" if size[0] * size[1] > max_pixels else None


def _check_header(image: Image.Image, size: tuple[int, int], max_pixels: int) -> None:
    """Raise BadSample for an image over a limit, and for a JPEG that does not say how its colours are stored."""
    if limit := over_limit(size, max_pixels):
        raise OverLimit(f"image of {size[0]} x {size[1]} pixels {limit}")
    told = image.info
    known = image_metadata.colours_known
    if isinstance(image, JpegImageFile) and "adobe" in told and not known(image.layers, told.get("adobe_transform"), jfif="jfif" in told):
        raise BadSample(image_metadata.COLOURS_UNKNOWN)


def _with_pillow(data: bytes, read: Callable[[bytes], T]) -> T:
    """Return `read(data)`. Where that fails on a PNG or JPEG, read it with less and less of its metadata.

    Raises BadSample with the first error where the picture itself cannot be read, or does not match its checksums.
    """
    if damage := png.damage(data):
        raise BadSample(f"not a readable image ({len(data)} bytes): {damage}")
    try:
        return read(png.still(data))
    except _BOMBS as error:
        raise OverLimit(f"image over the limit of {MAX_PIXELS} pixels: {error}") from error
    except _DECODER_ERRORS as error:
        reason = "no format that is read" if isinstance(error, UnidentifiedImageError) else (str(error).splitlines() or [""])[0]
        fault = BadSample(f"not a readable image ({len(data)} bytes{other_kind(data)}): {reason or type(error).__name__}")
        fault.__cause__ = error
    for body in image_metadata.reduced(data):
        with contextlib.suppress(*_DECODER_ERRORS):
            return read(body)
    raise fault


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be undone, 1 for none, also where the EXIF data is damaged.

    Pillow rotates a TIFF itself while it loads it, and reports the rotated size from the start. In a PNG the EXIF data may follow the
    pixels, which are decoded first: their errors are raised, as a second attempt to decode them would return what it has without one.
    """
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and "exif" not in image.info:
        image.load()
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return turn if turn in _UPRIGHT else 1


def _open(data: bytes) -> Image.Image:
    """Open an image; a JPEG without trying the other formats, which saves a tenth of the time of a small picture."""
    return JpegImageFile(io.BytesIO(data)) if data.startswith(JPEG) else Image.open(io.BytesIO(data), formats=FORMATS)


def size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of an encoded image from its header, after EXIF rotation. Raises BadSample if it is no image."""

    def read(body: bytes) -> tuple[int, int]:
        with _open(body) as image:
            return image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size

    return _with_pillow(data, read)


def _rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels as writable uint8 RGB (H, W, 3): np.array copies, because Pillow's own buffer is read-only."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if mode == "I" or mode.startswith("I;16") or mode == "F":
        return np.repeat(wide_grey(np.array(image), mode)[:, :, None], 3, axis=2)
    if mode in _WITH_ALPHA or "transparency" in image.info:
        straight = image.convert("LA") if mode == "La" else image
        pixels = straight.convert("RGBA")
        white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, pixels).convert("RGB"))
    return np.array(image.convert("RGB"))
