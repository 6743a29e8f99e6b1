"""Score one answer against gold (right) ones, from 0 to 1, as benchmarks define it: pure functions without model or randomness."""

import re
from collections.abc import Sequence

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll "
    "how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock "
    "oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll "
    "they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've "
    "who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've "
)


_CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in _FULL.split() for i, letter in enumerate(word) if letter == "'"}
"""{spelling with one apostrophe left out: word}, as in the published table, whose entries with capitals never match."""
_CONTRACTIONS |= {"somebody'd": "somebodyd"}


def vqa_normalise(text: str) -> str:
    """Return a text in VQA's normal form: lower case; punctuation, number words, articles, contractions normalised (Antol et al. 2015)."""
    text = text.replace("\n", " ").replace("\t", " ").strip().lower()
    out = text
    grouped = re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        out = out.replace(mark, "" if grouped or f"{mark} " in text or f" {mark}" in text else " ")
    out = re.sub(r"\.(?!\d)", "", out)
    words = [_DIGITS.get(word, word) for word in out.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_score(answer: str, golds: Sequence[str]) -> float:
    """Return min(n / 3, 1) with n of the `golds` equal to the answer after `vqa_normalise`. `golds`: one per person (Antol et al. 2015)."""
    normalised = vqa_normalise(answer)
    return min(sum(vqa_normalise(gold) == normalised for gold in golds) / 3, 1.0)


def a_okvqa_score(answer: str, golds: Sequence[str]) -> float:
    """Return min(n / 3, 1) with n of the `golds` equal to the answer. As A-OKVQA does, only case and outer white space are ignored."""
    return min(sum(gold.strip().lower() == answer.strip().lower() for gold in golds) / 3, 1.0)


def short_answer(text: str) -> str:
    """Return the part of a generated text that is scored as its short answer: what follows "Answer:", else its most frequent line.

    Of lines that are equally frequent the first counts; white space is collapsed. The published model is evaluated in this way.
    """
    if "Answer:" in text:
        return text.split("Answer:")[1].strip()
    lines = [" ".join(line.split()) for line in text.strip().split("\n")]
    return max(lines, key=lines.count)


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """Return 1 if the answer equals one of `golds` but for case and outer white space, else 0."""
    return float(answer.strip().lower() in {gold.strip().lower() for gold in golds})


def edit_distance(a: str, b: str) -> int:
    """Return the least number of insertions, deletions and replacements that turn a into b (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (left != right))
    return row[-1]


def anls(answer: str, golds: Sequence[str]) -> float:
    """Return the normalised Levenshtein similarity, whose average over answers is ANLS (Biten et al. 2019).

    It is the largest over `golds` of 1 - edit distance / length of the longer text, or 0 if that is not above 0.5.
    """
    return max((_similarity(_plain(answer), _plain(gold)) for gold in golds), default=0.0)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    distance = edit_distance(a, b) / max(len(a), len(b), 1)
    return 1 - distance if distance < 0.5 else 0.0


def rouge_l(answer: str, gold: str) -> dict[str, float]:
    """Return `score`, `precision` and `recall`, from 0 to 1, of the words that two texts share in one order: ROUGE-L (Lin 2004).

    With the length c of the longest common subsequence of words, in small letters, precision is c / words of the answer, recall is
    c / words of `gold`, and the score their harmonic mean.
    """
    words, targets = (re.findall(r"\w+", text.lower()) for text in (answer, gold))
    row = [0] * (len(targets) + 1)  # longest common subsequences with the first words of `targets`
    for word in words:
        corner = 0
        for j, target in enumerate(targets, start=1):
            corner, row[j] = row[j], corner + 1 if word == target else max(row[j], row[j - 1])
    precision, recall = row[-1] / max(len(words), 1), row[-1] / max(len(targets), 1)
    return {"score": 2 * precision * recall / max(precision + recall, 1e-12), "precision": precision, "recall": recall}


def number(text: str) -> float | None:
    """Parse a text as a number: "1,000" is 1000, "10%" is 0.1, "$5" is 5; None for any other text."""
    plain = text.strip().rstrip(".").replace(",", "").removeprefix("$").strip()
    percentage = plain.endswith("%")
    try:
        value = float(plain.removesuffix("%"))
    except ValueError:
        return None
    return value / 100 if percentage else value


def relaxed_accuracy(answer: str, golds: Sequence[str], tolerance: float = 0.05) -> float:
    """Return 1 for a number within `tolerance` of one of `golds`, or an equal text, else 0. 0.05 is 5 % (ChartQA, Masry et al. 2022)."""
    return max((_relaxed(answer, gold, tolerance) for gold in golds), default=0.0)


def _relaxed(answer: str, gold: str, tolerance: float) -> float:
    value, target = number(answer), number(gold)
    if value is not None and target is not None:
        return float(value == target if target == 0 else abs(value - target) <= tolerance * abs(target) + 1e-12)
    return float(_plain(answer) == _plain(gold))


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def choose(answer: str, options: Sequence[str]) -> int | None:
    """Return the index (from 0) of the option that an answer selects; None: not exactly one. `options`: their texts, in order of letters.

    It is selected by its letter, else as the only option that the answer contains, else if one of the two texts begins with the other. A
    letter counts alone, before punctuation ("C.", "(C)", "C: a cat"), or after "answer is", "answer:", "option", "choice"; not in "A cat".
    """
    text = answer.strip()
    known = LETTERS[: len(options)]
    letter = re.fullmatch(rf"\(?([{known}{known.lower()}])[).:]?", text) or re.match(rf"\(?([{known}])(?:[).:]\s|\)|:)", text)
    if letter is None:
        ends = r"(?=[).:,;!]|\s*$)"
        alone = rf"(?i:answer\s+is|answer)\s*:?\s*\(?([{known}]){ends}"
        stated = rf"{alone}|(?i:answer\s+is|answer:)\s*([{known[1:]}])\b|(?i:option|choice)\s+\(?([{known}])\b"
        letter = next(reversed(list(re.finditer(stated, text))), None)
    if letter is not None:
        return known.index(next(group for group in letter.groups() if group).upper())
    plain = _plain(text).rstrip(".")
    texts = [_plain(option).rstrip(".") for option in options]
    for matches in (
        [i for i, option in enumerate(texts) if option == plain],
        _longest([i for i, option in enumerate(texts) if option and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", plain)], texts),
        [i for i, option in enumerate(texts) if plain and option and (option.startswith(plain) or plain.startswith(option))],
    ):
        if len(matches) == 1:
            return matches[0]
    return None


def _longest(matches: list[int], options: Sequence[str]) -> list[int]:
    """Drop options that are only part of another matched one: "red car" contains "car", but means "red car"."""
    return [i for i in matches if not any(i != j and options[i] in options[j] for j in matches)]
