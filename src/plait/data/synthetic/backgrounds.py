"""Draw the backgrounds of scenes: two colours of neighbouring hue, pale or dark, on which the colours of objects stand out."""

import math

import numpy as np

Background = tuple[tuple[int, int, int], tuple[int, int, int], float]
"""Two RGB colours and the angle of the gradient between them, in degrees."""


def draw_background(rng: np.random.Generator, style: str) -> Background:
    """Draw two colours of neighbouring hue, pale or dark, or plain white, and the angle of the gradient between them.

    `style`: "light", "dark", "mixed" (dark in 35 % of draws) or "white". Returns (first RGB, second RGB, angle): whole numbers from 0 to
    255, and degrees from 0 to below 360 (0 of white).
    """
    angle, dark = 360 * rng.random(), rng.random() < 0.35
    if style == "white":
        return (255, 255, 255), (255, 255, 255), 0.0
    if style != "mixed":
        dark = style == "dark"
    hue, turn = rng.random(), 0.25 * (rng.random() - 0.5)
    levels = (0.27, 0.15) if dark else (0.97, 0.86)
    first, second = (_tone(hue + k * turn, 0.30 if dark else 0.09, level) for k, level in enumerate(levels))
    return first, second, angle


def _tone(hue: float, saturation: float, level: float) -> tuple[int, int, int]:
    """Return the RGB of a hue (1 is a full turn) on a smooth cosine wheel. No colour of an object lies on it."""
    red, green, blue = (
        round(255 * level * (1 - saturation * (0.5 - 0.5 * math.cos(2 * math.pi * (hue - third / 3))))) for third in range(3)
    )
    return red, green, blue
