"""Things that glide in a box and bounce off its walls: where each one is at any frame, in closed form.

It is not a simulator: nothing is integrated, things pass through each other, and any frame k, also before frame 0, costs the same.
A wall reflects elastically, so the path is the straight line folded at the walls (method of images): a triangle wave of period 2 * span.
Lengths are pixels, times are frames, x runs to the right and y runs down.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing at frame 0. It lies wholly within `radius` of its centre (x, y); `tilt` turns its outline and means nothing else."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    vx: float  # pixels per frame
    vy: float
    radius: float
    tilt: float = 0.0  # degrees

    def at(self, frame: float, width: int, height: int) -> tuple[float, float]:
        """The centre at `frame` (negative: before frame 0) in a box of width x height pixels."""
        return (
            fold(self.x, self.vx, frame, self.radius, width - self.radius),
            fold(self.y, self.vy, frame, self.radius, height - self.radius),
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's whole truth: the box, its background (two RGB tones and the angle between them, degrees), its things, back to front."""

    width: int
    height: int
    background: tuple[tuple[int, int, int], tuple[int, int, int], float]
    things: tuple[Thing, ...]


def scene_of(fields: Mapping[str, Any]) -> Scene:
    """The scene of a sample's fields, to draw it at any frame or to ask where its things will be."""
    first, second, angle = fields["background"]
    things = tuple(Thing(**thing) for thing in fields["objects"])
    width, height = fields["size"]
    return Scene(width, height, (tuple(first), tuple(second), angle), things)


def fold(start: float, velocity: float, frame: float, low: float, high: float) -> float:
    """Position at `frame` of a point that starts at `start` in [low, high] and reflects at both ends."""
    span = high - low
    assert span > 0 and low <= start <= high, (start, low, high)
    way = (start - low + velocity * frame) % (2 * span)
    return low + (way if way <= span else 2 * span - way)
