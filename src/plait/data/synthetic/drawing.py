"""Draw a scene at any frame: soft background, shadows, shaded bodies, thin outlines; anti-aliased by supersampled masks.

Only the looks are decided here: scenes.py decides what is in a scene, questions.py its texts.
Outlines are polygons in a unit circle whose centroid is the origin, so an object's (x, y) is also the centre of its pixels.
"""

import io
import math
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from plait.data.synthetic.lexicon import COLOURS, Rgb
from plait.data.synthetic.physics import Scene, SceneObject

DRAWING = 1
"""Raised whenever the pixels of a scene change: part of the source's fingerprint, so that old caches are not used."""

_RIM = 0.075  # width of the outline, as a share of the radius
_SHADOW = (0.10, 0.20, 0.13, 0.36)  # right, down, blur (all as shares of the radius), opacity
_TRAIL = ((8, 0.08), (6, 0.13), (4, 0.20), (2, 0.30))  # (frames ago, opacity), oldest first
_LIGHT_MAP_PX = 64
_SCREEN = (128, 132, 140)


def render(scene: Scene, frame: float = 0, *, supersample: int = 3, trails: bool = False) -> Image.Image:
    """Return an RGB image of a scene at `frame`. `supersample`: samples per pixel side; `trails`: add faded copies of earlier frames."""
    canvas = _background(scene)
    if trails:
        for obj in scene.objects:
            for ago, opacity in _TRAIL:
                for centre in _centres(scene, obj, frame - ago):
                    _stamp(canvas, obj, centre, supersample, opacity=opacity)
    for obj in scene.objects:
        for centre in _centres(scene, obj, frame):
            _stamp(canvas, obj, centre, supersample)
    if scene.screen:
        left, top, right, bottom = map(round, scene.screen)
        canvas.paste(_SCREEN, (left, top, right, bottom))
    return canvas


def _centres(scene: Scene, obj: SceneObject, frame: float) -> list[tuple[float, float]]:
    """Return where an object is drawn: at its centre, and where the scene wraps also beyond each edge that it reaches over."""
    x, y = scene.centre(obj, frame)
    if not scene.wraps:
        return [(x, y)]
    reach = 1.5 * obj.radius  # with its shadow
    across = [x + shift for shift in (0, -scene.width, scene.width) if -reach < x + shift < scene.width + reach]
    down = [y + shift for shift in (0, -scene.height, scene.height) if -reach < y + shift < scene.height + reach]
    return [(u, v) for u in across for v in down]


def encode(picture: Image.Image, form: Literal["png", "jpeg"]) -> bytes:
    """Return the picture as the bytes of a file. PNG is exact; JPEG (quality 92, full chroma) is smaller and slightly blurred."""
    file = io.BytesIO()
    if form == "png":
        picture.save(file, "PNG", compress_level=1)
    else:
        picture.save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def _background(scene: Scene) -> Image.Image:
    """Draw the linear gradient between the two background colours along its angle, corner to corner."""
    first, second, angle = scene.background
    across, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = (np.arange(scene.width, dtype=np.float32) + 0.5) / scene.width - 0.5
    y = (np.arange(scene.height, dtype=np.float32) + 0.5) / scene.height - 0.5
    blend = (across * x[None, :] + down * y[:, None]) / (abs(across) + abs(down)) + 0.5
    start, change = np.array(first, np.float32), np.array(second, np.float32) - np.array(first, np.float32)
    return Image.fromarray((start + 0.5 + blend[:, :, None] * change).astype(np.uint8))


def _stamp(canvas: Image.Image, obj: SceneObject, centre: tuple[float, float], scale: int, opacity: float = 1.0) -> None:
    """Draw one object on the canvas with its middle at `centre`; below opacity 1 as a flat copy without shadow or rim."""
    right, down, blur, dark = _SHADOW
    blur_px = blur * obj.radius
    half = math.ceil(obj.radius + 2 + (0 if opacity < 1 else 2.5 * blur_px))
    left, top = math.floor(centre[0]) - half, math.floor(centre[1]) - half
    middle = (centre[0] - left, centre[1] - top)
    colour = COLOURS[obj.colour]
    outer = _mask(obj, 0.0, 2 * half + 1, middle, scale)
    if opacity < 1:
        canvas.paste(colour, (left, top), outer.point(_faded(opacity)))
        return
    shade = outer.filter(ImageFilter.GaussianBlur(blur_px)).point(_faded(dark))
    canvas.paste((16, 18, 32), (left + round(right * obj.radius), top + round(down * obj.radius)), shade)
    canvas.paste(_mix(colour, (0, 0, 0), 0.42), (left, top), outer)
    body = Image.composite(
        Image.new("RGB", outer.size, _mix(colour, (0, 0, 0), 0.13)),
        Image.new("RGB", outer.size, _mix(colour, (255, 255, 255), 0.26)),
        _light(2 * half + 1),
    )
    canvas.paste(body, (left, top), _mask(obj, _RIM, 2 * half + 1, middle, scale))


