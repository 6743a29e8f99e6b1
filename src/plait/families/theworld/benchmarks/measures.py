"""Read lengths and directions in answers: "2.5 meters" in metres, "at 3 o'clock" as an hour.

A text that gives several different ones has none, unless it states one as its answer, or its last sentence gives only one.
"""

import math
import re
from collections.abc import Callable

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {word: float(number) for number, word in enumerate(_WORDS)} | {"a": 1.0, "an": 1.0, "half a": 0.5}
_NUMBER = rf"(?:(?:\d+\s+)?\d+/\d+|\d+(?:,\d{{3}})*(?:\.\d+)?|\.\d+|\b(?:half a|{'|'.join(_WORDS)}|an?))"
_UNITS = {
    r"kilomet(?:er|re)s?|km": 1000.0,
    r"centimet(?:er|re)s?|cms?": 0.01,
    r"millimet(?:er|re)s?|mm": 0.001,
    r"met(?:er|re)s?|m": 1.0,
    r"inch(?:es)?|in(?!\s+(?:front|total|the|width|height|length|size|diameter)\b)": 0.0254,
    r"foot|feet|ft": 0.3048,
    r"yards?|yds?": 0.9144,
}
"""Units in metres, as the judge of SpatialRGPT-Bench is told them (and yards)."""
_UNIT = rf"(?:{'|'.join(_UNITS)})\b(?!\s*(?:/|\^|per\b|²|³))|[\"″”](?!\w)|['′’](?!\w)"
_LENGTH = re.compile(rf"(?<![\w.,/^])(?<!\d\s)({_NUMBER})\s*-?\s*({_UNIT})", re.IGNORECASE)
_RANGE = re.compile(rf"(?<![\w.]){_NUMBER}\s*(?:{_UNIT})?\s*(?:-|–|to|and|or)\s*{_NUMBER}\s*-?\s*(?:{_UNIT})", re.IGNORECASE)
_FEET_AND_INCHES = re.compile(
    rf"(?<![\w.,])({_NUMBER})\s*(?:foot\b|feet\b|ft\b\.?|['′’])\s*(?:,|and)?\s*({_NUMBER})\s*(?:inch(?:es)?\b|in\b|[\"″”])", re.IGNORECASE
)
_FOOT, _INCH = 0.3048, 0.0254
_CLOCK = re.compile(rf"\b(\d{{1,2}}|{'|'.join(_WORDS[1:])})(?::00)?\s*o\s?['’]?\s?clock|\b(\d{{1,2}}):00\b", re.IGNORECASE)
_CLOCK_RANGE = re.compile(rf"\b(?:\d{{1,2}}|{'|'.join(_WORDS[1:])})\s*(?:-|–|to|and|or)\s*(?:{_CLOCK.pattern})", re.IGNORECASE)
_MINUS = r"(?:(?<![\w.,)\]])[-−–]|\b(?:minus|negative)\s+)"
_NEGATIVE = re.compile(rf"{_MINUS}(?:{_NUMBER}\s*-?\s*(?:{_UNIT}|['′’])|{_CLOCK.pattern})", re.IGNORECASE)
_DENIED = re.compile(rf"(?:\b(?:not|never)\b|n['’]t\b)[^.,;!?\n]*?(?:{_NUMBER}\s*-?\s*(?:{_UNIT})|{_CLOCK.pattern})", re.IGNORECASE)
_STATED = re.compile(r"\banswer(?:\s+is|\s*:)\s*:?\s*(.+?)(?:\.(?=\s|$)|\n|$)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n")
_SAME = 0.05  # lengths this close are one, as in "2.5 meters (8.2 feet)"
_HOURS = 12


def metres(text: str) -> float | None:
    """Return the length that a text gives, in metres. None without one that has a unit, for several, a range, and below 0."""
    return _only(text, _lengths)


def hour(text: str) -> int | None:
    """Return the hour, 1 to 12, of the direction that a text gives ("at 3 o'clock"). None without one, or for several."""
    found = _only(text, _hours)
    return None if found is None else int(found)


def hours_apart(a: int, b: int) -> int:
    """Return by how many hours two directions of a clock differ, 0 to 6."""
    return min(abs(a - b), _HOURS - abs(a - b))


def _only(text: str, read: Callable[[str], list[float] | None]) -> float | None:
    """Return the one value that `read` finds in what a text states as its answer, in all of it, or in its last sentence."""
    stated = [match[1] for match in _STATED.finditer(text)]
    sentences = [part for part in _SENTENCE_END.split(text) if part.strip()]
    for part in [" ; ".join(stated)] if stated else [text, *sentences[-1:]]:
        values = read(part)
        if values and max(values) - min(values) <= _SAME * max(values):
            return values[0]
    return None


def _lengths(text: str) -> list[float] | None:
    """Return all lengths in a text; None where it gives a range or a negative one, or denies one."""
    if _NEGATIVE.search(text) or _DENIED.search(text):
        return None
    found = [_number(match[1]) * _FOOT + _number(match[2]) * _INCH for match in _FEET_AND_INCHES.finditer(text)]
    rest = _FEET_AND_INCHES.sub(" ", text)
    if _RANGE.search(rest):
        return None
    return found + [_number(match[1]) * _metres_of(match[2]) for match in _LENGTH.finditer(rest)]


def _metres_of(unit: str) -> float:
    marks = {'"': _INCH, "″": _INCH, "”": _INCH, "'": _FOOT, "′": _FOOT, "’": _FOOT}
    if unit in marks:
        return marks[unit]
    return next(value for pattern, value in _UNITS.items() if re.fullmatch(pattern, unit, re.IGNORECASE))


def _number(text: str) -> float:
    if "/" in text:
        whole, _, part = text.rpartition(" ") if " " in text else ("0", "", text)
        above, _, below = part.partition("/")
        return float(whole) + float(above) / float(below) if float(below) else math.nan
    return _NUMBERS[text.lower()] if text.lower() in _NUMBERS else float(text.replace(",", ""))


def _hours(text: str) -> list[float] | None:
    """Return all hours in a text; None where it gives a range or a negative one, or denies one."""
    if _CLOCK_RANGE.search(text) or _NEGATIVE.search(text) or _DENIED.search(text):
        return None
    hours = [_number(match[1] or match[2]) for match in _CLOCK.finditer(text)]
    return [value for value in hours if 1 <= value <= _HOURS]
