"""Parse answers to multiple choice, as BLINK asks it. An answer chooses a letter by the letter itself or by the text of the option.

Where no answer is stated, a long text chooses by the rules of VLMEvalKit's `can_infer` (Duan et al. 2024, arXiv:2407.11691): the only
letter of an option in it, near its end; else the only option whose text is in it, if it is not over twice as long as all options. An
option that is denied ("(A) is wrong"), compared with ("than A") or part of a reason ("because A is farther") is not chosen.
"""

import re
from collections.abc import Iterator, Mapping

from plait.families.theworld.benchmarks.short_answers import NEGATION, retracted

_GOLD = re.compile(r"\(?([A-Z])\)?[.:]?")
_OPTION = re.compile(r"(?:^|(?<=\s))(?:\(([A-Z])\)|([A-Z])[.):](?=\s))\s*")
_ALONE = re.compile(r"[(*\"'“‘]*([A-Z])[)*\"'”’]*[.:,]?[*\"'”’]*", re.IGNORECASE)
_VERB = r"(?:is|are|was|looks|seems|appears|shows|must)\b"
_JOINING = rf"(?:{_VERB}|(?:because|since|as|and|or|but|so|for|due|rather|instead|not|than|without)\b)"  # after a letter, never an article
_LETTER = rf"(?:\(([A-Z])\)|(?<![\w'’])([B-HJ-Z])(?![\w'’])|(?<![\w'’])([AI])(?=[.,:;)*/}}!?]|\s*$|\s*\n|\s+\(|\s+{_JOINING}))"
_NAMED = rf"(?:(?i:option|choice|letter)\s+)?{_LETTER}"
_SURELY = r"(?:\s+(?:clearly|definitely|probably|likely|option|choice))*"
_IS = rf"(?:\s+(?:is|was|would\s+be|must\s+be|should\s+be|has\s+to\s+be|will\s+be){_SURELY})"
_RIGHT = r"(?:(?:correct|right)\b|the\s+(?:(?:correct|right|best)\s+)?(?:answer|choice|option)\b|the\s+(?:correct|right)\s+one\b)"
_ANSWER = (
    re.compile(rf"\b(?i:answer|(?:correct|right|best|my)\s+(?:choice|option))(?:{_IS}|:)?\s*:?\s*\**{_LETTER}", re.MULTILINE),
    re.compile(rf"{_LETTER}\s+is\s+{_RIGHT}", re.MULTILINE),
    re.compile(rf"\b(?i:choose|pick|select|go\s+with)\s+{_NAMED}", re.MULTILINE),
)
_CHOICE = (
    re.compile(rf"\b(?i:choice|option)(?:{_IS}|:)?\s*:?\s*\**{_LETTER}", re.MULTILINE),
    re.compile(r"\b(?i:choice|option)\s+([AI])\b(?!['’])"),
)
_MENTION = re.compile(_LETTER, re.MULTILINE)
_NEXT = re.compile(rf"\)?\**\s*(?:,?\s*\bor\b|/|(?:,|&|\band\b)(?=\s*{_NAMED}(?!\s+{_VERB})))\s*{_NAMED}", re.MULTILINE)  # "(A) or (B)"
_BEFORE = re.compile(r"(?<![\w'’])\(?([A-Z])\)?\s*(?:,?\s*or|/|and|&)\s*(?:either\s+)?\(?$")
_LEADING = re.compile(r"\**(?:\(([A-Z])\)\**|([A-Z])\**(?=[.):,]\s|\s+(?:because|since|as)\b)[.):,]?)\**\s*")
_REASON = re.compile(
    r"(?<=\w|[)*.,])\s+(?:because|since|due to|given that|(?:even )?though|although"
    r"|as\s+(?=its?\b|the\s+\w+\s+(?:is|are|was|looks|has)\b|(?-i:\([A-Z]\)|[B-Z]\b|A\s+(?:is|looks|has)\b)))"
    r"(?:(?!,\s*(?:so|thus|hence|therefore)\b)[^.;\n])*"
    r"|(?<![\w)*]\s)\b(?:because|since|as|(?:even\s)?though|although)\s[^.,;\n]*|(?<=\S)\s+\(?\**(?:explanation|reason|reasoning|rationale)\**:.*?(?=\n|$|\banswer\b)",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|rather\s+than|instead\s+of|unlike)\s+(?i:option\s+|choice\s+)?(?:\([A-Z]\)|[A-Z]\b)|\b(?:rather\s+than|instead\s+of)\b[^.,;\n]*"
    r"|(?:\([A-Z]\)|\b[A-Z])\?\s+(?i:no|nope)\b"
)
_COMPARED = re.compile(
    r"\b(?:than|compared\s+(?:to|with))\s+(?:[a-z]+\s+){0,2}(?:Option\s+)?(?:\([A-Z]\)|[A-Z]\b)"
    r"|\b(?:[Bb]etween|[Oo]f|[Aa]mong|[Cc]omparing|[Gg]iven)\s+(?:\([A-Z]\)|[A-Z])\s+and\s+(?:\([A-Z]\)|[A-Z]\b)"
    r"|\bover\s+(?:\([A-Z]\)|[A-Z](?=\s*(?:[.,;]|$)))"
)
_CLAUSE_END = re.compile(
    r"([.!?;](?=\s|$)|\n|(?<![A-Z)]),|,(?!\s*(?:and\s+|or\s+)?\(?[A-Z]\b)|\b(?:so|but|therefore|thus|hence|because|since|while|whereas)\b)"
)
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4  # the only letter in a text counts among so many words at its end
_SENTENCE_WORDS = 12  # or in one sentence of at most so many: "Looking at it, B is closer to the camera."
_ARTICLE = re.compile(r"(?:an?|the)\s+", re.IGNORECASE)


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
    return wanted if wanted in listed else _only(_stated(_ANSWER, gold, listed)) or _of_text(gold, listed)


