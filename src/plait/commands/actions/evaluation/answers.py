"""Write a bench's (evaluation's) answers to an HTML page and a contact sheet (one PNG): wrong ones first, some with their pictures.

A row is a dict with one sample's answer: `id`, `answer`, `gold` (right answer), `correct`, or `bad`, why there is none.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.assembly.held_out import ChosenSamples
from plait.commands.pages import answers as page
from plait.commands.pages import gallery
from plait.commands.pages.answers import KINDS, Answer, Figure
from plait.commands.pages.card import Card
from plait.data import images
from plait.engine.evaluation import Row, is_count
from plait.training.figures.intervals import shown

_ON_SHEET = 48
"""Number of answers on a contact sheet; the page shows all."""
_OWN_PLACE = {"id", "question", "caption", "answer", "gold", "correct", "task", "picture", "bad", "ways"}
"""Keys of a row that have a fixed place on the page; the others are shown as notes."""


def write(
    folder: Path,
    title: str,
    *,
    details: Sequence[tuple[str, str]],
    figures: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    rows: Sequence[Row],
    samples: ChosenSamples,
    pictures: int,
) -> tuple[Path, Path]:
    """Write `sheet.png` and `page.html` into `folder` and return their paths. `rows`: all answers, in the order of `samples`.

    `details`: (name, text) on what was measured; `figures`: results by name, with 95 % `intervals`. `pictures`: number of answers that are
    shown with their pictures, spread evenly over tasks and over wrong, unusable and right ones.
    """
    order = sorted(range(len(rows)), key=lambda i: (KINDS.index(kind_of(rows[i])), _score(rows[i])))
    pictured = _pictured(rows, order, pictures)
    names = _telling(rows)
    answers = {i: _answer(rows[i], samples, i, names, i in pictured) for i in order}
    cards = [_card(answers[i]) for i in order if i in pictured or "bad" in rows[i]][:_ON_SHEET]
    tasks = {row["task"] for row in rows if row.get("task") is not None}
    written = [Figure(name, shown(name, value), _interval(name, intervals), _task_of(name, tasks)) for name, value in figures.items()]
    noun = "answers" if any("answer" in row for row in rows) else "samples"
    has_overall = bool(written) and not is_count(written[0].name)
    html = page.render_answers(title, details, written, list(answers.values()), noun=noun, overall=written[0] if has_overall else None)
    overall = [f"{written[0].name} {written[0].value}"] if has_overall else []
    which = f"{len(cards)} of {len(rows):,} {noun}{', wrong ones first' if any('correct' in row for row in rows) else ''}"
    lines = [*overall, *(f"{name} {text}" for name, text in details), which]
    return gallery.write_both(folder, title, lines, cards, html)


def kind_of(row: Row) -> str:
    """Return what a row's answer is: "wrong", "unusable" (the row has `bad`), "" (not scored as right or wrong) or "right"."""
    if "bad" in row:
        return "unusable"
    return "" if row.get("correct") is None else "right" if row["correct"] else "wrong"


def _score(row: Row) -> float:
    """Return the score that a row has besides right and wrong, so that the worst come first."""
    score = row.get("score")
    return score if isinstance(score, float) else 0.0


def _pictured(rows: Sequence[Row], order: Sequence[int], most: int) -> set[int]:
    """Choose the rows whose pictures are shown: by turns the next one of each task and kind."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i in order:
        if "bad" not in rows[i]:
            groups.setdefault((kind_of(rows[i]), str(rows[i].get("task"))), []).append(i)
    turns = (i for turn in itertools.zip_longest(*groups.values()) for i in turn if i is not None)
    return set(itertools.islice(turns, most))


def _telling(rows: Sequence[Row]) -> list[str]:
    """Return the keys of notes worth showing: rows differ in their values. A score only where it is not just right or wrong."""
    plain = all(row["score"] == float(row.get("correct", -1)) for row in rows if "score" in row)
    names = dict.fromkeys(name for row in rows for name in row if name not in _OWN_PLACE and not (plain and name == "score"))
    return [name for name in names if len(rows) == 1 or any(row.get(name) != rows[0].get(name) for row in rows if "bad" not in row)]


def _answer(row: Row, samples: ChosenSamples, position: int, names: Sequence[str], pictured: bool) -> Answer:
    """Return what the page shows of the answer in `row` to the sample at `position`. Its pictures are the sample's, then the drawn one."""
    kind = kind_of(row)
    pairs = [("reason", str(row["bad"]), "")] if "bad" in row else _answers(row, kind)
    pairs += [(name.replace("_", " "), _text(row[name]), "") for name in names if name in row]
    pictures, labels = [], []
    if pictured:
        given = samples[position]["images"]
        drawn = [Path(row["picture"]).read_bytes()] if "picture" in row else []
        labels = ["picture" if len(given) == 1 else f"picture {i + 1}" for i in range(len(given))] + ["drawn"] * len(drawn)
        pictures = [images.decode(data).permute(1, 2, 0).numpy() for data in (*given, *drawn)]
    question = str(row.get("question", row.get("caption", "")))
    return Answer(
        id=str(row["id"]), kind=kind, task=_str_or_none(row.get("task")), question=question, pairs=pairs, pictures=pictures, labels=labels
    )


def _answers(row: Row, kind: str) -> list[tuple[str, str, str]]:
    """Return the answer, or an answer for each of a row's `ways`, and the gold one."""
    ways: Mapping[str, Any] = {"on": row, **row["ways"]} if "ways" in row else {}
    if ways:
        pairs = [(f"answer, {way}", str(given["answer"]), kind_of(given)) for way, given in ways.items() if "answer" in given]
    else:
        pairs = [("answer", str(row["answer"]), kind)] if "answer" in row else []
    return [*pairs, *([("gold", str(row["gold"]), "")] if pairs and row.get("gold", "") != "" else [])]


def _text(value: Any) -> str:
    """Return a value of a row in short: figures with three digits, what is true of a table of yes and no."""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return " ".join(_text(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _str_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _interval(name: str, intervals: Mapping[str, tuple[float, float]]) -> str:
    return " to ".join(shown(name, bound) for bound in intervals[name]) if name in intervals else ""


def _task_of(name: str, tasks: set[Any]) -> str | None:
    """Return the task that a figure such as "accuracy/colour" is of, or None."""
    _, slash, task = name.partition("/")
    return task if slash and task in {str(one) for one in tasks} else None


def _card(answer: Answer) -> Card:
    """Return the card of an answer on the contact sheet: its text, the answer marked where it is scored."""
    text = [(answer.question, False)]
    for name, value, kind in answer.pairs:
        text += [(f"\n{name}: ", False), (value, kind in ("right", "wrong"))]
    return Card(answer.pictures, text, answer.id, {"right": True, "wrong": False}.get(answer.kind))
