"""Points in text: written as percentages of the image, read back from what a model says, and scored against the truth."""

import re
from collections.abc import Callable, Sequence

from plait.errors import BadSample

NONE = "There are none."
Point = tuple[float, float]

_TAG = re.compile(r"<points?\b([^>]*)>?")
_PLACE = re.compile(r"\b([xy])(\d*)\s*=\s*[\"']?\s*(-?\d+(?:\.\d+)?)")
_TOTAL = re.compile(r"\btotal of (\d+)\b")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER = {word: number for number, word in enumerate(WORDS)} | {"none": 0, "no": 0}


def percent(x: float, y: float, width: float, height: float) -> Point:
    """Pixels to percentages of the image."""
    return 100 * x / width, 100 * y / height


def write(points: Sequence[Point], label: str, alt: str | None = None) -> str:
    """`<point ..>` for one, `<points x1=.. y1=..>` for several, from left to right; "There are none." for none.

    Coordinates are percentages with one decimal; BadSample for one outside 0 to 100.
    """
    outside = [point for point in points if not all(0 <= value <= 100 for value in point)]
    if outside:
        raise BadSample(f"the point {outside[0]} of {label!r} is outside the image: x and y are percentages from 0 to 100")
    if not points:
        return NONE
    placed = sorted((round(x, 1), round(y, 1)) for x, y in points)
    alt = (label if alt is None else alt).replace('"', "'")
    if len(placed) == 1:
        return f'<point x="{placed[0][0]:.1f}" y="{placed[0][1]:.1f}" alt="{alt}">{label}</point>'
    numbered = " ".join(f'x{i}="{x:.1f}" y{i}="{y:.1f}"' for i, (x, y) in enumerate(placed, start=1))
    return f'<points {numbered} alt="{alt}">{label}</points>'


def write_count(points: Sequence[Point], label: str) -> str:
    """The points, then how many they are."""
    return f"Counting the {write(points, label)} shows a total of {len(points)}." if points else NONE


def read(text: str) -> list[Point]:
    """Every point of every tag, in the order written. An x without its y is left out, and so are places outside 0 to 100."""
    found: list[Point] = []
    for tag in _TAG.findall(text):
        places: dict[str, dict[str, float]] = {}
        for axis, number, value in _PLACE.findall(re.sub(r"\balt\s*=.*", "", tag, flags=re.DOTALL)):
            places.setdefault(number, {}).setdefault(axis, float(value))
        found += [(p["x"], p["y"]) for p in places.values() if len(p) == 2 and all(0 <= value <= 100 for value in p.values())]
    return found


def read_count(text: str) -> int | None:
    """How many the text says there are: its "total of N", else its points, else its only number; None when it says nothing clear."""
    if (total := _TOTAL.search(text)) is not None:
        return int(total.group(1))
    if points := read(text):
        return len(points)
    said = re.findall(r"[a-z]+|\d+", text.lower())
    numbers = {int(word) if word.isdigit() else _NUMBER[word] for word in said if word.isdigit() or word in _NUMBER}
    return numbers.pop() if len(numbers) == 1 else None


def assign(cost: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs (row, column) of least total cost, as many as the shorter side: the Hungarian method with potentials, O(n^3) (Kuhn 1955)."""
    if not cost or not cost[0]:
        return []
    if len(cost) > len(cost[0]):
        return sorted((row, column) for column, row in assign([list(line) for line in zip(*cost, strict=True)]))
    rows, columns = len(cost), len(cost[0])
    u, v, owner = [0.0] * (rows + 1), [0.0] * (columns + 1), [0] * (columns + 1)
    for row in range(1, rows + 1):
        owner[0], at = row, 0
        least, way, done = [float("inf")] * (columns + 1), [0] * (columns + 1), [False] * (columns + 1)
        while owner[at]:
            done[at] = True
            for j in range(1, columns + 1):
                slack = cost[owner[at] - 1][j - 1] - u[owner[at]] - v[j]
                if not done[j] and slack < least[j]:
                    least[j], way[j] = slack, at
            following = min((j for j in range(1, columns + 1) if not done[j]), key=lambda j: least[j])
            step = least[following]
            for j in range(columns + 1):
                if done[j]:
                    u[owner[j]], v[j] = u[owner[j]] + step, v[j] - step
                else:
                    least[j] -= step
            at = following
        while at:
            owner[at], at = owner[way[at]], way[at]
    return sorted((owner[j] - 1, j - 1) for j in range(1, columns + 1) if owner[j])


def pointing_score(said: Sequence[Point], gold: Sequence[Point], inside: Callable[[int, Point], bool]) -> dict[str, float]:
    """precision, recall and f1. Points are matched one to one by least total distance; a match hits if it lies inside gold thing i.

    Nothing said of nothing there is right (all 1); nothing said of something, or something of nothing, is wrong (all 0).
    """
    if not said or not gold:
        same = float(len(said) == len(gold))
        return {"precision": same, "recall": same, "f1": same}
    pairs = assign([[(x - u) ** 2 + (y - v) ** 2 for u, v in gold] for x, y in said])
    hits = sum(inside(thing, said[place]) for place, thing in pairs)
    precision, recall = hits / len(said), hits / len(gold)
    return {"precision": precision, "recall": recall, "f1": 2 * hits / (len(said) + len(gold))}
