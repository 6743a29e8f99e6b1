"""Encoded image files to NumPy pixels: every file becomes uint8 RGB (H, W, 3), upright, or a BadSample that says why.

Not here: tensors and resizing (images.py). Nothing here imports torch, so that reading a configuration does not either.
Transparent pixels are put over white, EXIF rotation is applied, animations give their first frame, 16-bit greys are scaled (white stays
255). Colour profiles are not applied. Pillow decides which format a file has; plain JPEGs take a shorter way to the same pixels.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from plait.errors import BadSample

try:
    import simplejpeg
except ImportError:  # a cluster's own image may lack it: Pillow gives the same pixels, small pictures in eight times the time
    simplejpeg = None

MAX_PIXELS = 1 << 26  # 67 megapixels (200 MB of RGB): beyond any camera photo in a training set, below Pillow's own alarm

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
_JPEG = b"\xff\xd8\xff"
_EXIF, _XMP = b"Exif", b"http://ns.adobe.com/xap/"  # the two places of an orientation
_WITH_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
# What Pillow's decoders raise on broken input; anything else is a defect and keeps its traceback.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, TypeError, struct.error, zlib.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """Decode one image file to uint8 RGB (H, W, 3), upright.

    `at_least` (height, width): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as it stays at least twice that large
    (so that the antialiased resize that follows still does the filtering). Other formats ignore it.
    Raises BadSample for a file that is no image, is damaged, or has more than `max_pixels` pixels.
    """
    pixels = _decode_plain_jpeg(data, max_pixels, at_least)
    return _decode_with_pillow(data, max_pixels, at_least) if pixels is None else pixels


def _decode_with_pillow(data: bytes, max_pixels: int, at_least: tuple[int, int] | None) -> np.ndarray:
    """Decode any format that Pillow reads, with everything done that a header asks for."""
    try:
        with _open(data) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample(f"image of {width} x {height} pixels is over the limit of {max_pixels}")
            turn = image.getexif().get(_ORIENTATION, 1)
            if at_least is not None and image.format == "JPEG":
                high, wide = at_least[::-1] if turn in _SIDEWAYS else at_least
                if _may_shrink(height, width, (high, wide)):
                    image.draft(None, (2 * wide, 2 * high))
            image.load()
            upright = image.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else image
            return _rgb(upright)
    except _BOMBS as error:
        raise BadSample(f"image over the limit of {max_pixels} pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise BadSample(f"not a readable image ({len(data)} bytes, begins {data[:8]!r}): no format that Pillow knows") from error
    except _DECODER_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadSample(f"not a readable image ({len(data)} bytes, begins {data[:8]!r}): {reason}") from error


def _decode_plain_jpeg(data: bytes, max_pixels: int, at_least: tuple[int, int] | None) -> np.ndarray | None:
    """Decode an undamaged colour or grey JPEG that needs no rotation and no shrinking; None for anything else, which Pillow handles.

    Pillow parses a file's headers in Python, under its lock: 100 of the 120 us that a picture of 32 x 32 takes it.
    """
    if simplejpeg is None or not data.startswith(_JPEG) or _EXIF in data or _XMP in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > max_pixels or (at_least and _may_shrink(height, width, at_least)):
            return None
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
        return pixels
    except ValueError:  # also for what a decoder could mend
        return None


def _may_shrink(height: int, width: int, at_least: tuple[int, int]) -> bool:
    """Return whether the image at half its size is still at least twice `at_least`."""
    return height >= 4 * at_least[0] and width >= 4 * at_least[1]


def _open(data: bytes) -> Image.Image:
    """Open an image; a JPEG without trying the other formats, which saves a tenth of the time of a small picture."""
    return JpegImageFile(io.BytesIO(data)) if data.startswith(_JPEG) else Image.open(io.BytesIO(data))


def size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of an encoded image from its header, after EXIF rotation. Raises BadSample for what is no image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
            return image.size[::-1] if turned else image.size
    except (*_BOMBS, *_DECODER_ERRORS) as error:
        raise BadSample(f"not a readable image ({len(data)} bytes): {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def _rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels as writable uint8 RGB (H, W, 3): np.array copies, because Pillow's own buffer is read-only."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if mode == "I" or mode.startswith("I;16") or mode == "F":
        return np.repeat(_wide_grey(np.array(image), mode)[:, :, None], 3, axis=2)
    if mode in _WITH_ALPHA or "transparency" in image.info:
        straight = image.convert("LA") if mode == "La" else image
        pixels = straight.convert("RGBA")
        white = Image.new("RGBA", pixels.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, pixels).convert("RGB"))
    return np.array(image.convert("RGB"))


def _wide_grey(grey: np.ndarray, mode: str) -> np.ndarray:
    """Scale greys wider than 8 bits to uint8: integers are 16-bit (as in PNG, TIFF and PGM), floats run from 0 to 1 (PFM).

    Raises BadSample for values outside that range.
    """
    white = 1.0 if mode == "F" else 65535
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high <= white):  # also false for NaN
        raise BadSample(f"grey values from {low} to {high} in an image of mode {mode}; expected 0 to {white}")
    return np.rint(grey.astype(np.float64) * (255.0 / white)).astype(np.uint8)
