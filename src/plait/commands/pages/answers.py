"""Render the HTML page of a bench's (evaluation's) answers: results, then all answers, to filter by task and by right or wrong.

The summary needs no JavaScript. The answers are a JSON block, which answers.js turns into articles while scrolling. Colour means right or
wrong, and nothing else. A task is a group of questions, such as "colour", that has a figure (result) of its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from plait.commands.pages.card import clean_name, clean_text
from plait.commands.pages.page import page_pictures, render

KINDS = ("wrong", "unusable", "", "right")
"""Kinds of an answer, in the order of the page; "": not scored as right or wrong."""


@dataclass(frozen=True)
class Answer:
    """One answer to show, to the sample `id`. `kind`: "right", "wrong", "unusable" or "" (not scored); `task`: its group, or None.

    `pairs`: lines below the question as (name, text, one of KINDS: "right" and "wrong" colour the text, others do not). `pictures`:
    (H, W, 3) uint8, with their `labels`; empty if the answer is shown without.
    """

    id: str
    kind: str
    task: str | None
    question: str
    pairs: Sequence[tuple[str, str, str]]
    pictures: Sequence[np.ndarray] = ()
    labels: Sequence[str] = ()


class Figure(NamedTuple):
    """A result of the bench. `value` and 95 % `interval` are text ("" for none); `task`: the group of questions that it is of, or None."""

    name: str
    value: str
    interval: str
    task: str | None = None


@dataclass
class _Count:
    """How many answers are right and how many wrong."""

    right: int = 0
    wrong: int = 0


@dataclass
class _Store:
    """Pictures as the page's JSON holds them: those that are the same are held once."""

    pictures: list[dict[str, Any]] = field(default_factory=list)
    positions: dict[tuple[str, int, int], int] = field(default_factory=dict)

    def add(self, answer: Answer) -> list[tuple[int, str]]:
        """Return (position, label) of each picture of an answer."""
        placed = []
        for shown in page_pictures(answer.pictures, answer.labels, lossless=False):
            key = (shown.source, shown.width, shown.height)
            if key not in self.positions:
                self.positions[key] = len(self.pictures)
                fields = {name: value for name, value in shown._asdict().items() if name not in ("label", "whole")}
                self.pictures.append(fields)
            placed.append((self.positions[key], clean_text(shown.label)))
        return placed


def render_answers(
    title: str,
    details: Sequence[tuple[str, str]],
    figures: Sequence[Figure],
    answers: Sequence[Answer],
    *,
    noun: str = "answers",
    overall: Figure | None = None,
) -> str:
    """Return the page of a bench's answers as HTML text. `details`: (name, text) on what was measured; `answers`: in the order to show.

    `figures`: the results, in a table; `overall`: that of them which is shown large, or None; `noun`: what the page calls the answers.
    """
    store = _Store()
    kinds = Counter(answer.kind for answer in answers)
    tasks: dict[str, _Count] = {}
    for answer in answers:
        if answer.task is not None:
            count = tasks.setdefault(clean_text(answer.task), _Count())
            count.right += answer.kind == "right"
            count.wrong += answer.kind == "wrong"
    cleaned = [Figure(clean_text(one.name), one.value, one.interval, clean_text(one.task) if one.task else None) for one in figures]
    return render(
        "answers.html.j2",
        script="answers.js",
        title=clean_name(title),
        details=[(clean_name(name), clean_name(value)) for name, value in details],
        overall=overall,
        figures=cleaned,
        intervals=any(figure.interval for figure in cleaned),
        counts={kind: kinds[kind] for kind in KINDS if kind},
        kinds=[(kind, kinds[kind]) for kind in KINDS if kind and kinds[kind]],
        tasks={name: tasks[name] for name in sorted(tasks)},
        total=len(answers),
        data={"noun": noun, "answers": [_fields(answer, store) for answer in answers], "pictures": store.pictures},
    )


def _fields(answer: Answer, store: _Store) -> dict[str, Any]:
    """Return an answer as the page's JSON has it, without what is empty."""
    pairs = [tuple(clean_text(text) for text in pair) for pair in answer.pairs]
    given = {
        "id": clean_name(answer.id),
        "kind": answer.kind,
        "task": clean_text(answer.task or ""),
        "question": clean_text(answer.question),
        "pairs": pairs,
        "pictures": store.add(answer),
    }
    return {name: value for name, value in given.items() if value or name == "pairs"}
