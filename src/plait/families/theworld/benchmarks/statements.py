"""Read whether an answer says that a statement is true or false, as VSR and NLVR ask.

What follows "the answer is" or "Answer:" counts, if there is any. Otherwise a verdict that begins the text counts ("Yes, ..."), else all
words "true" and "false", which must agree. A denied verdict is the other one ("not true"). Anything else is no verdict.
"""

import re

from plait.families.theworld.benchmarks.short_answers import NEGATION, retracted

_STATED = re.compile(r"\banswer(?:\s+is|\s*:)\s*:?\s*(.+?)(?:[.!?;](?=\s|$)|\n|$)", re.IGNORECASE)
_VALUES = {
    **dict.fromkeys(("yes", "true", "correct", "right", "indeed"), True),
    **dict.fromkeys(("no", "false", "incorrect", "wrong", "untrue"), False),
}
_FIRST = re.compile(  # "right of it" is no verdict
    r"\W*(?:(yes|no|true|false|untrue|indeed)\b(?!\s*(?:/|(?:or|and)\b))|(correct|right|incorrect|wrong)(?=\s*(?:[.,;:!*]|$)))",
    re.IGNORECASE,
)
_WORD = re.compile(r"\b(true|false|untrue|correct|incorrect)\b", re.IGNORECASE)
_OPPOSITE = frozenset(["false", "untrue", "incorrect"])  # words that NEGATION holds too
_OTHER_NEGATION = re.compile(rf"(?!(?:{'|'.join(_OPPOSITE)})\b)(?:{NEGATION.pattern})", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[.!?;,\n]|\b(?:but|so|because|since|therefore|thus|hence)\b", re.IGNORECASE)


def verdict(text: str) -> bool | None:
    """Return whether a text says that a statement is true; None where it says neither that nor that it is false."""
    if (parts := retracted(text)) and verdict(parts[0]) is not None:
        return verdict(parts[1])
    stated = {_verdict(match[1]) for match in _STATED.finditer(text)}
    return (stated.pop() if len(stated) == 1 else None) if stated else _verdict(text)


def first_word(text: str) -> bool | None:
    """Return the verdict that begins a text, such as "Yes" or "Incorrect"; None where it begins with something else."""
    match = _FIRST.match(text)
    return _VALUES[(match[1] or match[2]).lower()] if match else None


def _verdict(text: str) -> bool | None:
    """Return the verdict of a text that states no answer."""
    words = {_VALUES[match[1].lower()] != _denied(text[: match.start()]) for match in _WORD.finditer(text)}
    begins = first_word(text)
    if begins is not None:
        return begins if words <= {begins} else None
    return words.pop() if len(words) == 1 else None


def _denied(before: str) -> bool:
    """Return whether the clause that a text ends in denies what follows."""
    return _OTHER_NEGATION.search(_CLAUSE_END.split(before)[-1]) is not None
