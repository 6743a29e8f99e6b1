"""Do work on every rank that has no collectives in it, and fail on all of them where it fails on one."""

from collections.abc import Callable

from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.rank_failures import BenchFailed, Result, reason_of


def on_every_rank(ranks: Ranks, work: Callable[[], Result]) -> list[Result]:
    """Return what `work`, which has no collectives in it, returns on each rank, in rank order; all ranks call this.

    Raises BenchFailed on all of several ranks where it fails on any; alone, what it raised.
    """
    if ranks.size == 1:
        return [work()]
    result: Result | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001  raised on every rank, below
        failure = error
    outcomes = ranks.gather((result, failure and reason_of(failure)))
    reason = next((reason for _, reason in outcomes if reason is not None), None)
    if reason is not None:
        raise BenchFailed(reason) from failure
    return [result for result, _ in outcomes]
