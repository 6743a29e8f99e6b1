"""Points in text, such as `<point x="10.5" y="20.0" alt="cat">cat</point>`: written, parsed from a model's answers, and scored.

A point is (x, y) in percent of the image's width and height. A label is what is pointed at.
"""

import re
from collections.abc import Callable, Sequence

from plait.errors import BadSample

NONE = "There are none."
Point = tuple[float, float]

_TAG = re.compile(r"<points?\b([^>]*)>?")
_COORDINATE = re.compile(r"\b([xy])(\d*)\s*=\s*[\"']?\s*(-?\d+(?:\.\d+)?)")
_TOTAL = re.compile(r"\btotal of (\d+)\b")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER = {word: number for number, word in enumerate(WORDS)} | {"none": 0, "no": 0}


def percent(x: float, y: float, width: float, height: float) -> Point:
    """Convert a point in pixels to percentages of the image's width and height."""
    return 100 * x / width, 100 * y / height


def write(points: Sequence[Point], label: str, alt: str | None = None) -> str:
    """Return points as text: one as `<point ..>`, several from left to right as `<points x1=.. y1=..>`, none as "There are none.".

    Coordinates get one decimal. `label`: the tag's text; `alt`: its attribute; None: the label. Raises BadSample for one outside 0 to 100.
    """
    outside = [point for point in points if not all(0 <= value <= 100 for value in point)]
    if outside:
        raise BadSample(f"the point {outside[0]} of {label!r} is outside the image: x and y are percentages from 0 to 100")
    if not points:
        return NONE
    rounded = sorted((round(x, 1), round(y, 1)) for x, y in points)
    alt = (label if alt is None else alt).replace('"', "'")
    if len(rounded) == 1:
        return f'<point x="{rounded[0][0]:.1f}" y="{rounded[0][1]:.1f}" alt="{alt}">{label}</point>'
    numbered = " ".join(f'x{i}="{x:.1f}" y{i}="{y:.1f}"' for i, (x, y) in enumerate(rounded, start=1))
    return f'<points {numbered} alt="{alt}">{label}</points>'


def write_count(points: Sequence[Point], label: str) -> str:
    """Return "Counting the <points ..> shows a total of 3.", or "There are none.". `label`: what is counted, the tag's text.

    Raises BadSample for a coordinate outside 0 to 100.
    """
    return f"Counting the {write(points, label)} shows a total of {len(points)}." if points else NONE


def read(text: str) -> list[Point]:
    """Return all points in a text's `<point>` and `<points>` tags, in order. An x without y, or one outside 0 to 100, is left out."""
    points: list[Point] = []
    for tag in _TAG.findall(text):
        coordinates: dict[str, dict[str, float]] = {}
        for axis, number, value in _COORDINATE.findall(re.sub(r"\balt\s*=.*", "", tag, flags=re.DOTALL)):
            coordinates.setdefault(number, {}).setdefault(axis, float(value))
        points += [(p["x"], p["y"]) for p in coordinates.values() if len(p) == 2 and all(0 <= value <= 100 for value in p.values())]
    return points


def read_count(text: str) -> int | None:
    """Return the count in a text: N of "total of N", else its number of points, else its only number, else None."""
    if (total := _TOTAL.search(text)) is not None:
        return int(total.group(1))
    if points := read(text):
        return len(points)
    tokens = re.findall(r"[a-z]+|\d+", text.lower())
    numbers = {int(word) if word.isdigit() else _NUMBER[word] for word in tokens if word.isdigit() or word in _NUMBER}
    return numbers.pop() if len(numbers) == 1 else None


def assign(cost: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Match rows to columns one to one at the least total `cost[row][column]` (Hungarian method, Kuhn 1955).

    Returns pairs (row, column) in order of rows, as many as the fewer of both; [] if there are none.
    """
    if not cost or not cost[0]:
        return []
    if len(cost) > len(cost[0]):
        return sorted((row, column) for column, row in assign([list(line) for line in zip(*cost, strict=True)]))
    rows, columns = len(cost), len(cost[0])
    u, v, owner = [0.0] * (rows + 1), [0.0] * (columns + 1), [0] * (columns + 1)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        least, way, done = [float("inf")] * (columns + 1), [0] * (columns + 1), [False] * (columns + 1)
        while owner[column]:
            done[column] = True
            for j in range(1, columns + 1):
                slack = cost[owner[column] - 1][j - 1] - u[owner[column]] - v[j]
                if not done[j] and slack < least[j]:
                    least[j], way[j] = slack, column
            next_column = min((j for j in range(1, columns + 1) if not done[j]), key=lambda j: least[j])
            step = least[next_column]
            for j in range(columns + 1):
                if done[j]:
                    u[owner[j]], v[j] = u[owner[j]] + step, v[j] - step
                else:
                    least[j] -= step
            column = next_column
        while column:
            owner[column], column = owner[way[column]], way[column]
    return sorted((owner[j] - 1, j - 1) for j in range(1, columns + 1) if owner[j])


def pointing_score(predicted: Sequence[Point], gold: Sequence[Point], inside: Callable[[int, Point], bool]) -> dict[str, float]:
    """Return {"precision", "recall", "f1"} of predicted points against the gold (right) ones, from 0 to 1.

    Points are matched one to one by least total squared distance; `inside(i, point)` tells whether the point matched to gold[i] hits it. If
    both lists are empty all are 1; if only one is, all are 0.
    """
    if not predicted or not gold:
        same = float(len(predicted) == len(gold))
        return {"precision": same, "recall": same, "f1": same}
    pairs = assign([[(x - u) ** 2 + (y - v) ** 2 for u, v in gold] for x, y in predicted])
    hits = sum(inside(i, predicted[k]) for k, i in pairs)
    precision, recall = hits / len(predicted), hits / len(gold)
    return {"precision": precision, "recall": recall, "f1": 2 * hits / (len(predicted) + len(gold))}
