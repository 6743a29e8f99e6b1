"""Files of a run directory that keep what evaluations showed: answers, and, for tracking services, pictures.

RUN/answers.jsonl has a row {"step", "bench", "answers": [{"id", "question", "answer", ...}]} per bench that answers, and RUN/pictures.jsonl
a row {"step", "pictures": {name: PNG file below RUN}} per bench that draws.
"""

import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from plait import files

log = logging.getLogger(__name__)

ANSWERS, PICTURES = "answers.jsonl", "pictures.jsonl"
FOLDER = "pictures"
KINDS: Mapping[str, Mapping[str, Any]] = {
    ANSWERS: {"step": int, "bench": str, "answers": list},
    PICTURES: {"step": int, "pictures": dict},
}
"""The types that a row of each file must have, for `files.read_rows`."""
_COLUMNS = ("id", "task", "question", "gold", "answer", "correct")


class Table(NamedTuple):
    """A table of texts, numbers and None."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def answers_of(bench: str) -> str:
    """Return the name of a bench's table of answers in trackers: eval/vqa/answers."""
    return f"eval/{bench}/answers"


def table(answers: Sequence[Mapping[str, Any]]) -> Table:
    """Return answers as a table, with those columns that any of them has."""
    columns = [name for name in _COLUMNS if any(name in answer for answer in answers)]
    return Table(columns, [[_cell(answer.get(name)) for name in columns] for answer in answers])


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False, default=str)


def markdown(table: Table) -> str:
    """Return a table in Markdown, a line per row."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    cells = [" | ".join(re.sub(r"\s+", " ", str(cell)).replace("|", r"\|") for cell in line) for line in lines]
    return "\n".join(f"| {line} |" for line in cells)


class KeptPictures:
    """Mirrors pictures into files of the run directory `run`, from which tracking services and TensorBoard, after a kill, take them."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def row(self, row: Mapping[str, Any]) -> None:
        """Do nothing: `metrics.jsonl` has every row."""

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures (uint8, H x W x 3) as PNG files, and their row. Where the disk fails, say so, and go on without them."""
        paths: dict[str, str] = {}
        try:
            for name, picture in pictures.items():
                stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "picture"
                path = f"{FOLDER}/step-{step:08d}/{stem}.png"
                path = path if path not in paths.values() else f"{path.removesuffix('.png')}-{len(paths)}.png"
                body = io.BytesIO()
                Image.fromarray(picture).save(body, format="PNG")
                files.write_whole(self.run / path, body.getvalue())
                paths[name] = path
            if paths:
                files.append_rows(self.run / PICTURES, [{"step": step, "pictures": paths}])
        except OSError as error:
            log.warning(f"pictures of step {step} do not reach the tracking services: {error}")

    def table(self, step: int, name: str, table: Table) -> None:
        """Do nothing: `answers.jsonl` has the answers."""

    def close(self) -> None:
        """Do nothing: what has been written is whole."""
