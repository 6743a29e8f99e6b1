"""Make the failure of one rank the failure of all, so that none waits for a rank that has left a collective."""

from collections.abc import Callable
from typing import TypeVar

from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError, Stopped

Result = TypeVar("Result")


class BenchFailed(PlaitError):
    """Raised on all ranks when a bench failed on one of several; the message is the reason in one line."""


def attempt(work: Callable[[], Result], otherwise: Result) -> tuple[Result, PlaitError | None]:
    """Return (what `work` returns, None), or (`otherwise`, the PlaitError that it raised), for `raise_on_all`. Other errors pass."""
    try:
        return work(), None
    except Stopped:
        raise
    except PlaitError as error:
        return otherwise, error


def raise_on_all(ranks: Ranks, failure: PlaitError | None, *, on_any: bool) -> None:
    """Raise `failure` on all ranks if there is one on any: BenchFailed with the first reason, or alone the failure itself.

    `on_any`: whether any rank has one, the same on all ranks, which summed it together with what else they exchange.
    """
    if not on_any:
        return
    if ranks.size == 1:
        assert failure is not None
        raise failure
    raise BenchFailed(next(reason for reason in ranks.gather(failure and reason_of(failure)) if reason is not None)) from failure


def reason_of(error: BaseException) -> str:
    """Return an error as one line: the message of a PlaitError as it is, of any other after its type ("ValueError: ...")."""
    line = (str(error).splitlines() or [""])[0]
    return line if isinstance(error, PlaitError) else f"{type(error).__name__}: {line}"
