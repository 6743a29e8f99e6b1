"""What the checks of `plait doctor` return: a line each, and the cure where something must be mended."""

from dataclasses import dataclass

from plait.errors import PlaitError


class Unwell(PlaitError):
    """A check failed, and its cause must be mended before a run. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was checked, what was found, and how to mend it (`cure`; None: it is right)."""

    what: str
    result: str
    cure: str | None = None


def gigabytes(count: float) -> str:
    """Write a number of bytes in the largest unit that leaves at least 1: "8.6 GB", "12 MB", "340 kB"; a GB has 1e9 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count / 1e3:.{1 if count < 1e5 else 0}f} kB"
