"""What a run recorded, as Python data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait import files


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the rows of RUN/metrics.jsonl, one per recorded step or evaluation: {"step": 20, "loss": 2.1, ...}; [] without the file."""
    return files.read_rows(run / "metrics.jsonl", files.STEP_KINDS)


def table(recorded: Sequence[dict[str, Any]]) -> Any:
    """Return rows as a pandas DataFrame where pandas is installed, else as a list of dicts."""
    try:
        import pandas
    except ImportError:
        return list(recorded)
    return pandas.DataFrame(list(recorded))
