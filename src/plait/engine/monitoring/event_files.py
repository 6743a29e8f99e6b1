"""The mirror to TensorBoard: event files under RUN/events, cut where a run goes back so that each step is shown once."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary

from plait import files
from plait.engine.monitoring.beside.shown import ANSWERS, KINDS, PICTURES, Table, answers_of, markdown, table
from plait.engine.monitoring.event_records import PREFIX, EventFile, events

log = logging.getLogger(__name__)

Key = tuple[int, frozenset[str]]
"""What tells rows apart: their step, and the names of their figures."""


class TensorBoard:
    """Mirrors metrics into event files under RUN/events, for `tensorboard --logdir RUN`. `step`: where the run begins or resumes.

    Its first event tells a viewer that has read older files to drop all steps after `step`. A run's first start writes one too, because
    viewers ignore the first such event.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.file = EventFile(run / "events", step + 1)
        self.failed = False

    def row(self, row: Mapping[str, Any]) -> None:
        """Write the row's numbers as scalars in one event, ten times faster than an `add_scalar` for each."""
        values = [{"tag": name, "simple_value": value} for name, value in _scalars(row).items()]
        self._write(row["step"], Summary(value=values))

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures (uint8, H x W x 3) by name as images of `step`."""
        for name, picture in pictures.items():
            self._write(step, summary.image(name, picture, dataformats="HWC"))

    def table(self, step: int, name: str, table: Table) -> None:
        """Write a table as a text of `step`."""
        self._write(step, summary.text(name, markdown(table)))

    def close(self) -> None:
        """Close the event file."""
        self.file.close()

    def _write(self, step: int, shown: Summary) -> None:
        """Write an event; where the disk fails, say so once, and write no more until the next start, which writes what is missing."""
        if not self.failed:
            try:
                self.file.write(Event(step=step, summary=shown))
            except OSError as error:
                self.failed = True
                log.warning(f"TensorBoard gets no more rows of this start: {error}; metrics.jsonl has every row")


def fill(mirror: TensorBoard, rows: Sequence[Mapping[str, Any]], shown: Collection[Key]) -> None:
    """Write those of `rows` that the event files lack, after a kill or a cut. `shown`: (step, names of figures) of each row they have."""
    for row in rows:
        if _key(row["step"], _scalars(row)) not in shown:
            mirror.row(row)


def pictures(run: Path) -> Iterator[tuple[int, str, bytes]]:
    """Yield (step, name, encoded picture) of every picture in the event files of a run directory."""
    for path in sorted(path for path in (run / "events").glob(f"{PREFIX}*") if path.is_file()):
        with path.open("rb") as file:
            for event, _ in events(file):
                for value in event.summary.value:
                    if value.HasField("image"):
                        yield event.step, value.tag, value.image.encoded_image_string


def show_again(mirror: TensorBoard, run: Path, there: Collection[Key]) -> None:
    """Write those answers and pictures that the run directory keeps and the event files lack. `there`: what `cut` returned.

    A picture's file that cannot be read is left out, with a warning.
    """
    for row in files.read_rows(run / ANSWERS, KINDS[ANSWERS]):
        name = answers_of(row["bench"])
        if _key(row["step"], [f"{name}/text_summary"]) not in there:
            mirror.table(row["step"], name, table(row["answers"]))
    for row in files.read_rows(run / PICTURES, KINDS[PICTURES]):
        for name, path in row["pictures"].items():
            if _key(row["step"], [name]) not in there:
                try:
                    with Image.open(run / path) as picture:
                        mirror.pictures(row["step"], {name: np.asarray(picture.convert("RGB"))})
                except OSError as error:
                    log.warning(f"TensorBoard lacks a picture of step {row['step']}: {error}")


def cut(run: Path, done: Callable[[int, bool], bool]) -> set[Key]:
    """Cut every event file at its first event that is damaged or of a step to be run again.

    Returns (step, names of its figures) of each row that stays. `done(step, held_out)`: whether what an event shows will not be computed
    again; `held_out`: it shows an evaluation. If the clock is behind the newest file's name, files are renamed so that new ones sort last.
    """
    paths = sorted(path for path in (run / "events").glob(f"{PREFIX}*") if path.is_file())
    shown: set[Key] = set()
    for path in paths:
        with path.open("r+b") as file:
            sound = 0
            for event, end in events(file):
                tags = {value.tag for value in event.summary.value}
                held_out = any(value.HasField("image") or value.tag.startswith("eval/") for value in event.summary.value)
                if tags and not done(event.step, held_out):
                    break
                sound = end
                if tags:
                    shown.add(_key(event.step, tags))
            file.truncate(sound)
    if paths and paths[-1].name.removeprefix(PREFIX) >= f"{int(time.time()):010d}":
        for number, path in enumerate(paths):
            rest = path.name.removeprefix(PREFIX).partition(".")[2]
            path.rename(path.with_name(f"{PREFIX}{number:010d}.{rest}"))
    return shown


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row by name; of one of held-out figures without `stage`, which the row of its step has."""
    apart = {"step", "stage"} if any(name.startswith("eval/") for name in row) else {"step"}
    return {name: value for name, value in row.items() if isinstance(value, int | float) and name not in apart}


def _key(step: int, names: Iterable[str]) -> Key:
    return step, frozenset(names) - {"stage"}
