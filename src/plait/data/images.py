"""Image tensors: decoding and resizing of uint8 RGB, and the map to [-1, 1].

What an encoded file becomes (rotation, transparency, 16-bit greys, damage) is in image_files.py.
Shapes: C channels = 3, H height, W width in pixels.
"""

from collections.abc import Sequence

import torch

from plait.data import resizing
from plait.data.image_files import MAX_PIXELS, decode_rgb
from plait.data.memory import tensors

resize = resizing.resize


def resize_all(pictures: Sequence[torch.Tensor], height: int, width: int, *, mode: str = "bicubic") -> torch.Tensor:
    """Return what `resizing.resize_all` does, in memory that is used again."""
    return resizing.resize_all(pictures, height, width, mode=mode, out=tensors.empty((len(pictures), 3, height, width), torch.uint8))


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None) -> torch.Tensor:
    """Decode one encoded image file to uint8 RGB (3, H, W), upright. Raises BadSample if it is damaged or over `max_pixels` pixels.

    `at_least` (height, width): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if it stays at least twice that large.
    """
    return torch.from_numpy(decode_rgb(data, max_pixels=max_pixels, at_least=at_least).transpose(2, 0, 1))


def to_unit(image: torch.Tensor) -> torch.Tensor:
    """Convert a uint8 tensor of any shape to float32 in [-1, 1]: 0 becomes exactly -1, 255 exactly 1."""
    unit = tensors.empty(image.shape, torch.float32).copy_(image)
    return torch.sub(torch.div(unit, 127.5, out=unit), 1.0, out=unit)
