"""Undo a start that failed before anything of its training was recorded."""

import contextlib
import glob
import logging
from collections.abc import Sequence
from pathlib import Path

from plait import files

log = logging.getLogger(__name__)


def undo(run: Path, made: Sequence[Path], inode: int | None) -> None:
    """Delete everything in `run`, the directory of a failed start, then the folders `made` for it, innermost first, if empty.

    It spares nothing in `run`: the caller knows that the folder was missing, empty or set aside before, and holds only what a start writes.
    `inode`: that of the folder `run` before the start, None where there was none. By it an old run is known that the start had set aside
    (RUN.before-N), and gets its name back; a folder that was there and empty stays.
    """
    named = run.parent.glob(f"{glob.escape(run.name)}.before-*")
    aside = next((path for path in named if path.stat().st_ino == inode), None)
    for path in run.iterdir():
        files.remove(path)
    with contextlib.suppress(OSError):  # a folder above it is not empty: another run has begun there
        for folder in [run] if aside is not None else made:
            folder.rmdir()
    if aside is not None:
        aside.rename(run)
        log.info(f"the start failed, and the old run is {run} again")
