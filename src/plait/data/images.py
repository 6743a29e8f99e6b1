"""Encoded image files to pixels: every file becomes uint8 RGB (3, H, W) or a BadSample that says why.

Transparent pixels lie over white, EXIF rotation is applied, animations give their first frame, 16-bit greys are scaled (white stays 255).
Colour profiles are not applied. Pillow decides what a file is; plain JPEGs take a shorter way to the same pixels.
Resizing is torch's antialiased uint8 kernel: seven times Pillow's speed, within 2/255 of it.
Shapes: C channels = 3, H height, W width in pixels.
"""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
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
_JPEG = b"\xff\xd8\xff"
_EXIF, _XMP = b"Exif", b"http://ns.adobe.com/xap/"  # the two places of an orientation
_WITH_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
# What Pillow's decoders raise on broken input; anything else is a defect and keeps its traceback.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, TypeError, struct.error, zlib.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None) -> torch.Tensor:
    """Decode one image file to uint8 (3, H, W), upright.

    `at_least` (height, width): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as it stays at least twice that large
    (so that the antialiased resize that follows still does the filtering). Other formats ignore it.
    """
    pixels = _plain_jpeg(data, max_pixels, at_least)
    if pixels is not None:
        return torch.from_numpy(pixels.transpose(2, 0, 1))
    try:
        with _open(data) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample(f"image of {width} x {height} pixels is over the limit of {max_pixels}")
            turn = image.getexif().get(_ORIENTATION, 1)
            if at_least is not None and image.format == "JPEG":
                high, wide = at_least[::-1] if turn in (5, 6, 7, 8) else at_least
                if _may_shrink(height, width, (high, wide)):
                    image.draft(None, (2 * wide, 2 * high))
            image.load()
            upright = image.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else image
            return torch.from_numpy(_rgb(upright).transpose(2, 0, 1))
    except _BOMBS as error:
        raise BadSample(f"image over the limit of {max_pixels} pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise BadSample(f"not a readable image ({len(data)} bytes, begins {data[:8]!r}): no format that Pillow knows") from error
    except _DECODER_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadSample(f"not a readable image ({len(data)} bytes, begins {data[:8]!r}): {reason}") from error


def _plain_jpeg(data: bytes, max_pixels: int, at_least: tuple[int, int] | None) -> np.ndarray | None:
    """(H, W, 3) uint8 of a sound JPEG in colour or grey that nothing has to be done to; None: it is for Pillow to read, or to refuse.

    Pillow parses a file's headers in Python, under its lock: 100 of the 120 us that a picture of 32 x 32 takes it.
    """
    if simplejpeg is None or not data.startswith(_JPEG) or _EXIF in data or _XMP in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > max_pixels or (at_least and _may_shrink(height, width, at_least)):
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # also for what a decoder could mend
        return None


def _may_shrink(height: int, width: int, at_least: tuple[int, int]) -> bool:
    """Else no power of two stays twice as large."""
    return height >= 4 * at_least[0] and width >= 4 * at_least[1]


def _open(data: bytes) -> Image.Image:
    """A JPEG goes to its reader without asking every other: that saves a tenth of the time of a small picture."""
    return JpegImageFile(io.BytesIO(data)) if data.startswith(_JPEG) else Image.open(io.BytesIO(data))


def size(data: bytes) -> tuple[int, int]:
    """Width and height of an image file as `decode` gives it, without decoding. BadSample for what is no image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except (*_BOMBS, *_DECODER_ERRORS) as error:
        raise BadSample(f"not a readable image ({len(data)} bytes): {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def _rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, own memory (np.array: torch may not write into Pillow's read-only buffer)."""
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
    """Greys wider than 8 bits: integers are 16-bit (what PNG, TIFF and PGM write), floats run from 0 to 1 (PFM)."""
    white = 1.0 if mode == "F" else 65535
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high <= white):  # also false for NaN
        raise BadSample(f"grey values from {low} to {high} in an image of mode {mode}; expected 0 to {white}")
    return np.rint(grey.astype(np.float64) * (255.0 / white)).astype(np.uint8)


def resize(image: torch.Tensor, height: int, width: int, *, mode: str = "bicubic") -> torch.Tensor:
    """Antialiased resize of uint8 (..., 3, H, W) to exactly (height, width), aspect ratio ignored. `mode`: bicubic or bilinear."""
    assert image.dtype == torch.uint8
    if image.shape[-2:] == (height, width):
        return image
    if image.dim() == 3:
        return F.interpolate(image[None], size=(height, width), mode=mode, antialias=True)[0]
    batch = image.reshape(-1, *image.shape[-3:])
    return F.interpolate(batch, size=(height, width), mode=mode, antialias=True).reshape(*image.shape[:-2], height, width)


def squeeze(pictures: Sequence[torch.Tensor], height: int, width: int, *, mode: str = "bicubic") -> torch.Tensor:
    """Pictures of any sizes to one batch (n, 3, height, width), aspect ratios ignored; all pictures of one size in one call."""
    alike: dict[torch.Size, list[int]] = {}
    for place, picture in enumerate(pictures):
        alike.setdefault(picture.shape, []).append(place)
    if alike.keys() == {(3, height, width)}:
        return torch.stack(list(pictures))
    out = torch.empty(len(pictures), 3, height, width, dtype=torch.uint8)
    for places in alike.values():
        rows = torch.stack([pictures[place].permute(1, 2, 0) for place in places])  # a plain copy: so decoded pixels lie
        resized = resize(rows.permute(0, 3, 1, 2), height, width, mode=mode)
        out[places if len(alike) > 1 else slice(None)] = resized
    return out


def crop(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """A window of the image; the window must lie inside."""
    assert 0 <= top <= image.shape[-2] - height
    assert 0 <= left <= image.shape[-1] - width
    return image[..., top : top + height, left : left + width]


def cover(image: torch.Tensor, height: int, width: int, *, mode: str = "bicubic", at: tuple[float, float] = (0.5, 0.5)) -> torch.Tensor:
    """Scale until (height, width) is covered, keeping the aspect ratio, and crop the rest at `at` (0, 0 top left; 1, 1 bottom right)."""
    h, w = image.shape[-2:]
    scale = max(height / h, width / w)
    high, wide = max(height, round(h * scale)), max(width, round(w * scale))
    return crop(resize(image, high, wide, mode=mode), round((high - height) * at[0]), round((wide - width) * at[1]), height, width)


def to_unit(image: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1]: black is exactly -1, white exactly 1."""
    return image.to(torch.float32).div_(127.5).sub_(1.0)


def from_unit(image: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_unit`, clamped and rounded to uint8."""
    return image.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
