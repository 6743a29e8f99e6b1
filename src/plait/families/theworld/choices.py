"""Parse answers to multiple choice, as BLINK asks it: which letter an answer chooses, by its letter or by the text of the option."""

import re
from collections.abc import Mapping

_GOLD = re.compile(r"\(?([A-Z])\)?[.:]?")
_OPTION = re.compile(r"(?:^|(?<=\s))(?:\(([A-Z])\)|([A-Z])[.):](?=\s))\s*")
_ALONE = re.compile(r"\(?([A-Z])\)?[.:,]?|\(([A-Z])\).*|([A-Z])[.):]\s.*", re.DOTALL)
_STATED = re.compile(r"\b(?i:answer|choice|option)(?:\s+is|:)?\s*:?\s*(?:\(([A-Z])\)|([A-Z])(?=[.,:;)]|\s*$))")


def letter(gold: str) -> str | None:
    """Return the letter of a right answer such as "(B)" or "B", or None for any other text."""
    match = _GOLD.fullmatch(gold.strip())
    return match[1] if match else None


def options(question: str) -> dict[str, str]:
    """Return the options that a question lists as "(A) cat" or "A. cat": {letter: text}; {} unless the letters run on from A."""
    marks = list(_OPTION.finditer(question))
    ends = [*(mark.start() for mark in marks[1:]), len(question)][: len(marks)]
    listed = {mark[1] or mark[2]: question[mark.end() : end].splitlines() for mark, end in zip(marks, ends, strict=True)}
    texts = {name: lines[0].strip() if lines else "" for name, lines in listed.items()}
    return texts if len(texts) > 1 and list(texts) == [chr(ord("A") + place) for place in range(len(texts))] else {}


def chosen(answer: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter that `answer` chooses among the options `listed`, {letter: text}; None where it chooses none, or several.

    In this order: a letter that it begins with ("(A)", "A.", "A) cat"), one that it states ("The answer is (B)"), or the text of an option.
    """
    text = answer.strip()
    if match := _ALONE.fullmatch(text):
        found = next(group for group in match.groups() if group)
        return found if found in listed else None
    stated = {first or second for first, second in _STATED.findall(text)} & listed.keys()
    if stated:
        return stated.pop() if len(stated) == 1 else None
    plain = text.strip(" .\n\"'").casefold()
    same = [name for name, option in listed.items() if option and option.strip(" .\"'").casefold() == plain]
    return same[0] if len(same) == 1 else None
