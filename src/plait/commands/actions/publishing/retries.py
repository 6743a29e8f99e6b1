"""When something that is sent is tried again: pauses that grow with the failures."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Pauses after failures: each twice the one before, up to the longest."""


class Later(Exception):
    """What was sent was not taken this time, and may be later. Its text says why; `asked_s`: the pause that the answer asked for."""

    def __init__(self, why: str, asked_s: float = 0.0) -> None:
        super().__init__(why)
        self.asked_s = asked_s


def pause_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1)) if failures else 0.0
