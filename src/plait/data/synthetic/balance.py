"""Draw motions whose answer no single frame gives away: for each place that a frame shows, both answers are equally likely.

Objects move on a torus: what leaves the picture at one edge comes in at the opposite one, so that each frame's places are uniform. Answers
that depend on velocities alone ("which is faster?") are balanced by that. Others ("where will it be?") follow from velocity and place:
motions are kept with a probability that is a product of a factor per frame, cell and answer, found by iterative proportional fitting.
Lengths are shares of the picture's shorter side, times are frames, n motions are drawn at once.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from plait import keys
from plait.errors import PlaitError

Array = NDArray[np.float64]

ALONG = 0.4
"""Least share of a speed along the axis that is asked about."""
FASTER_BY = 1.4
"""Least ratio of two speeds that are compared."""
CLEAR = (0.85, 1.15)
"""A pair touches clearly below the first, and misses clearly above the second, of these shares of the sum of its radii."""

_POOL = 60_000  # motions that the factors are fitted to: some hundred for each cell and answer
_ROUNDS = 40
_LEAST = 0.002  # share of motions kept below which too few are left to call them drawn
_CHUNK = 160


@dataclass(frozen=True)
class Law:
    """What motions are drawn for. `task`: one of motion.TASKS; `frames` are shown, and the answer is about `ahead` more.

    `extent`: lengths of the torus, that of the asked axis first; `radius`: of every object; `speed`: slowest and fastest, per frame.
    `kept_out`: "speed", "direction" or both are kept out of training: the middle fifth of speeds, and directions within 15 degrees of a
    diagonal. `only`: the one of these which one object of each pair, for "where" the asked one, is drawn from; None: neither.
    """

    task: str
    frames: int
    ahead: int
    extent: tuple[float, float]
    radius: float
    speed: tuple[float, float]
    kept_out: tuple[str, ...]
    only: str | None = None


@dataclass(frozen=True)
class Motions:
    """Motions of pairs: `places` and `velocities` (n, 2 objects, 2 axes) at frame 0, and `answers` (n,), 0 or 1.

    Answer 1 is: the first object will be in the first half of the asked axis, or moves towards it; the pair will touch; the first object is
    the faster one.
    """

    places: Array
    velocities: Array
    answers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.answers)

    def at(self, frame: float, law: Law) -> Array:
        """Return the places (n, 2, 2) at `frame`."""
        moved: Array = (self.places + frame * self.velocities) % np.array(law.extent)
        return moved

    def take(self, rows: NDArray[np.int64]) -> "Motions":
        """Return the motions of these rows."""
        return Motions(self.places[rows], self.velocities[rows], self.answers[rows])


def draw(law: Law, rng: np.random.Generator) -> Motions:
    """Return one motion (n = 1). Raises PlaitError where no motion of this law hides its answer from single frames."""
    factors = _factors(law)
    while True:
        motions = _candidates(law, _CHUNK, rng)
        kept = np.flatnonzero(rng.random(len(motions)) < _weights(_cells(motions, law), motions.answers, factors))
        if len(kept):
            return motions.take(kept[:1])


def fit(law: Law) -> None:
    """Fit what `draw` needs, once for each law. Raises PlaitError where no motion of this law hides its answer from single frames."""
    _factors(law)


def velocities(law: Law, n: int, rng: np.random.Generator) -> Array:
    """Draw velocities (n, 2 axes) of this law's speeds and directions."""
    found = np.empty((0, 2))
    low, high = law.speed
    while len(found) < n:
        speed, angle = rng.uniform(low, high, 2 * n + 64), rng.uniform(0, 2 * np.pi, 2 * n + 64)
        velocity = speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        found = np.concatenate([found, velocity[_allowed(law, velocity)]])
    return found[:n]


def _allowed(law: Law, velocity: Array) -> NDArray[np.bool_]:
    """Return which velocities (n, 2) are of the law: outside of what it keeps out, or wholly inside of `only`."""
    low, high = law.speed
    share = (np.hypot(*velocity.T) - low) / max(high - low, 1e-9)
    diagonal = np.abs(np.degrees(np.arctan2(*np.abs(velocity.T))) - 45) < 15
    within = {"speed": np.abs(share - 0.5) < 0.1, "direction": diagonal}
    allowed = np.ones(len(velocity), dtype=bool)
    for name, inside in within.items():
        if name == law.only:
            allowed &= inside
        elif name in law.kept_out:
            allowed &= ~inside
    return allowed


