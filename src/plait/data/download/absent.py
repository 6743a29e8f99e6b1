"""The error for several datasets that are known by name, but whose files are in none of the places searched."""

from collections.abc import Sequence

from plait.data.sources.contract import Absent
from plait.errors import PlaitError


def all_absent(absent: Sequence[tuple[str, Absent]], of: int, title: str | None) -> PlaitError:
    """Return the error for named datasets that are not there, with what fetches them. `of`: how many `title` or `data.train` has."""
    names, first = list(dict.fromkeys(name for name, _ in absent)), absent[0][1]
    if title is None and len(names) == 1:
        return first
    fetch = list(dict.fromkeys(command for _, error in absent for command in error.commands))
    notes = ", ".join(dict.fromkeys(error.estimate for _, error in absent if error.estimate))
    fetched = f"; these commands fetch what can be fetched so ({notes}): {'; '.join(fetch)}" if fetch else ""
    listed = f"{len(absent)} of its {of} datasets are not there ({', '.join(names)}); the first: {first}{fetched}"
    if title is None:
        return PlaitError(f"data.train: {listed}")
    return PlaitError(f"mixture {title}: {listed}; to train without them, say so: --data.without='[{', '.join(names)}]'")
