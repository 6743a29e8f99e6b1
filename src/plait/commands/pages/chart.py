"""Lay out a line chart in pixels: curves over steps, with ticks, marks and a key. A template draws it as SVG.

Nothing is drawn here. Colours are numbers of a palette that report.css defines for light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from plait.commands.pages import axes, thinning
from plait.commands.pages.axes import Axis, number
from plait.commands.pages.thinning import Points
from plait.errors import printable

COLOURS = 8
"""Colours of the palette; further lines take them again, dashed."""
_SMOOTHED_FROM = 60
"""Points from which a noisy curve has its mean drawn over it."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 24
SMALL, WIDE = (360, 196), (1180, 300)
"""Width and height of a chart: of several beside each other, and of one alone."""
_ASIDE = 1.8
"""Pixels between the intervals of two lines at one step."""
_STAGE_LETTERS = 6.5
"""Pixels that a letter of a stage's name takes."""


@dataclass(frozen=True)
class Line:
    """One curve. `noisy`: draw its mean over what it spans; `marks`: a dot at each point; `intervals`: {x: (low, high)}, drawn as bars.

    `colour`: its number in the palette, None: its place among the chart's lines.
    """

    name: str
    points: Points
    noisy: bool = False
    marks: bool = False
    intervals: dict[float, tuple[float, float]] = field(default_factory=dict)
    colour: int | None = None


@dataclass(frozen=True)
class Chart:
    """Curves over steps. `unit`: what y is in, "" for a figure without one; `log`: None: where the values ask for it."""

    title: str
    lines: Sequence[Line]
    unit: str = ""
    log: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Frame:
    """What all charts of a run share: the last step, and where stages (step, name) and further starts (step, text) begin."""

    last: float
    stages: Sequence[tuple[float, str]] = ()
    starts: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Drawn:
    """A curve in pixels. `path`, `band`: SVG path data, "" where there is none; `colour`: of the palette; `dashed`: used a second time.

    `dots`: (x, y) with the text of each; `bars`: (x, y of the low end, y of the high end). `last`: its last value, as text.
    """

    name: str
    colour: int
    dashed: bool
    path: str
    raw: str
    band: str
    dots: Sequence[tuple[float, float, str]]
    bars: Sequence[tuple[float, float, float]]
    last: str


@dataclass(frozen=True)
class Drawing:
    """A chart in pixels, for the template. `lost`: (x, text) of each value that is not finite; `note`: a sentence below the title."""

    title: str
    unit: str
    note: str
    width: int
    height: int
    x_axis: Axis
    y_axis: Axis
    lines: Sequence[Drawn]
    stages: Sequence[tuple[float, str]]
    starts: Sequence[tuple[float, str]]
    lost: Sequence[tuple[float, str]]
    label: str


