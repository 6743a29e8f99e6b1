"""Write a run's config.yaml with a hash of its text in its last line, and check that hash.

A file that was edited, cut short or damaged is known by it: a damaged file can be valid YAML, and what it lacks would be trained with
default values. Each checkpoint's folder has a copy.
"""

import contextlib
import logging
import os
import re
from pathlib import Path
from types import TracebackType

import xxhash

from plait import files

log = logging.getLogger(__name__)

NAME = "config.yaml"
"""Name of the configuration in a run directory."""
COPY = "run-config.yaml"
"""Name of the copy in a checkpoint's folder: another one, so that the folder is not taken for a run's."""
_STARTS = "migrations.jsonl"
"""Name of the file in a run directory with a row for each start."""
_LAST = "# xxh3-64 of the lines above: {hash}\n"


def sign(text: str) -> str:
    """Return `text` (YAML that ends with a newline) with one more line, a comment that holds its hash (xxh3-64)."""
    return text + _LAST.format(hash=xxhash.xxh3_64_hexdigest(text.encode()))


def is_as_written(path: Path) -> bool:
    """Return whether the file at `path` ends in the right hash, as `sign` made it. False if it is missing, edited or damaged."""
    try:
        lines = path.read_bytes().decode().splitlines(keepends=True) if path.is_file() else []  # a pipe would be waited for
    except (OSError, UnicodeDecodeError):
        return False
    return bool(lines) and "".join(lines) == sign("".join(lines[:-1]))


def newest_copy(run: Path) -> Path | None:
    """Return the newest intact copy of a run's configuration among those in its checkpoints; None without one.

    `run`: the run directory. A copy is intact if the hash in its last line, which `sign` wrote, is right.
    """
    steps = {path: re.fullmatch(r"step-(\d+)", path.parent.name) for path in run.glob(f"stage-*/step-*/{COPY}")}
    ordered = sorted(((int(step[1]), path) for path, step in steps.items() if step), reverse=True)
    return next((path for _, path in ordered if is_as_written(path)), None)


def settings_of(run: Path) -> Path | None:
    """Return the file of the configuration that a run was trained with; None if it has none. `run`: the run directory.

    That is its config.yaml if the hash in it is right, else the newest intact copy in a checkpoint, else config.yaml as it is.
    """
    path = run / NAME
    copy = None if is_as_written(path) else newest_copy(run)
    return copy or (path if path.is_file() else None)


class PendingSettings:
    """The `text` (YAML) of a start's settings, for config.yaml in `run`, which wait where it has checkpoints: call it to write them.

    The run does so at its first step or checkpoint, or at its end; a second call does nothing. A start that ends before that, by a kill
    too, leaves config.yaml as it was. A context: where its block fails before that, the rows that the start added to migrations.jsonl are
    deleted. Only the first rank has a `text`.
    """

    def __init__(self, run: Path, text: str | None) -> None:
        self.run, self._text = run, text
        self._rows = 0
        """Bytes of migrations.jsonl before the start."""

    def __call__(self) -> None:
        """Write config.yaml, if that is still to be done."""
        text, self._text = self._text, None
        if text is not None:
            files.write_whole(self.run / NAME, sign(text))

    def __enter__(self) -> "PendingSettings":
        starts = self.run / _STARTS
        self._rows = starts.stat().st_size if starts.is_file() else 0
        if not (self.run / NAME).is_file() or not any(self.run.glob("stage-*/step-*/manifest.json")):
            self()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._text is not None:
            with contextlib.suppress(OSError):  # that error is not the one to tell
                self._leave(self._text)

    def _leave(self, text: str) -> None:
        """Delete the rows of a failed start, and log that its settings, where they differ, are not the run's."""
        starts, path = self.run / _STARTS, self.run / NAME
        if starts.is_file() and starts.stat().st_size > self._rows:
            os.truncate(starts, self._rows) if self._rows else starts.unlink()
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != sign(text):
            log.info(f"the start ended before a step, and the configuration of {self.run} is the one before")
