"""How sure a bench's figures are: 95 % intervals by the bootstrap (Efron 1979), over the rows of a sample."""

from collections.abc import Sequence

import numpy as np

from plait.engine.evaluation import Bench, Row, summary
from plait.errors import PlaitError
from plait.keys import rng

DRAWS = 400
_COUNTS = {"samples", "bad_samples", "pictures"}
_MOST_ROWS = 20_000  # beyond, an interval is narrower than the digits shown, and takes long


def bootstrap(bench: Bench, rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Return {figure: (low, high)}: the 2.5 and 97.5 percentiles of each figure over 400 sets of rows, drawn with replacement by a key.

    Only for benches that judge each answer by itself (rows have `correct`); {} for others, and for fewer than two rows.
    """
    judged = sum("correct" in row for row in rows)
    if not 2 <= judged <= _MOST_ROWS:
        return {}
    drawn: dict[str, list[float]] = {}
    generator = rng("bootstrap", len(rows))
    for _ in range(DRAWS):
        chosen = [rows[i] for i in generator.integers(0, len(rows), len(rows))]
        try:
            figures = summary(bench, chosen)
        except PlaitError:  # a set without a row that can be used
            continue
        for name, value in figures.items():
            if not is_count(name):
                drawn.setdefault(name, []).append(value)
    return {name: (float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))) for name, values in drawn.items()}


def shown(name: str, value: float) -> str:
    """Return a figure as text: counts as whole numbers, others with four digits."""
    return f"{value:,.0f}" if is_count(name) else f"{value:.4f}"


def is_count(name: str) -> bool:
    """Return whether a figure counts, such as "samples" or "pictures/64x64": it has no interval."""
    return bool(_COUNTS & {name.partition("/")[0], name.rpartition("/")[2]})
