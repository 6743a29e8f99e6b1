"""Pixels, measured from outside: where a shape's pixels lie, how far colours are apart, what a file gives back."""

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from plait.data.synthetic.drawing import encode, render
from plait.data.synthetic.lexicon import COLOURS, SHAPES
from plait.data.synthetic.physics import Scene, SceneObject

WHITE = ((255, 255, 255), (255, 255, 255), 0.0)


def centroid(picture: Image.Image) -> tuple[float, float]:
    """Middle of the saturated pixels (shadows and white are grey), weighted by saturation; pixel (0, 0) spans 0 to 1."""
    pixels = np.asarray(picture.convert("RGB"), np.float64)
    weight = pixels.max(2) - pixels.min(2)
    weight[weight < 40] = 0
    rows, columns = np.indices(weight.shape) + 0.5
    return float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())


def lab(rgb: tuple[int, int, int]) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour, by the definition."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(rgb) / 255])
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear / [0.9505, 1.0, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", [(40.0, 31.0), (33.3, 40.7)])
def test_shape_is_centred_on_its_position_and_inside_its_radius(shape: str, place: tuple[float, float]) -> None:
    scene = Scene(80, 72, WHITE, (SceneObject(shape, "red", "large", *place, 0, 0, 20.0, tilt=9.0),))
    picture = render(scene)
    # 0.4 px: the body is shaded from one corner to the other, which shifts the weights a little
    assert centroid(picture) == pytest.approx(place, abs=0.4)
    pixels = np.asarray(picture, np.int32)
    rows, columns = np.nonzero(pixels.max(2) - pixels.min(2) > 60)
    reach = np.hypot(columns + 0.5 - place[0], rows + 0.5 - place[1]).max()
    assert 17.5 < reach < 20.8, "the outline should come close to the radius and not pass it by a pixel"


def test_colours_are_far_apart_to_the_eye() -> None:
    closest = min((float(np.linalg.norm(lab(COLOURS[a]) - lab(COLOURS[b]))), a, b) for a, b in combinations(COLOURS, 2))
    assert closest[0] > 25, closest  # 2.3 is just noticeable


def test_shapes_have_different_silhouettes() -> None:
    masks = {
        s: np.asarray(render(Scene(48, 48, WHITE, (SceneObject(s, "blue", "large", x=24, y=24, vx=0, vy=0, radius=18),))), np.int32)
        for s in SHAPES
    }
    filled = {shape: picture.max(2) - picture.min(2) > 60 for shape, picture in masks.items()}
    overlap = {(a, b): (filled[a] & filled[b]).sum() / (filled[a] | filled[b]).sum() for a, b in combinations(SHAPES, 2)}
    worst = max(overlap, key=lambda pair: overlap[pair])
    assert overlap[worst] < 0.92, (worst, overlap[worst])  # the nearest pair: a hexagon and a circle


def test_supersampling_smooths_edges_without_moving_them() -> None:
    scene = Scene(64, 64, WHITE, (SceneObject("star", "green", "large", x=30.2, y=33.9, vx=0, vy=0, radius=18.0),))
    rough, smooth = render(scene, supersample=1), render(scene, supersample=4)
    assert centroid(smooth) == pytest.approx(centroid(rough), abs=0.3)
    tones = [len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) for picture in (rough, smooth)]
    assert tones[1] > 1.2 * tones[0], tones


def test_trails_lie_behind_the_motion() -> None:
    moving = SceneObject("circle", "red", "small", x=40, y=24, vx=3.0, vy=0.0, radius=8.0)
    scene = Scene(80, 48, WHITE, (moving,))
    with_trail, without = centroid(render(scene, trails=True)), centroid(render(scene))
    assert with_trail[0] < without[0] - 2
    assert with_trail[1] == pytest.approx(without[1], abs=0.3)


def test_png_is_exact_and_jpeg_is_close() -> None:
    picture = render(
        Scene(50, 40, ((200, 210, 250), (240, 220, 200), 30.0), (SceneObject("heart", "pink", "large", x=20, y=20, vx=0, vy=0, radius=12),))
    )
    png, jpeg = (np.asarray(Image.open(io.BytesIO(encode(picture, form))), np.int32) for form in ("png", "jpeg"))
    assert (png == np.asarray(picture)).all()
    assert 0 < np.abs(jpeg - np.asarray(picture)).mean() < 3
