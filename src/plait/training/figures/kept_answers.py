"""Keep some answers of each evaluation of a run in RUN/answers.jsonl, so that the same questions can be read at every step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait import files
from plait.engine.evaluation import Row
from plait.engine.monitoring.beside import shown

NAME = shown.ANSWERS
"""The file in a run's directory: a row per evaluation of a bench that answers."""
_MOST, _LONGEST = 8, 1000
"""Answers kept of an evaluation, the first ones; characters kept of a text."""
_KEPT = ("id", "task", "question", "answer", "gold", "correct")


def keep(run: Path, step: int, stage: int, bench: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Append the first answers among the rows of an evaluation, and return them; nothing where it has none. `bench`: its name."""
    answers = [_short(row) for row in rows if "answer" in row][:_MOST]
    if answers:
        files.append_rows(run / NAME, [{"step": step, "stage": stage, "bench": bench, "answers": answers}])
    return answers


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a row, long texts cut."""
    return {name: value[:_LONGEST] if isinstance(value := row[name], str) else value for name in _KEPT if name in row}
