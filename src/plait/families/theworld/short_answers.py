"""Score a free text by its short answer, where published evaluators look for one, not by any substring.

Those are: what follows "the answer is" or "Answer:" (MathVista, Lu et al. 2023, arXiv:2310.02255), else a yes or no that the text begins
with (MME, Fu et al. 2023, arXiv:2306.13394), its first sentence (POPE, Li et al. 2023, arXiv:2305.10355), and of its last line what
follows a concluding word (MMMU, Yue et al. 2023, arXiv:2311.16502). MMMU then accepts the right text anywhere in it; here it must be all
of it, or the only number in it. Texts are compared in VQA's form, without articles (Antol et al. 2015, arXiv:1505.00468).
"""

import re

_STATED = re.compile(r"\banswer(?:\s+is|\s*:)\s*:?\s*(.+?)(?:[.!?;](?=\s|$)|\n|$)", re.IGNORECASE)
_CONCLUDING = re.compile(r"\b(?:could be|so|is|are|was|were|thus|therefore|final|result)\b[\s,:]*|=\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_NEGATION = re.compile(r"\bnot\b|n't\b", re.IGNORECASE)
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_WORDS)}


def normalise(text: str) -> str:
    """Return the text in lower case, without outer punctuation, articles and repeated spaces, with number words as digits."""
    words = re.sub(r"(?<=\d),(?=\d{3})", "", text.casefold()).replace("*", " ").split()
    plain = [word.strip("\"'()[],;:!?").rstrip(".") for word in words]
    kept = [_DIGITS.get(word, word) for word in plain if word not in ("", "a", "an", "the")]
    return " ".join(kept or plain).strip()


def stated(text: str) -> str | None:
    """Return the one answer that a text states after "the answer is" or "Answer:"; None where it states none, "" for several."""
    answers = {normalise(match) for match in _STATED.findall(text)}
    return None if not answers else answers.pop() if len(answers) == 1 else ""


def says(text: str, gold: str) -> bool:
    """Return whether a text gives the right answer: `gold`, or what `gold` itself states after "the answer is"."""
    wanted = stated(gold) or normalise(gold)
    if normalise(text) in (wanted, normalise(gold)):
        return True
    if (given := stated(text)) is not None:
        return _gives(given, wanted)
    if wanted in ("yes", "no"):
        return normalise(text).split(" ")[0] == wanted or _conclusion(text) == wanted
    return normalise(_SENTENCE_END.split(text.strip())[0]) == wanted or _gives(_conclusion(text), wanted)


def _conclusion(text: str) -> str:
    """Return what follows the last concluding word of the last sentence of a text; the sentence where it has none."""
    sentences = [part for part in _SENTENCE_END.split(text) if part.strip()]
    return normalise(_CONCLUDING.split(sentences[-1])[-1]) if sentences else ""


def _gives(part: str, wanted: str) -> bool:
    """Return whether the normalised `part` of a text is the answer `wanted`, or has no other number than it."""
    if part == wanted:
        return True
    numbers = {float(number) for number in _NUMBER.findall(part)}
    return _NUMBER.fullmatch(wanted) is not None and not _NEGATION.search(part) and numbers == {float(wanted)}
