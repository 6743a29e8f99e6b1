"""Hold what a run took against what `plait plan` says of it.

Steps, tokens, FLOPs, memory and the size of checkpoints, by stage.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from plait.commands.actions.findings import gigabytes
from plait.commands.actions.report.record import Row, RunRecord, is_number
from plait.commands.actions.runs import prune
from plait.commands.pages.axes import number
from plait.commands.pages.report import Table
from plait.errors import PlaitError
from plait.training.planning import meta_model
from plait.training.planning.forecast import StageForecast, forecast
from plait.training.planning.hardware import Hardware

_TERA = 1e12


def table(record: RunRecord) -> tuple[Table | None, str]:
    """Return the table of plan and reality, and a sentence on what the plan does not know."""
    found, faults = figures(record)
    rows = [_row(*(one[name] for name in ("stage", "what", "planned", "taken"))) for one in found]
    told = "; ".join(f"{what} is not known: {why}" for what, why in faults.items())
    return (Table("", ["stage", "", "planned", "taken", "difference"], rows, frozenset({2, 3, 4})) if rows else None), told


def figures(record: RunRecord) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return `stage`, `what`, `planned` and `taken` of each figure, None where not known, and why parts of the plan are not known.

    The model is built without weights, and data that is on this machine is opened; nothing is downloaded. Sizes are in bytes.
    """
    ranks = int(record.manifest["ranks"]) if record.manifest else 1
    rows, faults = list[dict[str, Any]](), dict[str, str]()
    try:
        with meta_model.assets_of(record.resolved) as assets:
            bundle = meta_model.meta_bundle(record.resolved.config, assets)
            for stage in forecast(record.resolved, bundle, Hardware(None, ranks)):
                names = ("what", "planned", "taken")
                rows += [{"stage": stage.view.name, **dict(zip(names, row, strict=True))} for row in _rows(record, stage, ranks)]
                faults |= stage.faults
    except (PlaitError, OSError) as error:
        faults["plan"] = str(error)
    return rows, faults


def _rows(record: RunRecord, stage: StageForecast, ranks: int) -> Iterator[tuple[str, float | None, float | None]]:
    """Yield (what, as planned, as taken) of a stage."""
    view = stage.view
    of_stage = [row for row in record.trained if row.get("stage") == view.index]
    progress = record.progress.get(view.index)
    done = max((row["step"] for row in of_stage), default=0) - progress.start if progress and of_stage else None
    yield "steps", stage.steps, done
    planned_tokens = None if stage.batch is None else stage.batch.tokens_per_sample
    yield "tokens a sample", planned_tokens, _tokens(record, view.index)
    planned_flops = None if stage.flops is None else stage.flops / _TERA
    yield "TFLOP a step", planned_flops, _flops(of_stage, view.config.train.global_batch, ranks)
    used = [
        row["spent"]["memory_gb"] for row in of_stage if isinstance(row.get("spent"), dict) and is_number(row["spent"].get("memory_gb"))
    ]
    if used:
        yield "memory of a rank", stage.chosen.peak, max(used) * 1e9
    sizes = [prune.size_of(folder) for folder in record.checkpoints if folder.parent.name == f"stage-{view.index}-{view.name}"]
    planned = None if stage.checkpoints is None else stage.checkpoints.size
    yield "a checkpoint", planned, sizes[0] if sizes else None


_BYTES = ("memory of a rank", "a checkpoint")


def _row(stage: str, what: str, planned: float | None, taken: float | None) -> list[str]:
    """Return a row: plan, reality and the difference in percent."""
    text: Callable[[float], str] = gigabytes if what in _BYTES else number
    shown = ["not known" if planned is None else text(planned), "-" if taken is None else text(taken)]
    percent = "" if not planned or taken is None else "0 %" if planned == taken else f"{taken / planned - 1:+.1%}".replace("%", " %")
    return [stage, what, *shown, percent]


def _tokens(record: RunRecord, index: int) -> float | None:
    """Return the tokens of a sample that a stage saw in the mean; None where none are counted."""
    counted = [row for row in record.trained if is_number(row.get("tokens")) and is_number(row.get("samples"))]
    last = next((row for row in reversed(counted) if row.get("stage") == index), None)
    first = next((row for row in reversed(counted) if row.get("stage", index) < index), {"tokens": 0.0, "samples": 0.0})
    if last is None or last["samples"] <= first["samples"]:
        return None
    return float(last["tokens"] - first["tokens"]) / float(last["samples"] - first["samples"])


def _flops(rows: Sequence[Row], batch: int, ranks: int) -> float | None:
    """Return the TFLOP of a step in the mean over the recorded ones; None where they were not counted."""
    counted = [float(row["tflop_per_s"]) * ranks * batch / float(row["samples_per_s"]) for row in rows if row.get("tflop_per_s")]
    return sum(counted) / len(counted) if counted else None
