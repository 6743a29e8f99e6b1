"""Judge an answer to a question with a short right answer: right, wrong, or without anything that its rule could read.

An answer that is empty, or in which nothing can be read, is never right, and is told apart from one that is read and wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plait.data.synthetic.answers import can_score, score
from plait.data.text import blank
from plait.families.theworld.benchmarks import regions
from plait.families.theworld.benchmarks.choices import chosen, options, right_letter
from plait.families.theworld.benchmarks.short_answers import says
from plait.families.theworld.benchmarks.statements import verdict

EMPTY, UNPARSED = "empty", "unparsed"
"""Why an answer failed: it is blank; or nothing of the kind that was asked for can be read in it, such as the letter of an option."""
REGIONS = "region_category"
"""Field of a sample that asks about numbered regions: the category of its question, such as `left_choice`."""
STATEMENT = "statement_is_true"
"""Field of a sample whose question is whether a statement is true: True or False, the right answer."""
CHOICES = "lettered_choices"
"""Field of a sample with the texts of its options, of which the first is (A); without it, options are those that the question lists."""


GROUP = "task_group"
"""Field of a sample with the group of tasks that its own is of, such as "quantitative"."""
UNPUBLISHED = "gold_unpublished"
"""Field of a sample whose right answer its authors keep: it is answered, and not judged."""


@dataclass(frozen=True)
class Judgement:
    """Whether an answer is right. `failed`: EMPTY or UNPARSED for one that could not be read, which is wrong, else None.

    `error`: of an answer that is a length, its distance from the right one as a share of that, else None.
    """

    correct: bool
    failed: str | None = None
    error: float | None = None


def judge(answer: str, gold: str, fields: Mapping[str, Any], question: str = "") -> Judgement:
    """Judge an answer. `gold`: the right one; `fields`: the sample's other fields, {name: value}; `question`: what was asked.

    Drawn scenes and NLVR (`fields` of the sources `scenes` and `nlvr`) have scorers of their own. A statement's answer must say whether it
    is true (statements.py); one about regions is read by the category of its question (regions.py). Where the right answer is an option,
    the answer must choose it (choices.py); otherwise it must give the right one (short_answers.py).
    """
    if blank(answer):
        return Judgement(False, EMPTY)
    if STATEMENT in fields:
        said = verdict(answer)
        return _read(said, said == fields[STATEMENT])
    if REGIONS in fields:
        measured = regions.judge(answer, gold, fields[REGIONS], question)
        return Judgement(measured.correct, None if measured.parsed else UNPARSED, measured.error)
    if can_score(fields):
        return Judgement(score(answer, fields))
    listed = {chr(ord("A") + place): str(text) for place, text in enumerate(fields.get(CHOICES) or ())} or options(question)
    wanted = right_letter(gold, listed)
    if wanted is None:
        return Judgement(says(answer, gold, question))
    letter = chosen(answer, listed)
    return _read(letter, letter == wanted)


def _read(value: object, correct: bool) -> Judgement:
    """Return the judgement of an answer in which `value` was read, None for nothing."""
    return Judgement(False, UNPARSED) if value is None else Judgement(correct)
