"""Judge answers about numbered regions by rule, as SpatialRGPT-Bench (Cheng et al. 2024, arXiv:2406.01584) asks; it lets GPT-4 judge them.

A category names what is asked: `left_predicate` (is Region [0] left of Region [1]?), `left_choice` (which is more to the left?), a length
(`width_data`), or `direction` (an hour of the clock). A length is right from 0.75 to 1.25 of the right one, a direction within an hour,
both as published. A question whether something is so is answered by a verdict ("Yes", "Incorrect"), else by the relation that is said.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from plait.families.theworld.benchmarks.measures import hour, hours_apart, metres
from plait.families.theworld.benchmarks.short_answers import NEGATION
from plait.families.theworld.benchmarks.statements import verdict

_WITHIN = 0.25  # of the right length
_SMALLEST = 1e-4  # metres, added to a right length that an error is divided by, as published
_PAIRS = {
    ("left", "right"): (r"left", r"right"),
    ("above", "below"): (r"above|over|higher|upper|top", r"below|under(?:neath)?|beneath|lower|bottom"),
    ("front", "behind"): (r"front|closer|nearer|forward|before|less distant", r"behind|further|farther|back(?:ward)?|more distant"),
    ("tall", "short"): (r"tall(?:er)?|higher|(?:more|greater|larger) height", r"short(?:er)?|lower|(?:less|lesser|smaller) height"),
    ("wide", "thin"): (
        r"wider|broader|(?:more|greater|larger) width|exceeds?|surpass(?:es)?",
        r"thinner|narrower|slimmer|(?:less|lesser|smaller) width",
    ),
    ("big", "small"): (r"bigger|larger|(?:more|greater) (?:size|space)", r"smaller|tinier|(?:less|lesser) (?:size|space)"),
}
"""Opposite relations, each with the words that say it."""
_WORDS = {
    name: tuple(re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for words in (patterns if place == 0 else patterns[::-1]))
    for pair, patterns in _PAIRS.items()
    for place, name in enumerate(pair)
}
_REGION = re.compile(r"\bregions?\s*\[?(\d+)\b\]?|\[(\d+)\]", re.IGNORECASE)
_BARE = re.compile(r"\W*(\d+)\W*")
_JOINED = re.compile(rf"(?:{_REGION.pattern})\s*(?:,?\s*(?:and|or|&)|,|/)\s*(?:{_REGION.pattern})", re.IGNORECASE)
_BETWEEN = re.compile(rf"\b(?:between|of)\s+(?:{_JOINED.pattern})\s*,?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n|\bbut\b|\bwhile\b|\bwhereas\b", re.IGNORECASE)
_AGREED = re.compile(r"^\W*right\b\s*(?=[.,;:!*]|$)", re.IGNORECASE)  # a verdict or a side, which it does not say
_IT = re.compile(r"\bit(?:'s)?\b", re.IGNORECASE)
_TASKS = {
    **{name: f"{'-'.join(pair)}" for pair in _PAIRS for name in pair},
    "distance": "direct_distance",
    "horizontal_distance": "horizontal_distance",
    "vertical_distance": "vertical_distance",
    "width": "width",
    "height": "height",
    "direction": "direction",
}


@dataclass(frozen=True)
class Measured:
    """What an answer about regions is worth. `parsed`: whether anything could be read in it; `error`: of a length, relative."""

    correct: bool
    parsed: bool
    error: float | None = None


def task_of(category: str) -> str:
    """Return the group of questions that a category is reported with, as in the paper: "left-right", "width". Raises KeyError for none."""
    return _TASKS[re.sub("_(?:data|predicate|choice)$", "", category)]


def is_category(name: object) -> bool:
    """Return whether something is the name of a category."""
    return isinstance(name, str) and re.sub("_(?:data|predicate|choice)$", "", name) in _TASKS


def read(text: str, category: str, question: str) -> bool | int | float | None:
    """Return what a text answers to a question of this category: whether it is so, a region, an hour or metres. None for nothing."""
    kind = category.rpartition("_")[2]
    if kind == "data":
        return metres(text)
    if category == "direction":
        return hour(text)
    asked = list(dict.fromkeys(_regions(question)))[:2]
    if len(asked) < 2:
        return None
    name = category.removesuffix(f"_{kind}")
    return _chosen(text, name, asked) if kind == "choice" else _holds(text, name, asked)


def judge(answer: str, gold: str, category: str, question: str) -> Measured:
    """Judge an answer to a question of this category by the right answer `gold`, a sentence in which `read` finds something.

    A length is correct within 25 % of the right one, a direction within one hour of the clock, anything else if it is equal. An answer or
    a `gold` in which `read` finds nothing is not correct and not parsed. Raises KeyError for a category that is none, as `task_of` does.
    """
    task_of(category)
    wanted, given = read(gold, category, question), read(answer, category, question)
    if given is None or wanted is None:
        return Measured(False, False)
    if category == "direction":
        return Measured(hours_apart(int(wanted), int(given)) <= 1, True)
    if not category.endswith("_data"):
        return Measured(given == wanted, True)
    near = (1 - _WITHIN) * wanted <= given <= (1 + _WITHIN) * wanted
    return Measured(near, True, abs(given - wanted) / (wanted + _SMALLEST))


def _regions(text: str) -> list[int]:
    return [int(match[1] or match[2]) for match in _REGION.finditer(text)]


def _relations(text: str, name: str) -> Iterator[tuple[int | None, bool, int | None, bool]]:
    """Yield what each sentence of a text says of the relation `name`: (subject, whether it or its opposite, object, whether of "it")."""
    own, other = _WORDS[name]
    for sentence in _SENTENCE_END.split(_BETWEEN.sub(" ", text)):
        matches = sorted([*((m, True) for m in own.finditer(sentence)), *((m, False) for m in other.finditer(sentence))], key=_place)
        if not matches:
            continue
        match, said = matches[0]
        before, after = _regions(sentence[: match.start()]), _regions(sentence[match.end() :])
        said = said != (NEGATION.search(sentence[: match.start()]) is not None)
        of_it = not before and _IT.search(sentence[: match.start()]) is not None
        subject = before[-1] if before else None if of_it else next(iter(after), None)
        yield subject, said, next((region for region in after if region != subject), None), of_it


def _place(match: tuple[re.Match[str], bool]) -> int:
    return match[0].start()


def _holds(text: str, name: str, asked: list[int]) -> bool | None:
    """Return whether a text says that the relation holds from the first region asked about to the second."""
    if name in ("left", "right"):
        text = _AGREED.sub("", text)
    said = verdict(text)
    if said is not None:
        return said
    values = {holds == (subject in (asked[0], None)) for subject, holds, _, of_it in _relations(text, name) if subject in asked or of_it}
    return values.pop() if len(values) == 1 else None


def _chosen(text: str, name: str, asked: list[int]) -> int | None:
    """Return the region that a text chooses of the two that are asked about."""
    if bare := _BARE.fullmatch(text):
        return int(bare[1]) if int(bare[1]) in asked else None
    rest = _BETWEEN.sub(" ", text)
    if _JOINED.search(rest):
        return None
    chosen = set()
    for subject, holds, other, _ in _relations(text, name):
        against = next((region for region in asked if region != subject), None) if other is None else other
        chosen.add(subject if holds or subject is None else against)
    if not chosen and NEGATION.search(rest) is None:
        chosen = set(_regions(rest))
    return chosen.pop() if len(chosen) == 1 and chosen <= set(asked) else None
