"""Choose the answers and pictures that a run's page shows: the same questions, and the same pictures, at several steps."""

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plait import files
from plait.commands.actions.evaluation.answers import kind_of
from plait.commands.actions.report.record import RunRecord
from plait.commands.pages.page import page_pictures
from plait.commands.pages.report import Block, Shot
from plait.engine.monitoring import event_files
from plait.engine.monitoring.beside import shown as beside

log = logging.getLogger(__name__)

_QUESTIONS, _MOMENTS = 8, 6
"""Questions shown of a bench; steps shown of each question and each picture: the first, the last, and some between."""
_PICTURE_NAMES, _PICTURE_BYTES = 4, 1_200_000
"""Pictures by name, and the bytes of all together, from which no more are shown."""
_LONGEST = 400
"""Characters of a text."""


def answers(record: RunRecord) -> Block:
    """Return the block of answers: each question of a bench with its answers over the steps; empty where none were kept."""
    by_bench: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for bench, step, rows in _answered(record):
        by_bench.setdefault(bench, {})[step] = [*rows]
    shots = []
    for bench, by_step in by_bench.items():
        last = by_step[max(by_step)]
        title = bench if len(by_bench) > 1 else ""
        shots += [_question(title, str(row.get("id")), by_step) for row in last[:_QUESTIONS]]
    note = "The first held-out questions, and what the model answered at each of these steps." if shots else ""
    return Block("Answers", "answers", note, shots=shots)


def _answered(record: RunRecord) -> Iterator[tuple[str, int, Sequence[Mapping[str, Any]]]]:
    """Yield (bench, step, rows) of the answers that training kept, and of those that `plait eval` wrote where training kept none."""
    for kept in record.answers:
        rows = [row for row in kept["answers"] if isinstance(row, dict) and "answer" in row]
        if rows:
            yield str(kept["bench"]), kept["step"], rows
    if record.answers:
        return
    for folder, told in record.measured:
        path = folder / "predictions.json"
        try:
            read = json.loads(path.read_bytes()) if path.is_file() else []
        except (OSError, ValueError):
            log.warning(f"{path} cannot be read: its answers are left out")
            continue
        rows = [row for row in read if isinstance(row, dict) and "answer" in row and isinstance(told.get("step"), int)]
        if rows:
            yield str(told.get("bench", folder.name)), told["step"], rows


def _question(bench: str, name: str, by_step: Mapping[int, Sequence[Mapping[str, Any]]]) -> Shot:
    """Return the answers to one question over the steps, and the right one last."""
    found = {step: next((row for row in rows if str(row.get("id")) == name), None) for step, rows in sorted(by_step.items())}
    answered = [(step, row) for step, row in found.items() if row is not None]
    pairs = [(f"step {step:,}", str(row["answer"])[:_LONGEST], kind_of(dict(row))) for step, row in _spread(answered)]
    last = answered[-1][1]
    gold = [("gold", str(last["gold"])[:_LONGEST], "")] if last.get("gold") not in (None, "") else []
    title = str(last.get("question") or name)[:_LONGEST]
    return Shot(f"{bench}: {title}" if bench else title, [], [*pairs, *gold])


def pictures(record: RunRecord) -> Block:
    """Return the block of pictures that benches drew, each over the steps; empty where the run has none in its event files."""
    by_name: dict[str, dict[int, bytes]] = {}
    for step, name, body in (*_kept(record.path), *event_files.pictures(record.path)):
        by_name.setdefault(name, {})[step] = body
    shots, spent = list[Shot](), 0
    for name, by_step in [*by_name.items()][:_PICTURE_NAMES]:
        for step, body in _spread(sorted(by_step.items())):
            try:
                shown = page_pictures([_decoded(body)], [name], lossless=False)
            except OSError as error:
                log.warning(f"picture {name} of step {step} cannot be read ({error}), and is left out")
                continue
            spent += sum(len(picture.source) for picture in shown)
            if spent > _PICTURE_BYTES:
                note = "More pictures are in the event files: this page is kept small."
                return Block("Pictures", "pictures", note, shots=shots)
            shots.append(Shot(f"{name}, step {step:,}", shown, []))
    more = len(by_name) - _PICTURE_NAMES
    return Block("Pictures", "pictures", f"{more} more are in the event files." if more > 0 else "", shots=shots)


def _kept(run: Path) -> Iterator[tuple[int, str, bytes]]:
    """Yield (step, name, encoded picture) of those that were kept for tracking services, in RUN/pictures.jsonl."""
    for row in files.read_rows(run / beside.PICTURES, beside.KINDS[beside.PICTURES]):
        for name, below in row["pictures"].items():
            path = (run / str(below)).resolve()
            if path.is_relative_to(run.resolve()) and path.is_file():
                yield row["step"], name, path.read_bytes()


def _decoded(body: bytes) -> np.ndarray:
    """Return an encoded picture as (H, W, 3) uint8."""
    with Image.open(io.BytesIO(body)) as picture:
        return np.asarray(picture.convert("RGB"))


def _spread(moments: Sequence[Any]) -> list[Any]:
    """Return at most so many moments, evenly: the first and the last among them."""
    if len(moments) <= _MOMENTS:
        return [*moments]
    return [moments[round(i * (len(moments) - 1) / (_MOMENTS - 1))] for i in range(_MOMENTS)]
