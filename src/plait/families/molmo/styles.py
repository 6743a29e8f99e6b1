"""Convert a conversation to text: ` User: {q} Assistant:` and ` {a}`. Also the style prefix of a prompt, and the places of images.

A style names a task and the manner of its answers (`vqa2`, `long_caption`). Demo styles are mostly left unnamed, so that the model answers
users who name none. A caption's prompt may carry a length, so that users can request one: `long_caption 65:`. An annotation is one
conversation about a sample's image; `messages` are its turns, [{"role": "user", "content": "..."}, ...], where `<|image|>` marks an image.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.data.text import IMAGE_MARK
from plait.errors import BadSample
from plait.families.molmo.config import Config
from plait.families.molmo.hf.sizes import IMAGE_PROMPT

DEMO_STYLES = frozenset({"pointing", "point_count", "user_qa", "long_caption"})
UNNAMED_STYLES = frozenset({"none", "demo", "android_control"})  # never named: their prompts are complete as they are
EVALUATION_STYLES = {"eval_short_answer": "vqa2", "eval_multiple_choice": "a_okvqa_mc"}

LENGTH_UNIT = 15  # characters per unit of the length in a caption's prompt
LENGTH_NOISE = 25.0  # characters, standard deviation, so that the model follows rough lengths
NAMED_PROBABILITY = 0.1  # of a demo prompt to name its style
LENGTHLESS_PROBABILITY = 0.1  # of a training caption's prompt to have no number

_MARKS = re.compile(rf"{re.escape(IMAGE_PROMPT)}|{re.escape(IMAGE_MARK)}")
Message = dict[str, str]
Conversation = tuple[list[Message], str, float]
"""(messages, style, weight) of one annotation."""


@dataclass(frozen=True)
class TextSpan:
    """A piece of text, or the place of an image. An `answer` is supervised: the model learns to produce it and then the end of text."""

    text: str
    answer: bool = False
    image: bool = False


def prompt_prefix(config: Config, style: str, answer: str | None, random: np.random.Generator | None) -> str:
    """Return how the first prompt begins by `config.style`: "", a style ("vqa2:"), or with the length of `answer` too ("vqa2 4:").

    `random`: None except in training, where lengths are the answer's in units of 15 letters, with noise; else it is `caption_length`.
    """
    style = EVALUATION_STYLES.get(style, style)
    if config.style == "none" or style in UNNAMED_STYLES:
        return ""
    if config.style == "style_and_length":
        return f"{style} {_requested_length(config, answer, random)}:"
    if config.style == "demo_or_style" and style in DEMO_STYLES and (random is None or random.random() >= NAMED_PROBABILITY):
        return ""
    return f"{style}:"


def _requested_length(config: Config, answer: str | None, random: np.random.Generator | None) -> str:
    """Return (length + N(0, 25)) // 15 in training, 90 % of the time; a fixed number otherwise; empty for no number."""
    if random is None or answer is None:
        return "" if config.caption_length is None else str(config.caption_length)
    if random.random() < LENGTHLESS_PROBABILITY:
        return ""
    return str(max(0, int((len(answer) + random.normal(scale=LENGTH_NOISE)) // LENGTH_UNIT)))


def conversation_spans(config: Config, messages: Sequence[Message], style: str, random: np.random.Generator | None) -> list[TextSpan]:
    """Split a conversation, with the prefix that its `style` has, into spans of text; `random` is None except in training.

    Raises BadSample for wrong roles, and for marks of images in answers, in the system text or in the style.
    """
    if mark := _MARKS.search(style):
        raise BadSample(f"the style {style!r} holds {mark[0]}: images stand in the user's turns")
    turns = _turns(messages)
    answer = next((text for role, text in turns if role == "assistant"), None)
    return list(_spans(config, turns, prompt_prefix(config, style, answer, random)))


def _spans(config: Config, turns: Sequence[tuple[str, str]], prefix: str) -> Iterator[TextSpan]:
    for number, (role, text) in enumerate(turns):
        if role == "assistant":
            yield TextSpan(f" {text}", answer=True)
            continue
        question = " ".join(part for part in (prefix if number == 0 else "", text) if part)
        framed = f" User: {question} Assistant:" if config.format == "role" else f" {question}" if question else ""
        for i, between_marks in enumerate(_MARKS.split(framed)):
            if i:
                yield TextSpan("", image=True)
            if between_marks:
                yield TextSpan(between_marks)


def _turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Return (role, text) of turns that alternate from a user's; a system text opens the first."""
    turns = [(message["role"], _trimmed(message)) for message in messages]
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
        if mark := _MARKS.search(system):
            raise BadSample(f"the system text holds {mark[0]}: images stand in the user's turns")
        turns[:1] = [("user", f"{system}\n{turns[0][1]}")] if turns and turns[0][0] == "user" else [("user", system), *turns[:1]]
    if not turns or turns[0][0] != "user":
        turns.insert(0, ("user", ""))
    if any(role != ("user", "assistant")[number % 2] for number, (role, _) in enumerate(turns)):
        raise BadSample(f"roles must alternate user, assistant, user, ...; they are {', '.join(role for role, _ in turns)}")
    if any(role == "assistant" and _MARKS.search(text) for role, text in turns):
        raise BadSample(f"an answer holds {IMAGE_PROMPT}: images stand in the user's turns")
    return turns


def _trimmed(message: Message) -> str:
    """Strip white space; a user's text keeps a line break at its end, with which multiple choice is published."""
    text = message["content"].strip()
    ends = message["role"] == "user" and text and message["content"].rstrip(" \t\r").endswith("\n")
    return f"{text}\n" if ends else text


def strip_leading_image_marks(messages: Sequence[Message]) -> tuple[list[Message], int]:
    """Remove image marks at the start of the first user turn, as images come first anyway; return (messages, number removed)."""
    kept = [dict(message) for message in messages]
    for message in kept:
        if message["role"] == "user":
            leading = re.match(rf"(?:\s*(?:{_MARKS.pattern})\s*)+", message["content"])
            if leading is None:
                break
            message["content"] = message["content"][leading.end() :]
            return kept, len(_MARKS.findall(leading.group()))
    return kept, 0


def count_image_marks(messages: Sequence[Message]) -> int:
    """Return the number of image marks in the user's turns."""
    return sum(len(_MARKS.findall(message["content"])) for message in messages if message["role"] == "user")


def conversations(sample: dict[str, Any], default_style: str | None, *, wordings: bool = True) -> list[Conversation]:
    """Return (messages, style, loss weight) of each annotation of a sample. `wordings`: false: a text's `bare` form replaces it.

    A sample may list `annotations` of its image, each with `messages`, `style` and `weight`; otherwise its `messages` are the only one. The
    style is the annotation's, else the sample's field `style`, else `default_style`, else "user_qa", or "long_caption" without question.
    """
    annotations = sample.get("annotations") or [{"messages": sample["messages"]}]
    given = sample["fields"].get("style", default_style)
    styles = [a.get("style", given) or ("user_qa" if _asks(a["messages"]) else "long_caption") for a in annotations]
    text = "content" if wordings else "bare"
    asked = [[{**turn, "content": turn.get(text, turn["content"])} for turn in a["messages"]] for a in annotations]
    return [(m, str(s), float(a.get("weight", sample.get("weight", 1.0)))) for a, s, m in zip(annotations, styles, asked, strict=True)]


def _asks(messages: Sequence[Message]) -> bool:
    return any(message["role"] == "user" and _MARKS.sub("", message["content"]).strip() for message in messages)
