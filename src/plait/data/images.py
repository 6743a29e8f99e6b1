"""Image tensors: decoding, resizing and cropping of uint8 RGB, and the map to [-1, 1].

What an encoded file becomes (rotation, transparency, 16-bit greys, damage) is in image_files.py.
Shapes: C channels = 3, H height, W width in pixels. `mode`: the interpolation, "bicubic" or "bilinear".
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from plait.data import resizing
from plait.data.image_files import MAX_PIXELS, decode_rgb

resize = resizing.resize


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None) -> torch.Tensor:
    """Decode one encoded image file to uint8 RGB (3, H, W), upright. Raises BadSample if it is damaged or over `max_pixels` pixels.

    `at_least` (height, width): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if it stays at least twice that large.
    """
    return torch.from_numpy(decode_rgb(data, max_pixels=max_pixels, at_least=at_least).transpose(2, 0, 1))


def resize_all(pictures: Sequence[torch.Tensor], height: int, width: int, *, mode: str = "bicubic") -> torch.Tensor:
    """Resize uint8 images (3, H, W) to a batch (n, 3, height, width), antialiased, ignoring aspect. `mode`: bicubic or bilinear."""
    by_shape: dict[torch.Size, list[int]] = {}
    for position, image in enumerate(pictures):
        by_shape.setdefault(image.shape, []).append(position)
    if by_shape.keys() == {(3, height, width)}:
        return torch.stack(list(pictures))
    out = torch.empty(len(pictures), 3, height, width, dtype=torch.uint8)
    for positions in by_shape.values():
        stacked_HWC = torch.stack([pictures[position].permute(1, 2, 0) for position in positions])  # a plain copy: decoded memory is HWC
        resized = resize(stacked_HWC.permute(0, 3, 1, 2), height, width, mode=mode)
        out[positions if len(by_shape) > 1 else slice(None)] = resized
    return out


def crop(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """Return the window of `image` (..., H, W) with top left corner (top, left), as a view. It must lie inside the image."""
    assert 0 <= top <= image.shape[-2] - height
    assert 0 <= left <= image.shape[-1] - width
    return image[..., top : top + height, left : left + width]


def cover(image: torch.Tensor, height: int, width: int, *, mode: str = "bicubic", at: tuple[float, float] = (0.5, 0.5)) -> torch.Tensor:
    """Resize and crop uint8 (3, H, W) undistorted. `at`: share (0 to 1) of the surplus cut off (above, left). `mode`: as `resize_all`."""
    h, w = image.shape[-2:]
    scale = max(height / h, width / w)
    high, wide = max(height, round(h * scale)), max(width, round(w * scale))
    if high * wide > resizing.MOST_AREA * height * width:
        top, left = (high - height) * at[0] / scale, (wide - width) * at[1] / scale
        return _resized_window(image, (left, top, min(w, left + width / scale), min(h, top + height / scale)), height, width, mode)
    return crop(resize(image, high, wide, mode=mode), round((high - height) * at[0]), round((wide - width) * at[1]), height, width)


def _resized_window(image: torch.Tensor, box: tuple[float, float, float, float], height: int, width: int, mode: str) -> torch.Tensor:
    """Resize the part `box` (left, top, right, bottom, in pixels) of an image (3, H, W) to (height, width), without the rest.

    Scaling a line of 2 x 30000 pixels until it covers 512 x 512 takes 11.8 GB, of which one part in 15,000 is kept.
    """
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), filters[mode], box)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def to_unit(image: torch.Tensor) -> torch.Tensor:
    """Convert a uint8 tensor of any shape to float32 in [-1, 1]: 0 becomes exactly -1, 255 exactly 1."""
    return image.to(torch.float32).div_(127.5).sub_(1.0)


def from_unit(image: torch.Tensor) -> torch.Tensor:
    """Convert floats in [-1, 1] back to uint8: the inverse of `to_unit`, rounded and clamped."""
    return image.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