def _candidates(law: Law, n: int, rng: np.random.Generator) -> Motions:
    """Draw up to n motions with an answer beyond doubt, before they are balanced."""
    places = rng.random((n, 2, 2)) * np.array(law.extent)
    moving = np.stack([velocities(law, n, rng), velocities(replace(law, only=None), n, rng)], 1)
    if law.task in ("touch", "faster"):
        moving = np.where((rng.random(n) < 0.5)[:, None, None], moving[:, ::-1], moving)
    motions = Motions(places, moving, np.zeros(n, dtype=np.int64))
    last = law.frames - 1
    if law.task == "where":
        length = law.extent[0]
        then = motions.at(last + law.ahead, law)[:, 0, 0]
        margin = max(0.08 * length, law.radius)
        clear, answers = np.abs(then % (length / 2) - length / 4) < length / 4 - margin, then < length / 2
    elif law.task == "direction":
        along, speeds = moving[:, 0, 0], np.hypot(moving[:, 0, 0], moving[:, 0, 1])
        clear, answers = np.abs(along) > ALONG * speeds, along < 0
    elif law.task == "faster":
        speeds = np.hypot(moving[..., 0], moving[..., 1])
        clear, answers = speeds.max(1) > FASTER_BY * speeds.min(1), speeds[:, 0] > speeds[:, 1]
    else:
        apart = _apart(motions.at(last, law), law)
        nearest = nearest_of(apart, moving[:, 1] - moving[:, 0], law.ahead, law.extent) / (2 * law.radius)
        now = np.hypot(apart[:, 0], apart[:, 1]) / (2 * law.radius)
        clear, answers = (now > CLEAR[1]) & ((nearest < CLEAR[0]) | (nearest > CLEAR[1])), nearest < 1
    return Motions(places, moving, answers.astype(np.int64)).take(np.flatnonzero(clear))


def nearest_of(apart: Array, relative: Array, frames: int, extent: tuple[float, float]) -> Array:
    """Return the least distance (n,) of pairs within `frames` frames, which begin `apart` (n, 2) and move by `relative` per frame.

    Exact: the distance of a segment from the origin and its images on the torus, frame by frame, for less than half an extent per frame.
    """
    sides = np.array(extent)
    images = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]) * sides
    squared = np.maximum((relative**2).sum(-1), 1e-12)
    least = np.full(len(apart), np.inf)
    for frame in range(frames):
        start = (apart + frame * relative + sides / 2) % sides - sides / 2
        offsets = start - images[:, None]  # (9, n, 2)
        times = np.clip(-(offsets * relative).sum(-1) / squared, 0, 1)
        least = np.minimum(least, np.sqrt(((offsets + times[..., None] * relative) ** 2).sum(-1)).min(0))
    return least


def _apart(places: Array, law: Law) -> Array:
    """Return the shortest way (n, 2) from the first object to the second on the torus."""
    sides = np.array(law.extent)
    way: Array = (places[:, 1] - places[:, 0] + sides / 2) % sides - sides / 2
    return way


def _cells(motions: Motions, law: Law) -> NDArray[np.int64]:
    """Return the cell (frames, n) of each frame: what it tells of the answer. One cell for all where a frame tells nothing."""
    if law.task in ("faster", "direction"):
        return np.zeros((law.frames, len(motions)), dtype=np.int64)
    rows = []
    for frame in range(law.frames):
        places = motions.at(frame, law)
        if law.task == "where":
            rows.append((places[:, 0, 0] / law.extent[0] * 32).astype(np.int64) % 32)
        else:  # mirrored pairs touch alike: the distances along both axes, in eighths of half an extent
            eighths = np.minimum((np.abs(_apart(places, law)) / np.array(law.extent) * 16).astype(np.int64), 7)
            rows.append(eighths[:, 0] * 8 + eighths[:, 1])
    return np.stack(rows)


def _weights(cells: NDArray[np.int64], answers: NDArray[np.int64], factors: Array) -> Array:
    """Return the product over frames of each motion's factors, (n,). `factors`: (frames, cells, 2 answers)."""
    weights: Array = np.prod([factor[cell, answers] for factor, cell in zip(factors, cells, strict=True)], axis=0)
    return weights


@lru_cache(maxsize=256)
def _factors(law: Law) -> Array:
    """Fit the factors (frames, cells, 2 answers) that make both answers equally frequent in every cell of every frame.

    Their product is at most 1 on the motions they are fitted to. Raises PlaitError where less than 0.2 % of the motions would be left.
    """
    motions = _candidates(law, _POOL, keys.rng("balance", law.task, law.frames, law.ahead))
    cells, answers = _cells(motions, law), motions.answers
    factors = np.ones((law.frames, 64, 2))
    weights = np.ones(len(motions))
    for _ in range(_ROUNDS if len(motions) else 0):
        for frame, cell in enumerate(cells):
            totals = np.bincount(2 * cell + answers, weights, 128).reshape(64, 2)
            change = np.divide(totals.min(1, keepdims=True), totals, out=np.zeros_like(totals), where=totals > 0)
            factors[frame] *= change
            weights *= change[cell, answers]
        if weights.max() > 0:
            factors[0] /= weights.max()
            weights /= weights.max()
    if not len(motions) or weights.mean() < _LEAST:
        raise PlaitError(
            f"scenes: frames: no motion hides the answer of '{law.task}' from single frames with {law.frames} frames, {law.ahead} more and "
            f"speeds of {law.speed[0]:g} to {law.speed[1]:g}; raise the highest speed or the horizon, or take fewer frames"
        )
    return factors
