"""Log and retry the write of a checkpoint that failed, as on a full disk, while training goes on."""

import functools
import itertools
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.checkpoints.sharded_files import RankFiles
from plait.engine.parallel.rank_failures import reason_of
from plait.errors import PlaitError

log = logging.getLogger(__name__)

PAUSES_S = (10.0, 60.0, 300.0)
"""Seconds between tries of a write in the background; the last again and again."""
_TOLD_WITHIN_S = 1.0
"""How long other ranks may not know that one waits for the write."""


@dataclass(frozen=True)
class Waiting:
    """What the training thread and the thread that writes a checkpoint tell each other."""

    awaited: threading.Event = field(default_factory=threading.Event)
    """Training waits for the write: if it fails, it is tried a last time without a pause."""
    settled: threading.Event = field(default_factory=threading.Event)
    """The write has ended, or its last try begins."""


def until_written(write: Callable[[], Checkpoint], error: Exception, rank_files: RankFiles, waiting: Waiting, *, background: bool) -> None:
    """Log `error`, with which a checkpoint's write failed, and call `write` again until it succeeds.

    `write` is called after pauses of 10, 60 and then 300 s, and a last time once any rank waits for it (`waiting`, set by the training
    thread): the next save, the stage's end or a stop. Without `background` it is called once more, at once. Ranks that write together
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
        last = _pause(waiting.awaited, pause_s, rank_files) or not background
        if last:
            waiting.settled.set()
        try:
            log.info(f"checkpoint {write().folder} is written, at try {number + 1}")
        except Exception as raised:  # noqa: BLE001  raised above
            error = raised
        else:
            return


def _pause(awaited: threading.Event, pause_s: float, rank_files: RankFiles) -> bool:
    """Wait until `awaited` is set on any of the ranks that write together, or for `pause_s`; returns which, the same on all of them."""
    if rank_files.ranks == 1:
        return awaited.wait(pause_s)
    for _ in range(max(1, math.ceil(pause_s / _TOLD_WITHIN_S))):
        awaited.wait(min(pause_s, _TOLD_WITHIN_S))
        if any(rank_files.run_on_all(awaited.is_set)):
            return True
    return False


def close_after_error(close: Callable[[], None]) -> None:
    """Call `close`, a saver's, while another error ends the run. What it raises is logged, so that the other error is not lost."""
    try:
        close()
    except Exception as error:  # noqa: BLE001  the other one is raised
        log.warning(f"the last checkpoint: {reason_of(error)}")


def tell_unpruned(stage_folder: Path, error: OSError) -> None:
    """Log that an old checkpoint could not be deleted: nothing is lost, and the next save tries again."""
    log.warning(f"{error.filename or stage_folder}: {error.strerror}: an old checkpoint could not be deleted; the next save tries again")
