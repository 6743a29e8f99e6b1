"""Image tensors: decoding, resizing and cropping of uint8 RGB, and the map to [-1, 1].

What an encoded file becomes (rotation, transparency, 16-bit greys, damage) is in image_files.py.
Shapes: C channels = 3, H height, W width in pixels.
"""

import torch

from plait.data import resizing
from plait.data.image_files import MAX_PIXELS, decode_rgb

resize = resizing.resize


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None) -> torch.Tensor:
    """Decode one encoded image file to uint8 RGB (3, H, W), upright. Raises BadSample if it is damaged or over `max_pixels` pixels.

    `at_least` (height, width): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if it stays at least twice that large.
    """
    return torch.from_numpy(decode_rgb(data, max_pixels=max_pixels, at_least=at_least).transpose(2, 0, 1))


def crop(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """Return the window of `image` (..., H, W) with top left corner (top, left), as a view. It must lie inside the image."""
    assert 0 <= top <= image.shape[-2] - height
    assert 0 <= left <= image.shape[-1] - width
    return image[..., top : top + height, left : left + width]


def to_unit(image: torch.Tensor) -> torch.Tensor:
    """Convert a uint8 tensor of any shape to float32 in [-1, 1]: 0 becomes exactly -1, 255 exactly 1."""
    return image.to(torch.float32).div_(127.5).sub_(1.0)


def from_unit(image: torch.Tensor) -> torch.Tensor:
    """Convert floats in [-1, 1] back to uint8: the inverse of `to_unit`, rounded and clamped."""
    return image.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
