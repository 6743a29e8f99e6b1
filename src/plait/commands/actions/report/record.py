"""Read what a run recorded: the rows of its metrics, its checkpoints, starts, faults and measurements. Nothing is judged here.

A damaged line costs that line, and a damaged file that file: what was left out is told on the page, too.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait import files
from plait.assembly.run_configuration import open_run_config
from plait.commands.actions import stages
from plait.commands.actions.runs import list_runs
from plait.commands.actions.runs.list_runs import ListedRun
from plait.config.resolved import Resolved
from plait.engine.checkpoints import checkpoint
from plait.training.changes import LINEAGE
from plait.training.figures import forgetting, kept_answers, picture_use

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""A row of a .jsonl file of the run: values by name."""


@dataclass(frozen=True)
class RunRecord:
    """What a run recorded. `rows`: of metrics.jsonl, with numbers that are not finite as floats; `manifests`: the newest of each stage.

    `name`: what a page calls it; `listed`: the run's line in `plait runs`; `progress`: of each stage that began, by its number; `starts`:
    rows of migrations.jsonl; `quarantine`, `failures`: unusable samples, benches that failed; `answers`: what training kept of each
    evaluation; `ledger`: what stages gained and forgot; `measured`: the metrics.json of each `plait eval`; `left_out`: what could not be
    read, a line each.
    """

    name: str
    path: Path
    resolved: Resolved
    listed: ListedRun
    rows: Sequence[Row]
    manifests: Mapping[int, Mapping[str, Any]]
    checkpoints: Sequence[Path]
    progress: Mapping[int, stages.StageProgress]
    starts: Sequence[Row]
    lineage: Row | None
    quarantine: Sequence[Row]
    failures: Sequence[Row]
    answers: Sequence[Row]
    ledger: Sequence[Row]
    measured: Sequence[tuple[Path, Row]]
    left_out: Sequence[str]
    _series: dict[str, list[tuple[float, float]]] = field(default_factory=dict, repr=False)

    @property
    def trained(self) -> list[Row]:
        """The rows of training steps."""
        return [row for row in self.rows if "loss" in row]

    @property
    def held_out(self) -> list[Row]:
        """The rows of evaluations."""
        return [row for row in self.rows if any(name.startswith("eval/") for name in row)]

    @property
    def looks(self) -> list[Row]:
        """The rows of looks at whether pictures make a difference."""
        return [row for row in self.rows if picture_use.is_row(row)]

    @property
    def last_step(self) -> int:
        """The last step of which there is a row."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """The manifest of the newest checkpoint that can be read."""
        return self.manifests.get(max(self.manifests, default=0))

    def series(self, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of every row that has a number of this name, in the order of steps."""
        if name not in self._series:
            self._series[name] = sorted({float(row["step"]): float(row[name]) for row in self.rows if is_number(row.get(name))}.items())
        return self._series[name]


def read(path: Path) -> RunRecord:
    """Read the run directory `path`. Raises PlaitError if it is none, or its configuration cannot be read."""
    resolved = open_run_config(path)
    left_out = list[str]()
    rows = [{name: _finite_again(value) for name, value in row.items()} for row in stages.rows_of(path)]
    lines = sum(bool(line.strip()) for line in _bytes(path / "metrics.jsonl").split(b"\n"))
    if lines > len(rows):
        left_out.append(f"{lines - len(rows)} of {lines:,} lines of metrics.jsonl cannot be read, and are left out")
    folders = checkpoint.published(path)
    manifests = stages.manifests_by_stage(folders)
    number = max([*manifests, *(row["stage"] for row in rows if "stage" in row), 0])
    begun = resolved.stages[:number]
    measured = [(folder, row) for folder in sorted(path.glob("eval/*/metrics.json")) if (row := _object(folder, left_out)) is not None]
    return RunRecord(
        name=path.resolve().name,
        path=path,
        resolved=resolved,
        listed=list_runs.look(path),
        rows=rows,
        manifests=manifests,
        checkpoints=folders,
        progress={view.index: stages.progress(view, rows, manifests.get(view.index)) for view in begun},
        starts=_jsonl(path / "migrations.jsonl", left_out, {"from": str, "time_s": float | int | None}),
        lineage=_object(path / LINEAGE, left_out),
        quarantine=_jsonl(path / "quarantine.jsonl", left_out, files.STEP_KINDS),
        failures=_jsonl(path / "bench_failures.jsonl", left_out, {"step": int, "bench": str, "reason": str}),
        answers=_jsonl(path / kept_answers.NAME, left_out, {**files.STEP_KINDS, "bench": str, "answers": list}),
        ledger=forgetting.of_run(path),
        measured=[(folder.parent, row) for folder, row in measured],
        left_out=left_out,
    )


def is_number(value: Any) -> bool:
    """Return whether a value of a row is a number, also one that is not finite."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def memory_of(row: Row) -> float | None:
    """Return the most memory of the GPU in use so far, in 1e9 bytes; None where the row has none."""
    spent = row.get("spent")
    memory = spent.get("memory_gb") if isinstance(spent, dict) else None
    return float(memory) if isinstance(memory, int | float) else None


def _finite_again(value: Any) -> Any:
    """Return a number that JSON could not hold and that was written as text, such as "nan", as a float; other values as they are."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _jsonl(path: Path, left_out: list[str], kinds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl file; lines that cannot be read are told in `left_out`."""
    rows = files.read_rows(path, kinds)
    lines = sum(bool(line.strip()) for line in _bytes(path).split(b"\n"))
    if lines > len(rows):
        left_out.append(f"{lines - len(rows)} of {lines:,} lines of {path.name} cannot be read, and are left out")
    return rows


def _object(path: Path, left_out: list[str]) -> dict[str, Any] | None:
    """Return the object in a JSON file; None where there is none, or, told in `left_out`, where it cannot be read."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        left_out.append(f"{path.parent.name}/{path.name} cannot be read, and is left out")
        return None
    return value
