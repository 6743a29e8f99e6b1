"""Scenes and their motion: objects that move in a box and bounce off its walls. Positions at any frame have a closed form.

It is not a simulator: nothing is integrated, objects pass through each other, and any frame, also before frame 0, is computed directly.
Walls reflect elastically, so a path is a straight line folded at the walls (method of images): a triangle wave of period 2 * span. In
scenes that wrap there are no walls: what leaves at one edge comes in at the opposite one.
Lengths are pixels, times are frames, x runs to the right and y runs down.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene at frame 0. It lies wholly within `radius` of its centre (x, y), in pixels, and moves by (vx, vy) per frame.

    `shape`, `colour`: words of lexicon.py; `size`: "small", "medium" or "large"; `tilt`: rotation of its outline only, in degrees.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    vx: float
    vy: float
    radius: float
    tilt: float = 0.0

    def centre(self, frame: float, width: int, height: int) -> tuple[float, float]:
        """Return the centre (x, y) at `frame`, which may be negative, between the walls of a picture of width x height pixels."""
        return (
            fold(self.x, self.vx, frame, self.radius, width - self.radius),
            fold(self.y, self.vy, frame, self.radius, height - self.radius),
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """The contents of a picture: its size in pixels, background and objects, back to front.

    `background`: two RGB colours and the angle of the gradient between them, in degrees. `wraps`: edges are joined to the opposite ones.
    `screen`: left, top, right and bottom, in pixels, of a bar before all objects; None: there is none.
    """

    width: int
    height: int
    background: tuple[tuple[int, int, int], tuple[int, int, int], float]
    objects: tuple[SceneObject, ...]
    wraps: bool = False
    screen: tuple[float, float, float, float] | None = None

    def centre(self, obj: SceneObject, frame: float) -> tuple[float, float]:
        """Return the centre (x, y) of one of its objects at `frame`, which may be negative."""
        if self.wraps:
            return (obj.x + frame * obj.vx) % self.width, (obj.y + frame * obj.vy) % self.height
        return obj.centre(frame, self.width, self.height)


def scene_of(fields: Mapping[str, Any]) -> Scene:
    """Return the scene that the `fields` of a sample of `Scenes` (`size`, `background`, `objects`, ...) describe, as for drawing it."""
    first, second, angle = fields["background"]
    objects = tuple(SceneObject(**values) for values in fields["objects"])
    width, height = fields["size"]
    screen = tuple(fields["screen"]) if fields.get("screen") else None
    return Scene(width, height, (tuple(first), tuple(second), angle), objects, fields.get("wraps", False), screen)


def fold(start: float, velocity: float, frame: float, low: float, high: float) -> float:
    """Return the position at `frame` of a point that starts at `start` and reflects at `low` and `high`. `velocity`: per frame."""
    span = high - low
    assert span > 0 and low <= start <= high, (start, low, high)
    phase = (start - low + velocity * frame) % (2 * span)
    return low + (phase if phase <= span else 2 * span - phase)
