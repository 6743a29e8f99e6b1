"""Extract an answer from free text, without a model, by the rules of MMMU, MathVista and the clock benchmark.

Yue et al. (2023), Lu et al. (2023), Yang et al. (2022, "It's About Time"). Clocks are scored as the published Molmo was (allenai/molmo).

If no answer can be extracted, the published rules choose an option at random; here the answer counts as wrong.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plait.families.molmo.scoring.metrics import LETTERS, edit_distance

_CONCLUSIONS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b|-?\d+(?:\.\d+)?[eE][+-]?\d+|-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_QUOTED = re.compile(r"[Tt]he answer is\s*:?\s*\"?(.*?)\"?\.?\s*$", re.DOTALL)


def mmmu_choice(answer: str, options: Sequence[str]) -> int | None:
    """Return the index (from 0) of the option that an answer names last; None: it names none. `options`: their texts, in order of letters.

    An option is named by "(A)", else by a letter between spaces, else, in answers of more than 5 words, by its text.
    """
    text = f" {answer.strip(',.!?;: ' + chr(39))} "
    letters = LETTERS[: len(options)]
    for pattern in ("({})", " {} "):
        positions = {i: text.rfind(pattern.format(letter)) for i, letter in enumerate(letters)}
        if max(positions.values(), default=-1) >= 0:
            return max(positions, key=lambda i: positions[i])
    if len(text.split()) <= 5:
        return None
    positions = {i: text.lower().rfind(option.lower()) for i, option in enumerate(options)}
    best = max(positions, key=lambda i: positions[i], default=None)
    return best if best is not None and positions[best] >= 0 else None


def mmmu_open(answer: str, golds: Sequence[str]) -> float:
    """Return 1.0 if a conclusion of the answer contains a text or number of `golds`, else 0.0.

    A conclusion is the text after words such as "so" or "is".
    """
    targets = {value for gold in golds for value in _normal(gold)}
    values = {
        value for part in _conclusions(answer) for value in (*_normal(part), *(n for text in _NUMBERS.findall(part) for n in _normal(text)))
    }
    for value in values:
        if isinstance(value, float) and value in targets:
            return 1.0
        if isinstance(value, str) and any(isinstance(gold, str) and gold in value for gold in targets):
            return 1.0
    return 0.0


def _conclusions(answer: str) -> list[str]:
    """Return what follows the last concluding word of each sentence that has one; the whole answer if none has."""
    sentences = [part for part in re.split(r"\.\s(?=[A-Z])|\n", answer.strip().strip(".").lower()) if part]
    conclusions = []
    for i, sentence in enumerate(sentences):
        marks = (*_CONCLUSIONS, "=") if i == len(sentences) - 1 else _CONCLUSIONS
        after = [sentence.split(mark)[-1].strip() for mark in marks if mark in sentence]
        shortest = min((text for text in after if text.strip(":,.!?;'")), key=len, default=None)
        conclusions += [shortest] if shortest is not None else []
    return conclusions or [answer.lower()]


def _normal(text: str) -> list[str | float]:
    """Return the normal forms of a text: a number to two decimals, else lower case.

    A single letter only between spaces, because it would be part of every word.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def mathvista(answer: str, record: Mapping[str, Any]) -> float:
    """Return 1.0 if the value extracted from the answer equals the true one, else 0.0.

    `record` is a row of MathVista: `question_type`, `answer_type`, `choices`, `precision`, `answer`.
    """
    value = _value(_extract(answer, record), record)
    return float(value is not None and value == _value(str(record["answer"]), record))


def _extract(answer: str, record: Mapping[str, Any]) -> str:
    """Return the part of an answer that is its value.

    All of it, what follows "the answer is", or the last number where the record's type is a number.
    """
    text = answer.strip()
    if record["question_type"] == "multi_choice" and text in record["choices"]:
        return text
    quoted = _QUOTED.search(text)
    if quoted is not None:
        text = quoted.group(1).strip()
    if record["question_type"] != "multi_choice" and record["answer_type"] in ("integer", "float"):
        numbers = _NUMBERS.findall(text)
        return numbers[-1].replace(",", "") if numbers else text
    return text


def _value(text: str, record: Mapping[str, Any]) -> str | None:
    """Return the normal form for comparison: the option's text, a whole number, or a number at the record's precision."""
    if record["question_type"] == "multi_choice":
        choices: list[str] = list(record["choices"])
        letter = re.match(r"\(?([A-Z])\)?[.:]?(?:\s|$)", text)
        if letter is not None and LETTERS.index(letter.group(1)) < len(choices) and text not in choices:
            return choices[LETTERS.index(letter.group(1))]
        return min(choices, key=lambda choice: edit_distance(text, choice)) if text else None
    try:
        if record["answer_type"] == "integer":
            return str(int(float(text)))
        if record["answer_type"] == "float":
            return str(round(float(text), _decimals(record)))
    except (ValueError, OverflowError):
        return None
    return text


def _decimals(record: Mapping[str, Any]) -> int:
    """Return the record's precision in decimals; where it has none, as many as its true answer is written with."""
    if record.get("precision") is not None:
        return int(record["precision"])
    return len(str(record["answer"]).partition(".")[2])


def clock(answer: str, hour: int, minute: int) -> dict[str, float]:
    """Return `score` (1 if hour and minute are right), `close`, `hour`, `minute` and `minute_close` of an answer such as "10:42".

    Both may be given as on a dial: hours count modulo 12, and minute 60 is 0. A minute is close within 1, around the hour too; a time is
    close if its hour is right and its minute close, or if it lies one minute off over twelve o'clock.
    """
    hours, _, rest = answer.strip().partition(":")
    told_hour, told_minute = _whole(hours.split()[-1:]), _whole(rest.partition(":")[0].split()[:1])
    told_hour = told_hour - 12 if told_hour is not None and told_hour >= 12 else told_hour
    told_minute = 0 if told_minute == 60 else told_minute
    hour_right, minute_right = told_hour == hour % 12, told_minute == minute % 60
    minute_close = told_minute is not None and abs(told_minute - minute % 60) in (0, 1, 59)
    if told_hour is None or told_minute is None:
        close = False
    else:
        close = (hour_right and minute_close) or abs((hour % 12 * 60 + minute % 60) - (told_hour * 60 + told_minute)) == 719
    figures = {"score": hour_right and minute_right, "close": close, "hour": hour_right, "minute": minute_right}
    return {name: float(value) for name, value in {**figures, "minute_close": minute_close}.items()}


def _whole(words: Sequence[str]) -> int | None:
    """Return the number that the only word spells, or None."""
    try:
        return int(words[0]) if words else None
    except ValueError:
        return None
