"""Read what `plait eval` measured of a run: which weights each figure is of, and the table of them all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.commands.actions.report.record import Row, RunRecord, is_number
from plait.commands.pages.axes import number
from plait.commands.pages.report import Table
from plait.engine.checkpoints import checkpoint
from plait.engine.evaluation import is_count

AVERAGES, LAST, BASE = "averages", "last weights", "before the first step"
"""Names of the weights that figures are of; those of an average of another length are "averages of length 0.07"."""


def has_averages(manifest: Mapping[str, Any] | None) -> bool:
    """Return whether a checkpoint of this manifest has averaged (EMA) weights."""
    return any(name.partition("/")[0].removesuffix(".safetensors") == "ema" for name in (manifest or {}).get("files", ()))


def of_checkpoint(told: Row, name: str, step: int) -> bool:
    """Return whether a metrics.json is of the checkpoint STAGE/STEP of its run, `name`; of one that tells none, whether of its `step`."""
    if told.get("checkpoint") is None:
        return bool(told.get("step") == step)
    return Path(str(told["checkpoint"])).parts[-2:] == Path(name).parts[-2:]


def weights_of(told: Row, record: RunRecord) -> str:
    """Return the name of the weights that a metrics.json tells figures of; "" where it does not say."""
    key = told.get("key")
    named = str(key.get("weights", "")) if isinstance(key, Mapping) else ""
    folder = Path(str(told.get("checkpoint", "")))
    if named and not checkpoint.is_step(folder):
        return BASE
    if named in ("averaged weights", "averages"):
        return AVERAGES if has_averages(_manifest(folder, record)) else LAST
    return named


def _manifest(folder: Path, record: RunRecord) -> Mapping[str, Any] | None:
    """Return the manifest of a checkpoint of the run; of one that has been pruned, the newest of its stage."""
    try:
        own: Mapping[str, Any] = json.loads((record.path / folder.parent.name / folder.name / "manifest.json").read_bytes())
        return own
    except (OSError, ValueError):
        number = folder.parent.name.split("-")[1:2]
        return record.manifests.get(int(number[0])) if number and number[0].isdecimal() else None


def bench_of(told: Row, folder: Path) -> str:
    """Return the name of what was measured: the bench, and the variant of the settings that it was measured with, if any."""
    key = told.get("key")
    variant = key.get("variant") if isinstance(key, Mapping) else None
    return f"{told.get('bench', folder.name)}{f', {variant}' if variant else ''}"


def measured_table(record: RunRecord) -> Table | None:
    """Return the table of what `plait eval` measured; None where it was not called."""
    rows = []
    for folder, told in record.measured:
        figures = told.get("figures")
        if not isinstance(figures, dict):
            continue
        for name, value in figures.items():
            if not is_number(value) or is_count(name) or (name == "loss/loss" and value == figures.get("loss")):
                continue
            ends = told.get("intervals", {}).get(name) if isinstance(told.get("intervals"), dict) else None
            sure = f"{number(ends[0])} to {number(ends[1])}" if isinstance(ends, list) and len(ends) == 2 else ""
            step = f"{told['step']:,}" if is_number(told.get("step")) else ""
            figure = [name, number(value), sure, step, weights_of(told, record), str(told.get("data", ""))]
            rows.append([bench_of(told, folder), *figure])
    head = ["bench", "figure", "value", "95 %", "step", "weights", "data"]
    return Table("Measured afterwards", head, rows, frozenset({2, 3, 4})) if rows else None