def chosen(answer: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter that `answer` chooses among the options `listed`, {letter: text}; None where it chooses none, or several.

    In this order: a letter that is stated ("The answer is (B)", "B is correct"); one that is all of the answer, or of its first or last
    line; a choice that is stated ("option B"); the text of an option; an option "yes" or "no" that begins the answer; a letter that begins
    it ("A) cat", "B because ..."), if it names no other; the rules of `can_infer` of VLMEvalKit.
    """
    text = answer.strip()
    if (parts := retracted(text)) and chosen(parts[0], listed) is not None:
        return chosen(parts[1], listed)
    if found := _stated(_ANSWER, text, listed):
        return _only(found)
    lines = text.splitlines() or [""]
    if alone := {match[1].upper() for line in (lines[0], lines[-1]) if (match := _ALONE.fullmatch(line.strip()))}:
        return _only(alone & listed.keys()) if len(alone) == 1 else None
    if found := _stated(_CHOICE, text, listed):
        return _only(found)
    return _of_text(text, listed) or _yes_or_no(text, listed) or _leading(text, listed) or _inferred(text, listed)


def _only(letters: set[str]) -> str | None:
    """Return the one letter of a set; None where there is none, or several."""
    return next(iter(letters)) if len(letters) == 1 else None


def _letter(match: re.Match[str]) -> str:
    """Return the letter that a match of a pattern names: its first group that is not empty."""
    return next(group for group in match.groups() if group)


def _stated(patterns: tuple[re.Pattern[str], ...], text: str, listed: Mapping[str, str]) -> set[str]:
    """Return the letters of options that matches of `patterns` state in a text, and those joined to them by "or" or "and"."""
    kept = _COMPARED.sub(_blank, _affirmed(text))
    found: set[str] = set()
    for pattern in patterns:
        for match in pattern.finditer(kept):
            found.add(_letter(match))
            group = next(place for place, value in enumerate(match.groups(), start=1) if value)
            after, before = _NEXT.match(kept, match.end(group)), _BEFORE.search(kept[: match.start(group)])
            found |= {_letter(other) if other is after else other[1] for other in (after, before) if other}
    return found & listed.keys()


def _blank(match: re.Match[str]) -> str:
    """Return spaces in the place of a match, so that the rest of a text keeps its places."""
    return " " * len(match[0])


def _affirmed(text: str) -> str:
    """Return a text with spaces in the place of its reasons and of what it denies: clauses with a negation, and "not (A)"."""
    parts = _CLAUSE_END.split(_DENIED.sub(_blank, _REASON.sub(_blank, text)))
    return "".join(" " * len(part) if place % 2 == 0 and NEGATION.search(part) else part for place, part in enumerate(parts))


def _mentions(text: str, listed: Mapping[str, str]) -> Iterator[re.Match[str]]:
    """Yield the places where a text names the letter of an option; the article "A" is none."""
    return (match for match in _MENTION.finditer(text) if _letter(match) in listed)


def _yes_or_no(text: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter of the option "yes" or "no" that begins a text, before a comma or the end of a sentence; else None."""
    match = re.match(r"\W*(yes|no)\b(?!,\s*(?:or|and)\b)[*\"']*[,.;:!\n]", text, re.IGNORECASE)
    name = _only({name for name, option in listed.items() if match and option.strip(" .").casefold() == match[1].casefold()})
    return name if name and {_letter(one) for one in _mentions(_affirmed(text), listed)} <= {name} else None


def _leading(text: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter that begins a text, alone or with the text of its option, or in a text that names no other letter; else None."""
    match = _LEADING.match(text)
    if match is None or (name := _letter(match)) not in listed:
        return None
    own = re.match(rf"[(\"']?{re.escape(listed[name])}(?!\w)[)\"']?", text[match.end() :], re.IGNORECASE) if listed[name] else None
    end = match.end() + (own.end() if own else 0)
    ends = re.match(r"[.:;]?\s*(?:\n|$)|[.;]\s", text[end:]) or re.search(r"[.:]\**\s+$|\n", text[:end])
    others = [other for other in _OPTION.finditer(text, end) if (other[1] or other[2]) in listed and (other[1] or other[2]) != name]
    if ends and not any(text.startswith(listed[other[1] or other[2]], other.end()) for other in others):
        return name
    kept = _COMPARED.sub(_blank, _affirmed(text[: match.end()] + " " * (end - match.end()) + text[end:]))
    begins = _LEADING.match(kept)
    return name if begins and {_letter(one) for one in _mentions(kept[begins.end() :], listed)} <= {name} else None


def _of_text(text: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter of the only option whose text equals all of `text`, or what it states as its answer; else None."""
    stated = re.split(r"(?i:answer(?:\s+is|\s*:))", text)[-1]
    plain = {part.strip(" .:\n\"'").casefold() for part in (text, stated)}
    same = [name for name, option in listed.items() if option and option.strip(" .\"'").casefold() in plain]
    if not same:  # "the dog", or "dog", where an option is "a dog"
        bare = {_ARTICLE.sub("", part, count=1) for part in plain}
        same = [name for name, option in listed.items() if _ARTICLE.sub("", option.strip(" .\"'").casefold(), count=1) in bare - {""}]
    return same[0] if len(same) == 1 else None


def _says_option(text: str, after: str, option: str) -> bool:
    """Return whether a text is one short sentence that says of a letter what its option says, as "A is closer" does.

    `after`: what follows the letter, without what it is compared with; `option`: the option's text.
    """
    sentences = [part for part in re.split(r"[.!?](?:\s|$)|\n", text) if part.strip()]
    if len(sentences) > 1 or len(text.split()) > _SENTENCE_WORDS or not re.match(rf"\)?\**\s+{_VERB}", after):
        return False
    said, meant = (set(re.findall(r"[a-z]{3,}", part.casefold())) - {"the", "are", "was"} for part in (after, option))
    return bool(said & meant)


def _inferred(text: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter that `can_infer` finds in a text that states none; of options in one place, the longest counts."""
    kept = _affirmed(text)
    uncompared = _COMPARED.sub(_blank, kept)
    found = list(_mentions(uncompared, listed))
    letters = {_letter(match) for match in found}
    if len(letters) == 1:
        name, end = letters.pop(), found[-1].end()
        if len(kept[end:].translate(_PUNCTUATION).split()) < _LAST_WORDS or _says_option(text, uncompared[end:], listed[name]):
            return name
    if len(text) > 2 * sum(len(option) for option in listed.values()):
        return None
    names: dict[str, set[str]] = {}
    for name, option in listed.items():
        names.setdefault(option.casefold(), set()).add(name)
    texts = sorted(filter(None, names), key=len, reverse=True)
    if not texts:
        return None
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, texts))})(?!\w)", re.IGNORECASE)
    both = re.compile(rf"\b(?:between|of|among|comparing)\s+(?:{pattern.pattern})\s+and\s+(?:{pattern.pattern})", re.IGNORECASE)
    named = _only({name for match in pattern.finditer(both.sub(_blank, kept)) for name in names.get(match[0].casefold(), ())})
    places = [match.span() for match in pattern.finditer(text)]
    outside = [
        one for one in _mentions(_COMPARED.sub(_blank, text), listed) if not any(start <= one.start() < end for start, end in places)
    ]
    labels = any(True for option in listed.values() for _ in _mentions(option, listed))  # "B is closer": a bare letter names what is seen
    return named if all(_letter(one) == named for one in outside if one[1] or not labels) else None
