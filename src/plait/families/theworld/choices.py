"""Parse answers to multiple choice, as BLINK asks it. An answer chooses a letter by the letter itself or by the text of the option.

Where no answer is stated, a long text chooses by the rules of VLMEvalKit's `can_infer` (Duan et al. 2024, arXiv:2407.11691): the only
letter of an option in it, near its end; else the only option whose text is in it, if it is not over twice as long as all options.
"""

import re
from collections.abc import Mapping

_GOLD = re.compile(r"\(?([A-Z])\)?[.:]?")
_OPTION = re.compile(r"(?:^|(?<=\s))(?:\(([A-Z])\)|([A-Z])[.):](?=\s))\s*")
_ALONE = re.compile(r"[(*]*([A-Z])[)*]*[.:,]?[*]*|\(([A-Z])\).*|([A-Z])[.):]\s.*", re.DOTALL)
_LETTER = r"(?:\s+is|:)?\s*:?\s*\**(?:\(([A-Z])\)|([A-Z])(?=[.,:;)*]|\s*$))"
_ANSWER = re.compile(rf"\b(?i:answer){_LETTER}", re.MULTILINE)
_CHOICE = re.compile(rf"\b(?i:choice|option){_LETTER}", re.MULTILINE)
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4  # the only letter in a text counts among so many words at its end


def letter(gold: str) -> str | None:
    """Return the letter of a right answer such as "(B)" or "B", or None for any other text."""
    match = _GOLD.fullmatch(gold.strip())
    return match[1] if match else None


def options(question: str) -> dict[str, str]:
    """Return the options that a question lists as "(A) cat" or "A. cat", {letter: text}. {} unless the letters run on from A."""
    marks = list(_OPTION.finditer(question))
    ends = [*(mark.start() for mark in marks[1:]), len(question)][: len(marks)]
    listed = {mark[1] or mark[2]: question[mark.end() : end].splitlines() for mark, end in zip(marks, ends, strict=True)}
    texts = {name: lines[0].strip() if lines else "" for name, lines in listed.items()}
    return texts if len(texts) > 1 and list(texts) == [chr(ord("A") + place) for place in range(len(texts))] else {}


def right_letter(gold: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter of the right option among those `listed`, {letter: text}; None if `gold` names none.

    `gold`: the right answer, which is that letter, states it, or is the text of one option.
    """
    wanted = letter(gold)
    return wanted if wanted in listed else _stated(_ANSWER, gold, listed) or _of_text(gold, listed)


def chosen(answer: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter that `answer` chooses among the options `listed`, {letter: text}; None where it chooses none, or several.

    In this order: a letter that is stated ("The answer is (B)"); one that is all of the answer or begins it ("A.", "A) cat"), or all of its
    last line; a choice that is stated ("option B"); the text of an option; the rules of `can_infer` of VLMEvalKit.
    """
    text = answer.strip()
    if _ANSWER.search(text):
        return _stated(_ANSWER, text, listed)
    for line in (text, text.splitlines()[-1].strip() if text else ""):
        if match := _ALONE.fullmatch(line):
            found = next(group for group in match.groups() if group)
            return found if found in listed else None
    if _CHOICE.search(text):
        return _stated(_CHOICE, text, listed)
    return _of_text(text, listed) or _inferred(text, listed)


def _stated(pattern: re.Pattern[str], text: str, listed: Mapping[str, str]) -> str | None:
    """Return the only letter of an option that matches of `pattern` state in a text, else None."""
    stated = {first or second for first, second in pattern.findall(text)} & listed.keys()
    return stated.pop() if len(stated) == 1 else None


def _of_text(text: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter of the only option whose text equals all of `text`, or what it states as its answer; else None."""
    stated = re.split(r"(?i:answer(?:\s+is|\s*:))", text)[-1]
    plain = {part.strip(" .:\n\"'").casefold() for part in (text, stated)}
    same = [name for name, option in listed.items() if option and option.strip(" .\"'").casefold() in plain]
    return same[0] if len(same) == 1 else None


def _inferred(text: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter that `can_infer` finds in a text that states none; a letter or option after "not" is none."""
    words = re.sub(r"\bnot\s+\(?[A-Z]\b\)?", " ", text).translate(_PUNCTUATION).split()
    letters = [name for name in listed if name in words]
    if len(letters) == 1:
        article = letters[0] == "A" and len(words) > _LAST_WORDS - 1
        return None if article or words.index(letters[0]) < len(words) - _LAST_WORDS else letters[0]
    plain = text.casefold()
    if letters or len(text) > 2 * sum(len(option) for option in listed.values()) or re.search(r"\bnot\b|n't\b", plain):
        return None
    named = [name for name, option in listed.items() if option and re.search(rf"(?<!\w){re.escape(option.casefold())}(?!\w)", plain)]
    return named[0] if len(named) == 1 else None
