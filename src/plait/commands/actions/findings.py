"""The results of the checks of `plait doctor`."""

from dataclasses import dataclass

from plait.errors import PlaitError


class Unwell(PlaitError):
    """Raised when a check failed, so that a run would fail too; its message says what to do. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was checked (a word), what was found, and what to do (`cure`; None: nothing is wrong)."""

    what: str
    result: str
    cure: str | None = None


def gigabytes(count: float) -> str:
    """Return a number of bytes as text in GB, MB or kB, the largest that leaves at least 1: "8.6 GB", "340 kB"; a GB is 1e9 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count / 1e3:.{1 if count < 1e5 else 0}f} kB"
