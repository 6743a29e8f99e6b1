"""Crop pictures of any size to one size, which they cover without distortion.

An export holds a copy of this code.
Shapes: C channels = 3, H height, W width in pixels. `mode`: the interpolation, "bicubic" or "bilinear".
"""

import numpy as np
import torch
from PIL import Image

from plait.data.resizing import MOST_AREA, resize


def cover(image: torch.Tensor, height: int, width: int, *, mode: str = "bicubic", at: tuple[float, float] = (0.5, 0.5)) -> torch.Tensor:
    """Resize and crop uint8 (3, H, W) undistorted. `at`: share (0 to 1) of the surplus cut off (above, left). `mode`: as `resize`."""
    h, w = image.shape[-2:]
    scale = max(height / h, width / w)
    high, wide = max(height, round(h * scale)), max(width, round(w * scale))
    if high * wide > MOST_AREA * height * width:
        x, y = (wide - width) * at[1] / scale, (high - height) * at[0] / scale
        return _resized_window(image, (x, y, min(w, x + width / scale), min(h, y + height / scale)), height, width, mode)
    above, left = round((high - height) * at[0]), round((wide - width) * at[1])
    return resize(image, high, wide, mode=mode)[..., above : above + height, left : left + width]


def _resized_window(image: torch.Tensor, box: tuple[float, float, float, float], height: int, width: int, mode: str) -> torch.Tensor:
    """Resize the part `box` (left, top, right, bottom, in pixels) of an image (3, H, W) to (height, width), without the rest.

    Scaling a line of 2 x 30000 pixels until it covers 512 x 512 takes 11.8 GB, of which one part in 15,000 is kept.
    """
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), filters[mode], box)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
