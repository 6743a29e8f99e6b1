"""Resize images by torch's antialiased uint8 kernel: seven times Pillow's speed, within 2/255 of it. Imports nothing of plait."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

MOST_AREA = 8
"""How many times the area of its result may be in memory on the way to it; longer images take another way (lines of 2 x 30000 pixels)."""


def resize(image: torch.Tensor, height: int, width: int, *, mode: str = "bicubic") -> torch.Tensor:
    """Resize uint8 (..., 3, H, W) to exactly (height, width) with antialiasing, ignoring the aspect ratio. `mode`: bicubic or bilinear."""
    assert image.dtype == torch.uint8
    h, w = image.shape[-2:]
    if (h, w) == (height, width):
        return image
    if h > MOST_AREA * height and w < width:  # a high line: shrunk first, since the kernel widens it before
        return resize(resize(image, height, w, mode=mode), height, width, mode=mode)
    if image.dim() == 3:
        return F.interpolate(image[None], size=(height, width), mode=mode, antialias=True)[0]
    if image.dim() == 4:
        return F.interpolate(image, size=(height, width), mode=mode, antialias=True)
    batch = image.reshape(-1, *image.shape[-3:])
    return F.interpolate(batch, size=(height, width), mode=mode, antialias=True).reshape(*image.shape[:-2], height, width)


def resize_all(
    pictures: Sequence[torch.Tensor], height: int, width: int, *, mode: str = "bicubic", out: torch.Tensor | None = None
) -> torch.Tensor:
    """Resize uint8 images (3, H, W) to a batch (n, 3, height, width), antialiased, ignoring aspect. `mode`: bicubic or bilinear.

    `out`: the memory of that batch, which is returned; None: new memory.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for position, image in enumerate(pictures):
        by_shape.setdefault(image.shape, []).append(position)
    batch = torch.empty(len(pictures), 3, height, width, dtype=torch.uint8) if out is None else out
    if by_shape.keys() == {(3, height, width)}:
        return torch.stack(list(pictures), out=batch)
    for positions in by_shape.values():
        alike = [pictures[position] for position in positions]
        h, w = alike[0].shape[1:]
        stacked = torch.empty_strided((len(alike), 3, h, w), (h * w * 3, 1, w * 3, 3), dtype=torch.uint8)  # as decoded: a plain copy
        resized = resize(torch.stack(alike, out=stacked), height, width, mode=mode)
        batch[positions if len(by_shape) > 1 else slice(None)] = resized
    return batch
