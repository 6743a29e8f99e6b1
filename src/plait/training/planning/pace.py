"""How fast a stage (part of a run) will be: measured by a run, or from FLOPs and a table of GPUs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait import files
from plait.training.planning.forecast import StageForecast
from plait.training.planning.hardware import UTILISATION, Hardware

_ROWS = 100
"""The last rows of a stage whose median is its rate; the first of them are left out where there are more."""
_WARM = 2


@dataclass(frozen=True)
class Pace:
    """Samples per second of the whole run, and where that is from, for people."""

    samples_per_s: float
    origin: str

    def hours(self, samples: int) -> float:
        """Return the hours that so many samples take."""
        return samples / self.samples_per_s / 3600


def pace(stage: StageForecast, hardware: Hardware, run: Path) -> Pace | None:
    """Return the pace of a stage, or None where nothing tells it. `run`: the run's directory, whose rows of that stage count if it has any.

    Those are of the ranks and devices that it ran on, so they count only where no GPU is named.
    """
    if hardware.gpu is None:
        return measured(files.read_rows(run / "metrics.jsonl", files.STEP_KINDS), stage.view.index, f"measured in {run}")
    rate = hardware.flop_per_s(stage.view.config.train.precision)
    if rate is None or not stage.flops:
        return None
    step_s = stage.flops / (rate * hardware.ranks)
    origin = (
        f"from the table: {UTILISATION:.0%} of the peak of {hardware.ranks} x {hardware.gpu.device}, without waiting for data or saving"
    )
    return Pace(stage.view.config.train.global_batch / step_s, origin)


def measured(rows: Sequence[Mapping[str, Any]], stage: int, origin: str) -> Pace | None:
    """Return the median pace in the rows of metrics.jsonl of a stage, by its number, without its first two; None without rows."""
    rates = [row["samples_per_s"] for row in rows if row.get("stage") == stage and row.get("samples_per_s")]
    rates = rates[_WARM:] or rates
    return Pace(statistics.median(rates[-_ROWS:]), origin) if rates else None
