"""Decode plain JPEGs by simplejpeg, at full or draft size: Pillow's pixels, and nearly nothing of its time that holds Python's lock.

Pillow parses a file's headers in Python, for 100 of the 120 us that it takes for a picture of 32 x 32.
"""

import struct

import numpy as np

from plait.data.memory import allocation

try:
    import simplejpeg
except ImportError:  # a cluster's own image may lack it: Pillow gives the same pixels, small pictures in eight times the time
    simplejpeg = None

_APP0, _APP14, _SOS = 0xFFE0, 0xFFEE, 0xFFDA  # JFIF; Adobe; where the pixels begin (ITU-T T.81, B.1.1.3)
_FRAMES = frozenset(range(0xFFC0, 0xFFC3))  # baseline, extended, progressive
_HARMLESS = frozenset([0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE, *range(0xFFE2, 0xFFF0)])
"""Segments that turn no picture: tables, comments, profiles. APP1 may: it holds EXIF data or XMP."""
_SEGMENT, _FRAME = struct.Struct(">HH").unpack_from, struct.Struct(">HHB").unpack_from
_SMALL = 4096  # pixels
_LEAST_DRAFT = 64
"""Pixels: a shorter side is left to Pillow, as two scales may give it one length, of which simplejpeg takes either."""


def decode(data: bytes, max_pixels: int, at_least: tuple[int, int] | None) -> np.ndarray | None:
    """Decode an undamaged colour or grey JPEG that needs no rotation to uint8 RGB (H, W, 3); None for anything else.

    `at_least` (height, width): decoded at 1/2, 1/4 or 1/8 of its size where it stays at least twice that large, as by Pillow's draft mode.
    """
    if simplejpeg is None:
        return None
    try:
        size = _size(data)
        if size is None or not 0 < size[0] * size[1] <= max_pixels:
            return None
        height, width = size
        scale = 1 if at_least is None else draft_scale(height, width, at_least)
        if scale > 1 and min(height, width) < _LEAST_DRAFT:
            return None
        high, wide = -(-height // scale), -(-width // scale)
        pixels = allocation.array((high, wide, 3)) if high * wide > _SMALL else None  # simplejpeg makes an array in less time
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=high, min_width=wide, buffer=pixels)
    except (ValueError, struct.error):  # also for what a decoder could mend
        return None
    return pixels if pixels.shape == (high, wide, 3) else None


def _size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a colour or grey JPEG whose header turns nothing and says how colours are stored; else None.

    Raises struct.error for a header that is cut off, ValueError for one that simplejpeg cannot read.
    """
    at, jfif, adobe, frame = 2, False, False, (0, 0, 0)  # frame: height, width, components
    while True:
        marker, length = _SEGMENT(data, at)
        if marker == _APP0:
            jfif = jfif or (length >= 16 and data.startswith(b"JFIF\0", at + 4))
        elif marker in _FRAMES:
            frame = _FRAME(data, at + 5)
        elif marker == _SOS:
            break
        elif marker not in _HARMLESS:
            return None
        adobe = adobe or marker == _APP14
        at += 2 + length
    height, width, components = frame
    if jfif and components in (1, 3):
        return height, width
    if adobe:
        return None
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    return (height, width) if colours in ("YCbCr", "Gray") else None


def draft_scale(height: int, width: int, at_least: tuple[int, int]) -> int:
    """Return by what a JPEG is divided while it is decoded, 1, 2, 4 or 8: it stays twice `at_least` (height, width)."""
    scale = min(height // (2 * at_least[0]), width // (2 * at_least[1]))
    return next((step for step in (8, 4, 2) if scale >= step), 1)
