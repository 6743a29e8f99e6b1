"""How a conversation is written: ` User: {q} Assistant:` and ` {a}`, what a prompt begins with, and where images stand.

A style names a task and the manner of its answers (`vqa2`, `long_caption`). Demo styles are mostly left unnamed, so that the model answers
users who name none. A caption's prompt may carry its length, so that a length can be asked for.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.errors import BadSample
from plait.families.molmo.config import IMAGE_MARK, Config

DEMO_STYLES = frozenset({"pointing", "point_count", "user_qa", "long_caption"})
UNNAMED = frozenset({"none", "demo", "android_control"})  # whose prompts are complete as they are
EVALUATION_STYLES = {"eval_short_answer": "vqa2", "eval_multiple_choice": "a_okvqa_mc"}

LENGTH_UNIT = 15  # characters; a caption's length is asked for in these
LENGTH_NOISE = 25.0  # characters, standard deviation: a rough length is enough to ask for
NAMED_SHARE = 0.1  # of demo prompts that name their style
LENGTHLESS_SHARE = 0.1  # of training captions whose prompt has no number

_MARKS = re.compile(rf"{re.escape(IMAGE_MARK)}|<image>")
Message = dict[str, str]


@dataclass(frozen=True)
class Words:
    """A run of text, or the place of an image; `answer` if the model shall learn to say it and then to stop."""

    text: str
    answer: bool = False
    image: bool = False


def opening(config: Config, style: str, answer: str | None, random: np.random.Generator | None) -> str:
    """What the first prompt of a conversation begins with. `random` None: as asked outside training, the same every time."""
    style = EVALUATION_STYLES.get(style, style)
    if config.style == "none" or style in UNNAMED:
        return ""
    if config.style == "style_and_length":
        return f"{style} {_length(config, answer, random)}:"
    if config.style == "demo_or_style" and style in DEMO_STYLES and (random is None or random.random() >= NAMED_SHARE):
        return ""
    return f"{style}:"


def _length(config: Config, answer: str | None, random: np.random.Generator | None) -> str:
    """(length + N(0, 25)) // 15 in training, 90 % of the time; a fixed number otherwise. Empty: no number."""
    if random is None or answer is None:
        return "" if config.caption_length is None else str(config.caption_length)
    if random.random() < LENGTHLESS_SHARE:
        return ""
    return str(max(0, int((len(answer) + random.normal(scale=LENGTH_NOISE)) // LENGTH_UNIT)))


def written(config: Config, messages: Sequence[Message], style: str, random: np.random.Generator | None) -> list[Words]:
    """The conversation in runs of text and images. BadSample for roles that do not alternate."""
    turns = _turns(messages)
    answer = next((text for role, text in turns if role == "assistant"), None)
    return list(_runs(config, turns, opening(config, style, answer, random)))


def _runs(config: Config, turns: Sequence[tuple[str, str]], first: str) -> Iterator[Words]:
    for place, (role, text) in enumerate(turns):
        if role == "assistant":
            yield Words(f" {text}", answer=True)
            continue
        asked = " ".join(part for part in (first if place == 0 else "", text) if part)
        whole = f" User: {asked} Assistant:" if config.format == "role" else f" {asked}" if asked else ""
        pieces = _MARKS.split(whole)
        for number, piece in enumerate(pieces):
            if number:
                yield Words("", image=True)
            if piece:
                yield Words(piece)


def _turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """(role, text) of turns that alternate from a user's; a system text opens the first."""
    turns = [(message["role"], message["content"].strip()) for message in messages]
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
        turns[:1] = [("user", f"{system}\n{turns[0][1]}")] if turns and turns[0][0] == "user" else [("user", system), *turns[:1]]
    if not turns or turns[0][0] != "user":
        turns.insert(0, ("user", ""))
    wrong = [role for place, (role, _) in enumerate(turns) if role != ("user", "assistant")[place % 2]]
    if wrong:
        raise BadSample(f"roles must alternate user, assistant, user, ...; they are {', '.join(role for role, _ in turns)}")
    if any(role == "assistant" and _MARKS.search(text) for role, text in turns):
        raise BadSample(f"an answer holds {IMAGE_MARK}: images stand in the user's turns")
    return turns


def without_leading_marks(messages: Sequence[Message]) -> tuple[list[Message], int]:
    """The messages without image marks at the start of the first user turn, and how many there were: those images come first anyway."""
    kept = [dict(message) for message in messages]
    for message in kept:
        if message["role"] == "user":
            led = re.match(rf"(?:\s*(?:{_MARKS.pattern})\s*)+", message["content"])
            if led is None:
                break
            message["content"] = message["content"][led.end() :]
            return kept, len(_MARKS.findall(led.group()))
    return kept, 0


def marks(messages: Sequence[Message]) -> int:
    """Image marks in the user's turns."""
    return sum(len(_MARKS.findall(message["content"])) for message in messages if message["role"] == "user")


def conversations(sample: dict[str, Any], default_style: str) -> list[tuple[list[Message], str, float]]:
    """(messages, style, weight) of each annotation of a sample.

    A sample may list `annotations` of its image, each with its own `messages`, `style` and `weight`; otherwise its `messages` are the one.
    The style is the annotation's, or the sample's field `style`, or the default.
    """
    style = str(sample["fields"].get("style", default_style))
    listed = sample.get("annotations") or [{"messages": sample["messages"]}]
    return [(one["messages"], str(one.get("style", style)), float(one.get("weight", sample.get("weight", 1.0)))) for one in listed]
