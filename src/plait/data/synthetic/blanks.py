"""Blank pictures, in place of drawn ones where their sizes alone are looked at."""

from functools import cache
from typing import Literal

from PIL import Image

from plait.data.synthetic.drawing import encode


@cache
def blank(width: int, height: int, form: Literal["png", "jpeg"]) -> bytes:
    """Return a black picture of a size in pixels as the bytes of a file, the same object each time."""
    return encode(Image.new("RGB", (width, height)), form)
