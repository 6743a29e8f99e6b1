"""Log and retry the write of a checkpoint that failed, as on a full disk, while training goes on."""

import functools
import itertools
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.checkpoints.sharded_files import RankFiles
from plait.errors import PlaitError

log = logging.getLogger(__name__)

PAUSES_S = (10.0, 60.0, 300.0)
"""Seconds between tries of a write in the background; the last again and again."""


def until_written(
    write: Callable[[], Checkpoint], error: Exception, rank_files: RankFiles, awaited: threading.Event, *, background: bool
) -> None:
    """Log the error of a write, and call `write` again until it succeeds.

    `write` is called after each of PAUSES_S, and a last time once `awaited` is set: when the next save, the stage's end or a stop waits for
    the write. Without `background`, where nobody could set it, `write` is called once more, at once. Ranks that write together
    (`rank_files`) all call this, and try equally often. Raises the error of the last try, and at once one that is not of the disk.
    """
    last = False
    for number in itertools.count(1):
        again = isinstance(error, PlaitError) and not last
        if not all(rank_files.run_on_all(functools.partial(bool, again))):
            raise error
        pause_s = PAUSES_S[min(number, len(PAUSES_S)) - 1] if background else 0.0
        when = f"in {pause_s:g} s, or when the run needs it" if background else "once more"
        log.warning(f"{error}; it is tried again {when}")
        last = awaited.wait(pause_s) or not background
        try:
            log.info(f"checkpoint {write().folder} is written, at try {number + 1}")
        except Exception as raised:  # noqa: BLE001  raised above
            error = raised
        else:
            return


def tell_unpruned(stage_folder: Path, error: OSError) -> None:
    """Log that an old checkpoint could not be deleted: nothing is lost, and the next save tries again."""
    log.warning(f"{error.filename or stage_folder}: {error.strerror}: an old checkpoint could not be deleted; the next save tries again")