def _mask(obj: SceneObject, rim: float, side: int, middle: tuple[float, float], scale: int) -> Image.Image:
    """Return the coverage (0 to 255) of a side x side patch by the object's outline, moved inwards by `rim`."""
    big = Image.new("L", (side * scale, side * scale))
    pen = ImageDraw.Draw(big)
    angle = math.radians(obj.tilt)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) * (obj.radius * scale)
    shift = np.array(middle) * scale  # Pillow cuts corners down to integers that name pixel centres: the two halves of a pixel cancel
    for outline, ink in _outlines(obj.shape, rim):
        pen.polygon((outline @ turn + shift).ravel().tolist(), fill=ink)
    return big.reduce(scale) if scale > 1 else big


@cache
def _outlines(shape: str, rim: float) -> tuple[tuple[np.ndarray, int], ...]:
    """Return the polygons of a shape with their fill (255, or 0 for a hole), each moved `rim` into the shape's body."""
    if shape == "ring":
        return (_inset(_circle(0.94), rim), 255), (_inset(_circle(0.50), -rim), 0)
    return ((_inset(_polygon(shape), rim), 255),)


def _polygon(shape: str) -> np.ndarray:
    """Return corners (n, 2) inside the unit circle, clockwise on the screen, with the centroid at the origin."""
    if shape == "circle":
        return _circle(0.92)
    if shape == "heart":
        side = np.linspace(0.5, math.pi - 0.6, 33)  # no points crowd the notch and the tip, where an inset would fold over itself
        t = np.concatenate([[0.0], side, [math.pi], 2 * math.pi - side[::-1]])
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return _normalised(np.stack([x, y], 1), 0.98)
    if shape == "cross":
        arm = 0.32
        top, quarter_turn = np.array([(-arm, -1), (arm, -1), (arm, -arm)]), np.array([(0, 1), (-1, 0)])
        return _normalised(np.concatenate([top @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)]), 1.0)
    corners, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (5, 0.47), "hexagon": (6, 1.0)}[shape]
    steps = corners if inner == 1.0 else 2 * corners
    angles = -math.pi / 2 + 2 * math.pi * np.arange(steps) / steps + (math.pi / 4 if shape == "square" else 0.0)
    reach = np.where(np.arange(steps) % 2 == 0, 1.0, inner)
    return _normalised(np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None], 0.97 if shape == "hexagon" else 1.0)


def _circle(radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, 97)[:-1]
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _normalised(points: np.ndarray, radius: float) -> np.ndarray:
    """Move a polygon's centroid (by the shoelace formula) to the origin, and scale its farthest corner to `radius`."""
    successors = np.roll(points, -1, 0)
    doubled_areas = points[:, 0] * successors[:, 1] - successors[:, 0] * points[:, 1]
    centred: np.ndarray = points - ((points + successors) * doubled_areas[:, None]).sum(0) / (3 * doubled_areas.sum())
    scaled: np.ndarray = centred * (radius / np.linalg.norm(centred, axis=1).max())
    return scaled


def _inset(points: np.ndarray, distance: float) -> np.ndarray:
    """Move every edge of a clockwise polygon inwards by `distance` (outwards when negative); corners are the new intersections."""
    edges = np.roll(points, -1, 0) - points
    edges = edges / np.linalg.norm(edges, axis=1, keepdims=True)
    after = np.stack([edges[:, 1], -edges[:, 0]], 1)  # outward normal of the edge that leaves the corner (y runs down)
    before = np.roll(after, 1, 0)
    moved: np.ndarray = points - distance * (before + after) / (1 + (before * after).sum(1, keepdims=True))
    return moved


@cache
def _faded(opacity: float) -> list[int]:
    """Return the lookup table that multiplies a mask by `opacity`."""
    return [round(value * opacity) for value in range(256)]


@cache
def _light(side: int) -> Image.Image:
    """Return the distance of each pixel of a patch from a light at the top left: 0 near, 255 far."""
    grid = (np.arange(_LIGHT_MAP_PX) + 0.5) / _LIGHT_MAP_PX
    distance = np.hypot(grid[None, :] - 0.30, grid[:, None] - 0.26) / 0.62
    return Image.fromarray((255 * np.clip(distance, 0, 1)).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)


def _mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """Blend `share` of `second` into `first`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
