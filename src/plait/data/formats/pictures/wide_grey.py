"""Scale grey pixels of more than 8 bits."""

import numpy as np

from plait.errors import BadSample


def wide_grey(grey: np.ndarray, mode: str) -> np.ndarray:
    """Scale greys wider than 8 bits to uint8. `mode`: Pillow's, "F" for floats from 0 to 1 (PFM), else 16-bit integers (PNG, TIFF, PGM).

    Raises BadSample for values outside that range.
    """
    white = 1.0 if mode == "F" else 65535
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high <= white):  # also false for NaN
        raise BadSample(f"grey values from {low} to {high} in an image of mode {mode}; expected 0 to {white}")
    return np.rint(grey.astype(np.float64) * (255.0 / white)).astype(np.uint8)
