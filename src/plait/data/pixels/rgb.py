"""Pixels of a picture that Pillow has opened, as image_files.py gives those of a file. Exports hold copies: it imports nothing of plait."""

import numpy as np
from PIL import Image, ImageOps

_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of a picture as training has them, uint8 RGB (H, W, 3).

    It is upright and over white, and greys of 16 bits are scaled to 8. Raises ValueError for greys outside of their range.
    """
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        grey, white = np.array(image), 1.0 if mode == "F" else 65535
        if not (grey.min() >= 0 and grey.max() <= white):  # also false for NaN
            raise ValueError(f"grey values from {grey.min()} to {grey.max()} in an image of mode {mode}; expected 0 to {white}")
        return np.repeat(np.rint(grey.astype(np.float64) * (255.0 / white)).astype(np.uint8)[:, :, None], 3, axis=2)
    if mode in _WITH_ALPHA or "transparency" in image.info:
        pixels = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", pixels.size, (255, 255, 255, 255)), pixels)
    return np.array(image.convert("RGB"))
