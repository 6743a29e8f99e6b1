"""Bound the cost of looking at how a model learns: a look waits until the last is paid for.

In the first steps of a stage (part of a run) every recorded step is looked at, so that a fault that is there from the start is found soon.
"""

import statistics
from collections import deque
from collections.abc import Callable
from typing import TypeVar

FIRST_STEPS = 50
"""Steps of a stage in which no look waits."""
SHARE = 0.005
"""Share of the time that looks may take after those."""
_REMEMBERED = 8
"""Looks of which the median cost counts: what another program delays once says nothing of the next."""

Result = TypeVar("Result")


class LookBudget:
    """Says when the next look is paid for: `allows`, then `begin`, the parts of a look through `timed`, and `end`.

    `clock`: returns seconds. `look_s`: what all looks took so far.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.look_s = clock, 0.0
        self._costs: deque[float] = deque(maxlen=_REMEMBERED)
        self._began = self._before = 0.0

    def allows(self, step: int) -> bool:
        """Return whether step `step` of the stage, from 1, may be looked at. The first look of a process always may: it tells the cost."""
        return step <= FIRST_STEPS or not self._costs or self.clock() - self._began >= statistics.median(self._costs) / SHARE

    def begin(self) -> None:
        """Note that a look begins."""
        self._began, self._before = self.clock(), self.look_s

    def timed(self, work: Callable[..., Result], *given: object) -> Result:
        """Do a part of a look, and count its time."""
        began = self.clock()
        try:
            return work(*given)
        finally:
            self.look_s += self.clock() - began

    def end(self) -> None:
        """Note what the look cost."""
        self._costs.append(self.look_s - self._before)
