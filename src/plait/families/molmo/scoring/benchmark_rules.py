"""The rules of MMMU (Yue et al. 2023) and MathVista (Lu et al. 2023) for reading an answer out of free text, without asking any model.

Where the published rules draw a random option for an unreadable answer, it is wrong here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plait.families.molmo.scoring.metrics import LETTERS, edit_distance

_CONCLUSIONS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b|-?\d+(?:\.\d+)?[eE][+-]?\d+|-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_QUOTED = re.compile(r"[Tt]he answer is\s*:?\s*\"?(.*?)\"?\.?\s*$", re.DOTALL)


def mmmu_choice(answer: str, options: Sequence[str]) -> int | None:
    """The option that the answer names last: by "(A)", by a letter standing alone, or, in an answer of over five words, by its text."""
    text = f" {answer.strip(',.!?;: ' + chr(39))} "
    letters = LETTERS[: len(options)]
    for pattern in ("({})", " {} "):
        places = {i: text.rfind(pattern.format(letter)) for i, letter in enumerate(letters)}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda i: places[i])
    if len(text.split()) <= 5:
        return None
    places = {i: text.lower().rfind(option.lower()) for i, option in enumerate(options)}
    best = max(places, key=lambda i: places[i], default=None)
    return best if best is not None and places[best] >= 0 else None


def mmmu_open(answer: str, golds: Sequence[str]) -> float:
    """1 if a conclusion of the answer holds a gold text, or says a gold number (to two decimals)."""
    wanted = {value for gold in golds for value in _normal(gold)}
    said = {value for part in _conclusions(answer) for value in (*_normal(part), *(n for t in _NUMBERS.findall(part) for n in _normal(t)))}
    for value in said:
        if isinstance(value, float) and value in wanted:
            return 1.0
        if isinstance(value, str) and any(isinstance(gold, str) and gold in value for gold in wanted):
            return 1.0
    return 0.0


def _conclusions(answer: str) -> list[str]:
    """After the last word that announces a conclusion, in each sentence that has one; the whole answer if none has."""
    sentences = [part for part in re.split(r"\.\s(?=[A-Z])|\n", answer.strip().strip(".").lower()) if part]
    found = []
    for place, sentence in enumerate(sentences):
        marks = (*_CONCLUSIONS, "=") if place == len(sentences) - 1 else _CONCLUSIONS
        after = [sentence.split(mark)[-1].strip() for mark in marks if mark in sentence]
        shortest = min((text for text in after if text.strip(":,.!?;'")), key=len, default=None)
        found += [shortest] if shortest is not None else []
    return found or [answer.lower()]


def _normal(text: str) -> list[str | float]:
    """A number to two decimals; a text in lower case; a single letter only between spaces, or it would be in every word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def mathvista(answer: str, record: Mapping[str, Any]) -> float:
    """1 if the value read out of the answer equals the record's: `question_type`, `answer_type`, `choices`, `precision`, `answer`."""
    said = _value(_extract(answer, record), record)
    return float(said is not None and said == _value(str(record["answer"]), record))


def _extract(answer: str, record: Mapping[str, Any]) -> str:
    """The part of an answer that is the value: all of it, what follows "the answer is", or the last number where a number is asked for."""
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
    """The normal form in which values are compared: the option's text, a whole number, or a number at the asked precision."""
    if record["question_type"] == "multi_choice":
        choices = list(record["choices"])
        letter = re.match(r"\(?([A-Z])\)?[.:]?(?:\s|$)", text)
        if letter is not None and LETTERS.index(letter.group(1)) < len(choices) and text not in choices:
            return choices[LETTERS.index(letter.group(1))]
        return min(choices, key=lambda choice: edit_distance(text, choice)) if text else None
    try:
        if record["answer_type"] == "integer":
            return str(int(float(text)))
        if record["answer_type"] == "float":
            return str(round(float(text), int(record["precision"])))
    except (ValueError, OverflowError):
        return None
    return text
