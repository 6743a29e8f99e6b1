"""What is measured of each sample for a filter: sizes of its pictures, words of its captions, and whether a condition holds.

A measure is a row of numbers per sample; survey.py takes and keeps them, filters.py compares them with the limits of a filter.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plait.config.sections.expression import Condition, Undecided
from plait.data import image_files

Sample = Mapping[str, Any]
"""A sample of a source: `id`, `images`, `messages`, `fields`, optionally `frames`, `annotations`."""

_ONE_BY_ONE = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Letters of scripts without blanks between words: Thai, Lao, Khmer, Japanese and Chinese."""
_TOKEN = re.compile(rf"[{_ONE_BY_ONE}]|(?:(?![{_ONE_BY_ONE}])\w)+|[^\w\s]")

UNDECIDED = -1.0
"""The value of a condition that cannot be decided for a sample; 1: it holds, 0: it does not."""


@dataclass(frozen=True)
class Measure:
    """What `of` returns of each sample: `columns` numbers. `name`: what is measured and how, which says whether stored numbers fit.

    `dtype`: of the numbers. `of` raises BadSample for a sample that cannot be measured. `looks_at`: what decides the numbers; pictures of
    the sample that it is given may be blank where their sizes do, and empty where the text alone does.
    """

    name: str
    columns: int
    of: Callable[[Sample], Sequence[float]]
    dtype: str = "<f4"
    looks_at: Literal["pixels", "sizes", "text"] = "pixels"


def caption_tokens(text: str) -> int:
    """Return the number of words and marks of a text. Each letter of a script without blanks between words is a word."""
    return sum(1 for _ in _TOKEN.finditer(text))


def answers(sample: Sample) -> Iterator[str]:
    """Yield what the assistant says in all conversations of a sample: its captions and answers."""
    conversations = [annotation["messages"] for annotation in sample.get("annotations", ())] or [sample["messages"]]
    for conversation in conversations:
        yield from (turn["content"] for turn in conversation if turn["role"] == "assistant")


def _sides(sample: Sample) -> Sequence[float]:
    sizes = [image_files.size(data) for data in [*sample["images"], *sample.get("frames", ())]]
    ratios = [width / height for width, height in sizes]
    return min(map(min, sizes), default=math.inf), min(ratios, default=math.inf), max(ratios, default=-math.inf)


SIDES = Measure("sides 2", 3, _sides, looks_at="sizes")
"""Least side in pixels, least and greatest width / height of a sample's pictures and frames, upright; infinite without any."""
TOKENS = Measure("words 2", 1, lambda sample: [sum(map(caption_tokens, answers(sample)))], looks_at="text")
"""Words and marks of all captions and answers."""


def condition(parsed: Condition) -> Measure:
    """Return the measure of a condition on a sample's fields: 1 where it holds, 0 where it does not, UNDECIDED."""

    def holds(sample: Sample) -> Sequence[float]:
        try:
            return [float(parsed.holds(sample["fields"]))]
        except Undecided:
            return [UNDECIDED]

    return Measure(f"condition 2 {parsed.text}", 1, holds, looks_at="text")
