"""95 % confidence intervals of a bench's (evaluation's) results by the bootstrap (Efron 1979) over rows (dicts, one per sample).

A figure is a number that a bench computes from all rows, such as an accuracy.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from plait.engine.evaluation import Bench, Row, is_count, summary, usable
from plait.errors import PlaitError
from plait.keys import rng
from plait.training.figures import small_samples

DRAWS = 400
"""How many sets of rows a bootstrap draws."""
TASK_MEAN = "task_mean"
"""The figure that is the mean of the tasks' figures, whatever their numbers of rows."""
_NONE, _ALL = (0.0, 0.0), (1.0, 1.0)
_MOST_ROWS = 20_000  # beyond, an interval is narrower than the digits shown, and takes long
_SMALL_SAMPLE = 2_000  # rows up to which training says how sure its figures are: the bootstrap then takes a second at most


def bootstrap(bench: Bench, rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Return {figure: (low, high)}: the 2.5 and 97.5 percentiles over 400 sets of rows drawn with replacement, by a fixed seed.

    {} for benches whose figures are no means over rows (rows without `correct`, and `bench.means` not set), and for fewer than two
    rows. Figures of rows without `correct`, such as losses, have the interval of small_samples.py up to 400 rows. If all answers are
    right, or all wrong, the bootstrap interval would have width 0: then Clopper and Pearson's exact one (1934).
    """
    scored = [row for row in rows if "correct" in row or (bench.means and "bad" not in row)]
    if not 2 <= len(scored) <= _MOST_ROWS:
        return {}
    drawn = resampled(rows, lambda chosen: summary(bench, chosen))
    right_or_wrong = all("correct" in row for row in scored)
    if not right_or_wrong and len(rows) <= small_samples.MOST:
        return _of_few(bench, rows, drawn)
    intervals: dict[str, tuple[float, float]] = {}
    for name, values in drawn.items():
        ends = percentiles(values)
        if right_or_wrong and ends in (_NONE, _ALL) and not any(_counted(row.get(name)) for row in scored):
            intervals[name] = _exact(name, ends[0], scored)
        elif min(values) < max(values):
            intervals[name] = ends
    return intervals


def _of_few(bench: Bench, rows: Sequence[Row], drawn: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Return the intervals of figures that are no shares, of few rows. `drawn`: their values on the sets of rows drawn."""
    used = usable(rows)
    now, without = summary(bench, used), small_samples.without_each(used, lambda chosen: summary(bench, chosen))
    varying = {name: values for name, values in drawn.items() if min(values) < max(values) and math.isfinite(now.get(name, math.nan))}
    found = {name: small_samples.interval(now[name], without.get(name, []), len(used), percentiles(of)) for name, of in varying.items()}
    shares = {name for name in found if all(isinstance(row.get(name), float) and 0 <= row[name] <= 1 for row in used)}
    return {name: (max(ends[0], 0.0), min(ends[1], 1.0)) if name in shares else ends for name, ends in found.items() if ends is not None}


def resampled(rows: Sequence[Row], figures_of: Callable[[list[Row]], Mapping[str, float]]) -> dict[str, list[float]]:
    """Return {figure: its values} over 400 sets of rows drawn with replacement, by a fixed seed; counts are left out.

    `rows`: one per sample. `figures_of`: from rows to figures by name. A set for which it raises PlaitError, as it has no row that can be
    used, does not count.
    """
    drawn: dict[str, list[float]] = {}
    generator = rng("bootstrap", len(rows))
    for _ in range(DRAWS):
        chosen = [rows[i] for i in generator.integers(0, len(rows), len(rows))]
        try:
            figures = figures_of(chosen)
        except PlaitError:
            continue
        for name, value in figures.items():
            if not is_count(name):
                drawn.setdefault(name, []).append(value)
    return drawn


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of values, between which 95 % of them are."""
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def _counted(value: object) -> bool:
    """Return whether a value of a row is a count, such as its number of world tokens. A count of 1 is no share of right answers."""
    return isinstance(value, int) and not isinstance(value, bool)


def of_small_sample(bench: Bench, rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Return {figure: (low, high)}, the 95 % intervals of `bootstrap`, for at most 2,000 rows; {} for more, which take long."""
    return bootstrap(bench, rows) if len(rows) <= _SMALL_SAMPLE else {}


def _exact(name: str, share: float, rows: Sequence[Row]) -> tuple[float, float]:
    """Return the exact interval of a share that is 0 or 1."""
    reach = 1 - 0.025 ** (1 / behind(name, rows))
    return (0.0, reach) if share == 0 else (1 - reach, 1.0)


def behind(name: str, rows: Sequence[Row]) -> int:
    """Return the number of rows whose mean a figure is.

    They are those that have it, those of its task or group, or else all. Of `task_mean`, the mean of tasks' figures, it is as many as are
    as sure: the number of tasks times the rows of the smallest.
    """
    if name == TASK_MEAN:
        tasks = Counter(str(row["task"]) for row in rows if row.get("task") is not None)
        return len(tasks) * min(tasks.values(), default=0) or len(rows)
    own = sum(name.partition("/")[2] in [str(row[field]) for field in ("task", "group") if row.get(field) is not None] for row in rows)
    return sum(isinstance(row.get(name), float) for row in rows) or own or len(rows)


def shown(name: str, value: float) -> str:
    """Return a figure as text: counts, and whole numbers above 1, without decimals, others with four. `name` tells counts apart."""
    return f"{value:,.0f}" if is_count(name) or (abs(value) > 1 and value.is_integer()) else f"{value:.4f}"
