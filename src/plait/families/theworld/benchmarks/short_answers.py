"""Score a free text by its short answer, where published evaluators look for one, not by any substring.

Those are: what follows "the answer is" or "Answer:" (MathVista, Lu et al. 2023, arXiv:2310.02255), else a yes or no that the text begins
with (MME, Fu et al. 2023, arXiv:2306.13394), its first sentence (POPE, Li et al. 2023, arXiv:2305.10355), and of its last line what
follows a concluding word (MMMU, Yue et al. 2023, arXiv:2311.16502). MMMU then accepts the right text anywhere in it; here it must be all
of it, or the only number in it. Texts are compared in VQA's form, without articles (Antol et al. 2015, arXiv:1505.00468).
"""

import re

_STATED = re.compile(r"\banswer(?:\s+is|\s*:)\s*:?\s*(.+?)(?:[.!?;](?=\s|$)|\n|$)", re.IGNORECASE)
_CONCLUDING = re.compile(
    r"\b(?:could be|so|is|are|was|were|thus|therefore|final|result"
    r"|(?:it|that|this|there|here|he|she|color|colour|answer)['’]s)\b[\s,:]*|=\s*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
NEGATION = re.compile(
    r"\b(?:not|cannot|never|neither|nor|nobody|none|hardly|doubtful|unclear|unlikely|unsure|uncertain|untrue|impossible|wrong|incorrect"
    r"|false|whether|excluded|eliminated|ruled\s+out|no\s+(?:one|reason|way|evidence|sign)|(?<!no )(?<!without )(?<!without a )doubt)\b"
    r"|n['’]t\b",
    re.IGNORECASE,
)
"""Words that deny or doubt the clause they are in."""
_RETRACTED = re.compile(
    r"\bno,?\s+wait\b|\bwait(?=\s*[,.!:;])|(?:(?<=[.!?;,\n])\s*|\s+[-–—]+\s*)actually\b|\b(?:scratch\s+that|on\s+second\s+thoughts?|my\s+mistake)\b"
    r"|\bcorrection(?=\s*:)",
    re.IGNORECASE,
)
_REASON = re.compile(r",?\s+(?:because|since|due to)\b.*", re.IGNORECASE | re.DOTALL)
_RELATIVE = re.compile(r"\b(?:that|which|who)\s+(?:is|are|was|were|do|does)(?:\s+not|n['’]t)\s+\S+", re.IGNORECASE)  # "that is not blue"
_CLAUSE = re.compile(r",|\b(?:but|so|thus|therefore|hence|while|whereas)\b", re.IGNORECASE)
_TAIL = re.compile(  # after an answer, in normalised text: what kind of thing it is, where it is seen, or what it is not
    r"(?<=\w)(?:,?\s+(?:and\s+)?(?:not|rather than|instead of)\s.*"
    r"|\s+in\s+(?:colou?r|shape|size|total|all|number|(?:this\s+)?(?:image|picture|photo|photograph|scene)))+$"
)
_BOTH = re.compile(r"(?:yes|no)(?:\s|/|,|and\b|or\b)+(?:yes|no)")
_NONE = re.compile(
    r"there\s+(?:(?:is|are|was|were)\s+(?:no|not)\b|(?:is|are|was|were)n['’]t\b)(?!\s+(?:doubt|question|only|just))", re.IGNORECASE
)
_THERE_IS = re.compile(r"there\s+(?:is|are)\s+(.+)", re.IGNORECASE | re.DOTALL)
_IS_THERE = re.compile(r"\b(?:is|are)\s+there\s+(.+?)\?", re.IGNORECASE)
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_WORDS)}


def retracted(text: str) -> tuple[str, str] | None:
    """Split a text that takes back what it said ("A. No wait, B.") into what it had said and its last word; None for any other."""
    marks = list(_RETRACTED.finditer(text))
    return (text[: marks[-1].start()], text[marks[-1].end() :].strip(" ,.:;!-–—\n")) if marks else None


def normalise(text: str) -> str:
    """Return the text in lower case, without outer punctuation, articles and repeated spaces, with number words as digits."""
    words = re.sub(r"(?<=\d),(?=\d{3})", "", text.casefold()).replace("*", " ").split()
    plain = [word.strip("\"'()[],;:!?").rstrip(".") for word in words]
    kept = [_DIGITS.get(word, word) for word in plain if word not in ("", "a", "an", "the")]
    return " ".join(kept or plain).strip()


def stated(text: str) -> str | None:
    """Return the one answer that a text states after "the answer is" or "Answer:"; None where it states none, "" for several.

    "" also where it denies what it states ("I don't think the answer is red").
    """
    answers = {"" if _denied(text[: match.start()]) else normalise(match[1]) for match in _STATED.finditer(text)}
    return None if not answers else answers.pop() if len(answers) == 1 else ""


def says(text: str, gold: str, question: str = "") -> bool:
    """Return whether a text gives the right answer: `gold`, or what `gold` itself states after "the answer is".

    `question`: what was asked; where that is "Is there a cat?", "There is a cat" is a yes.
    """
    wanted = stated(gold) or normalise(gold)
    plain = normalise(text)
    if plain in (wanted, normalise(gold)):
        return True
    if (given := stated(text)) is not None:
        return _gives(given, wanted)
    if wanted in ("yes", "no"):
        if _BOTH.fullmatch(plain):
            return False
        return plain.split(" ")[0] == wanted or _conclusion(text) == wanted or _exists(text, question) == wanted
    return normalise(_SENTENCE_END.split(text.strip())[0]) == wanted or _gives(_conclusion(text), wanted)


def _conclusion(text: str) -> str:
    """Return what follows the last concluding word of the last sentence of a text; the sentence where it has none.

    "" where the sentence denies or doubts what it concludes ("I don't think it is red"). Its reasons do not count ("because ...").
    """
    sentences = [part for part in _SENTENCE_END.split(text) if part.strip()]
    sentence = _REASON.sub("", sentences[-1]) if sentences else ""
    start = max((match.end() for match in _CONCLUDING.finditer(sentence)), default=0)
    return "" if _denied(sentence[:start]) else normalise(sentence[start:])


def _denied(before: str) -> bool:
    """Return whether the clause that a text ends in denies or doubts what follows."""
    clause = _CLAUSE.split(_SENTENCE_END.split(before)[-1].rstrip(" ,:"))[-1]
    return NEGATION.search(_RELATIVE.sub("", clause)) is not None


def _exists(text: str, question: str) -> str | None:
    """Return "no" for a text that begins with "There is no cat", "yes" if it says there is what the question asks for; else None."""
    sentence = _SENTENCE_END.split(text.strip())[0]
    if _NONE.match(sentence):
        return None if re.search(r"\bbut\b", sentence) else "no"
    said, asked = _THERE_IS.fullmatch(sentence), _IS_THERE.search(question)
    return "yes" if said and asked and _TAIL.sub("", normalise(said[1])) == _TAIL.sub("", normalise(asked[1])) else None


def _gives(part: str, wanted: str) -> bool:
    """Return whether the normalised `part` of a text is the answer `wanted`, alone or before a phrase as "in color", or its only number."""
    if wanted in (part, _TAIL.sub("", part)):
        return True
    numbers = {float(number) for number in _NUMBER.findall(part)}
    return _NUMBER.fullmatch(wanted) is not None and not NEGATION.search(part) and numbers == {float(wanted)}
