"""Tell the format of a picture's file by its content, and encode pictures anew, scaled down where that is asked for."""

import io
from typing import Literal

from PIL import Image

from plait.data import image_files
from plait.data.formats.pictures.image_metadata import JPEG
from plait.data.formats.pictures.png import PNG

Kind = Literal["jpg", "webp", "png"]
"""The formats that pictures are encoded in anew, by the endings of their names."""
_FORMATS = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}
_ENDINGS = {"TIFF": "tif", "JPEG2000": "jp2"}


def kind(body: bytes) -> str:
    """Return the ending of the name of a picture's file, by its content, which must be a picture."""
    if body.startswith((JPEG, PNG)):  # also with damaged metadata, which Pillow would refuse
        return "jpg" if body.startswith(JPEG) else "png"
    with Image.open(io.BytesIO(body), formats=image_files.FORMATS) as image:
        name = str(image.format)
    return _ENDINGS.get(name, name.lower())


def encode(
    body: bytes, ending: Kind, quality: int, *, side: int | None = None, max_pixels: int = image_files.MAX_PIXELS
) -> tuple[bytes, tuple[int, int]]:
    """Return a picture encoded anew, upright, with no side longer than `side` pixels (None: not scaled), and its (width, height).

    `quality`: of JPEG and WebP, 1 to 100. Raises BadSample for what is no picture, is damaged, or has more than `max_pixels` pixels.
    """
    pixels = image_files.decode_rgb(body, max_pixels=max_pixels, at_least=None if side is None else (side, side))
    width, height = image_files.size(body)
    factor = 1.0 if side is None else min(1.0, side / max(width, height))
    width, height = max(1, round(width * factor)), max(1, round(height * factor))
    image, file = Image.fromarray(pixels), io.BytesIO()
    scaled = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
    scaled.save(file, _FORMATS[ending], quality=quality)
    return file.getvalue(), (width, height)
