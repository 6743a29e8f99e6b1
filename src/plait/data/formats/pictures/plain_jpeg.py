"""Decode plain JPEGs by simplejpeg, at full or draft size: Pillow's pixels, and nearly nothing of its time that holds Python's lock.

Pillow parses a file's headers in Python, for 100 of the 120 us that it takes for a picture of 32 x 32.
"""

import numpy as np

from plait.data.memory import allocation

try:
    import simplejpeg
except ImportError:  # a cluster's own image may lack it: Pillow gives the same pixels, small pictures in eight times the time
    simplejpeg = None

_EXIF, _XMP = b"Exif", b"http://ns.adobe.com/xap/"  # the two places of an orientation
_ADOBE, _JFIF = b"Adobe", b"JFIF"  # what may say how colours are stored
_LEAST_DRAFT = 64
"""Pixels: a shorter side is left to Pillow, as two scales may give it one length, of which simplejpeg takes either."""


def decode(data: bytes, max_pixels: int, at_least: tuple[int, int] | None) -> np.ndarray | None:
    """Decode an undamaged colour or grey JPEG that needs no rotation to uint8 RGB (H, W, 3); None for anything else.

    `at_least` (height, width): decoded at 1/2, 1/4 or 1/8 of its size where it stays at least twice that large, as by Pillow's draft mode.
    """
    if simplejpeg is None or _EXIF in data or _XMP in data or (_ADOBE in data and _JFIF not in data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > max_pixels:
            return None
        scale = 1 if at_least is None else draft_scale(height, width, at_least)
        if scale > 1 and min(height, width) < _LEAST_DRAFT:
            return None
        high, wide = -(-height // scale), -(-width // scale)
        pixels = allocation.array((high, wide, 3))
        decoded = simplejpeg.decode_jpeg(data, "RGB", min_height=high, min_width=wide, buffer=pixels)
    except ValueError:  # also for what a decoder could mend
        return None
    return pixels if decoded.shape == pixels.shape else None


def draft_scale(height: int, width: int, at_least: tuple[int, int]) -> int:
    """Return by what a JPEG is divided while it is decoded, 1, 2, 4 or 8: it stays twice `at_least` (height, width)."""
    scale = min(height // (2 * at_least[0]), width // (2 * at_least[1]))
    return next((step for step in (8, 4, 2) if scale >= step), 1)
