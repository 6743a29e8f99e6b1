"""Leave the process group after an error, within seconds, although other ranks may be gone or wait elsewhere."""

import gc
import threading
import traceback
from collections.abc import Sequence

import torch.distributed as dist

from plait.errors import Stopped

_RANK_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "Timed out waiting", "timed out")
"""Parts of gloo's and NCCL's error messages when a rank no longer answers."""
LIMIT_S = 5.0
"""How long freeing the group may take: gloo first waits for collectives that were begun, which ranks that are gone never join."""


def leave(error: BaseException) -> None:
    """Free what the frames of `error` hold, and then the process group; wait for it for `LIMIT_S` seconds at most.

    The frames hold DDP's replica. One that outlives the group frees the group's threads itself, and waits for them with Python's lock
    held, which they need to end: the process would hang in place of telling its error. Raises Stopped, a PlaitError, where `error` says
    that another rank is lost.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]
    gc.collect()
    freeing = threading.Thread(target=dist.destroy_process_group, name="leave the process group", daemon=True)
    freeing.start()
    freeing.join(LIMIT_S)
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _RANK_LOST):
        reason = str(error).splitlines()[0]
        raise Stopped(f"another rank ended or hangs ({reason}); its own last words say why, and the same command continues") from error


def stopped_by(received: Sequence[str | None]) -> str:
    """Return what stopped the ranks, such as "SIGTERM at rank 1". `received`: the signal's name that each rank got, in order, or None."""
    ranks = [rank for rank, name in enumerate(received) if name is not None]
    if not ranks:
        return "a rank that had no data for the next step"
    where = f" at rank {ranks[0]}" if len(ranks) < len(received) else ""
    return f"{received[ranks[0]]}{where}"