def draw(chart: Chart, frame: Frame, size: tuple[int, int] = SMALL) -> Drawing | None:
    """Lay a chart out; None where it has no finite value. The smallest and the largest value of each column of pixels are kept."""
    finite = [[(x, y) for x, y in line.points if math.isfinite(y)] for line in chart.lines]
    values = [y for points in finite for _, y in points]
    values += [end for line in chart.lines for pair in line.intervals.values() for end in pair]
    if not values:
        return None
    width, height = size
    x_axis = axes.linear(0, max(frame.last, 1), _LEFT, width - _RIGHT, most=max(3, width // 90), room=False)
    y_axis = axes.of_values(values, height - _BOTTOM, _TOP, log=chart.log)
    lost = {x: f"{line.name} at step {x:,.0f}: {y}" for line in chart.lines for x, y in line.points if not math.isfinite(y)}
    pairs = [(i, line, points) for i, (line, points) in enumerate(zip(chart.lines, finite, strict=True)) if points]
    begins = [step for step, _ in frame.stages]
    drawn = [_line(line, points, i, (x_axis, y_axis), begins, aside=_ASIDE * (i - (len(chart.lines) - 1) / 2)) for i, line, points in pairs]
    return Drawing(
        title=printable(chart.title),
        unit=chart.unit,
        note=_note(chart, finite, y_axis, len(lost)),
        width=width,
        height=height,
        x_axis=x_axis,
        y_axis=y_axis,
        lines=drawn,
        stages=_stage_marks(frame, x_axis),
        starts=[(x_axis.at(x), text) for x, text in frame.starts],
        lost=[(x_axis.at(x), text) for x, text in lost.items()],
        label=f"{printable(chart.title)}: " + ", ".join(f"{line.name} ends at {line.last}" for line in drawn),
    )


def _line(line: Line, points: Points, place: int, scales: tuple[Axis, Axis], begins: Sequence[float], *, aside: float) -> Drawn:
    """Lay out one curve of a chart, its `points` those that are finite.

    `begins`: the steps at which stages begin; `aside`: pixels by which its intervals stand beside the step.
    """
    x_axis, y_axis = scales
    columns = int(x_axis.end - x_axis.start)
    smoothed = line.noisy and len(points) >= _SMOOTHED_FROM
    crowded = len(points) > 2 * columns
    shown = thinning.smooth(points, window_of(len(points)), begins) if smoothed else points
    spans = thinning.bands(points, columns) if smoothed and crowded else []
    corners = [(span.x, span.high) for span in spans] + [(span.x, span.low) for span in reversed(spans)]
    marks = line.marks or len(points) == 1
    colour = place if line.colour is None else line.colour
    return Drawn(
        name=printable(line.name),
        colour=colour % COLOURS,
        dashed=colour >= COLOURS,
        path=_path(thinning.thin(shown, columns // 2 if smoothed else columns), x_axis, y_axis),
        raw=_path(points, x_axis, y_axis) if smoothed and not crowded else "",
        band=_path(corners, x_axis, y_axis) + "z" if spans else "",
        dots=[(x_axis.at(x), y_axis.at(y), f"{line.name} at step {x:,.0f}: {number(y)}") for x, y in points] if marks else [],
        bars=[(round(x_axis.at(x) + aside, 1), y_axis.at(low), y_axis.at(high)) for x, (low, high) in line.intervals.items()],
        last=number(points[-1][1]),
    )


def window_of(count: int) -> int:
    """Return how many of `count` points the mean of a noisy curve is taken over: a fiftieth of them, an odd number."""
    return max(3, count // 50 // 2 * 2 + 1)


def _note(chart: Chart, finite: Sequence[Points], y_axis: Axis, lost: int) -> str:
    """Return what a reader has to know of a chart: its smoothing, a logarithmic axis, values that it cannot show."""
    smoothed = [
        window_of(len(points)) for line, points in zip(chart.lines, finite, strict=True) if line.noisy and len(points) >= _SMOOTHED_FROM
    ]
    told = [chart.note] if chart.note else []
    told += [f"line: mean of {max(smoothed)} records; pale: all of them"] if smoothed else []
    told += ["95 % intervals"] if any(line.intervals for line in chart.lines) else []
    told += ["logarithmic"] if y_axis.log else []
    told += ["0 stands at the lower edge"] if y_axis.log and any(y <= 0 for points in finite for _, y in points) else []
    told += [f"{lost} not finite, marked above"] if lost else []
    return "; ".join(told)


def _path(points: Points, x_axis: Axis, y_axis: Axis) -> str:
    """Return SVG path data through the points, "" for fewer than two: absolute for the first, relative after it, in tenths of a pixel."""
    if len(points) < 2:
        return ""
    pixels = [(round(10 * x_axis.at(x)), round(10 * y_axis.at(y))) for x, y in points]
    parts, (left, top) = [f"M{_tenth(pixels[0][0])} {_tenth(pixels[0][1])}l"], pixels[0]
    for x, y in pixels[1:]:
        parts.append(f"{_tenth(x - left)} {_tenth(y - top)} ")
        left, top = x, y
    return "".join(parts).rstrip()


def _tenth(tenths: int) -> str:
    """Return tenths of a pixel as a short decimal number: -5 gives -.5, 20 gives 2."""
    return f"{tenths / 10:g}".replace("0.", ".", 1) if abs(tenths) < 10 else f"{tenths / 10:g}"


def _stage_marks(frame: Frame, x_axis: Axis) -> list[tuple[float, str]]:
    """Return where each stage begins, with as much of its name as there is room for."""
    starts = [x_axis.at(step) for step, _ in frame.stages]
    rooms = [after - own for own, after in zip(starts, [*starts[1:], x_axis.end], strict=False)]
    names = [name for _, name in frame.stages]
    return [(at, name if len(name) * _STAGE_LETTERS < room else "") for at, name, room in zip(starts, names, rooms, strict=True)]
