"""Compare two runs bit by bit: the samples of every step, every logged number, and every tensor of their common checkpoints.

Only clock times may differ. The difference reported first is the one closest to the cause: of the earliest step, and at one step sample
ids before loss terms, other logged numbers and tensors. The runs are not changed.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import files
from plait.engine import averages
from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.state import GROUPS
from plait.training.figures import forgetting
from plait.training.monitor.learning import LOOKS

CLOCK = frozenset({"samples_per_s", "data_wait_s", "step_s", "time_s", "recompiles", "compile_s", "tflop_per_s", "mfu", "spent"})
"""Fields of metrics.jsonl that depend on the process, not on the run: times, and what was compiled since its start."""

BEFORE_UPDATE = ("sample ids", "loss terms", "other figures")
"""Kinds of logged fields that are computed before the optimizer's update of their step."""


@dataclass(frozen=True)
class Line:
    """The comparison of one kind of thing, `what` ("loss terms"), in two runs.

    `compared`: how many were; `first`: the first difference as text, None if all are equal; `step`: where it is (0 without one).
    """

    what: str
    compared: int
    first: str | None = None
    step: int = 0


def runs(a: Path, b: Path) -> list[Line]:
    """Compare the run directories `a` and `b`; return a Line per kind of thing, such as sample ids, loss terms and weights.

    Raises PlaitError if one has no intact checkpoint.
    """
    rows_a, rows_b = (files.read_rows(run / "metrics.jsonl", files.STEP_KINDS) for run in (a, b))
    lines = [_rows(rows_a, rows_b), *_figures(rows_a, rows_b), _quarantined(a, b), _state(a, b)]
    tensors = [_tensors(group, a, b) for group in GROUPS]
    lines += [_ledger(a, b)] if any((run / forgetting.FOLDER).is_dir() for run in (a, b)) else []
    return lines + [line for line in tensors if line.compared or line.first or line.what not in averages.KEPT]


def divergence(lines: Iterable[Line]) -> str | None:
    """Return a sentence on the first difference of two runs, from the lines that `runs` returned, or None if they are equal.

    It names the earliest difference in what was logged, and the first parameters that differ.
    """
    different = [line for line in lines if line.first is not None]
    tensors = [line for line in different if line.what in GROUPS]
    logged = [line for line in different if line not in tensors]
    first = min(logged, key=lambda line: line.step, default=None)
    parts = [f"{first.what}: {first.first}"] if first else []
    if tensors:
        early = min(line.step for line in tensors)
        parts.append("first differing parameter: " + "; ".join(str(line.first) for line in tensors if line.step == early))
        if all(line.step > early for line in logged if line.what in BEFORE_UPDATE):
            parts.append(f"loss and gradient of step {early} were equal, so its update was not: moments did not come back")
    return "; ".join(parts) or None


def _step_and_kind(row: Mapping[str, Any]) -> tuple[int, str]:
    kinds = {"held-out": "eval/", "picture": "blind/", "source": "loss_by/"}
    kind = next((kind for kind, prefix in kinds.items() if any(name.startswith(prefix) for name in row)), None)
    return row["step"], kind or ("step" if "loss" in row else "note")


def _rows(rows_a: list[dict[str, Any]], rows_b: list[dict[str, Any]]) -> Line:
    """Compare the number of rows of each kind at each step."""
    in_a, in_b = [_step_and_kind(row) for row in rows_a], [_step_and_kind(row) for row in rows_b]
    for step, kind in sorted({*in_a, *in_b}):
        counts = in_a.count((step, kind)), in_b.count((step, kind))
        if counts[0] != counts[1]:
            return Line("rows", len(rows_a), f"step {step} has {counts[0]} {kind} rows in one run and {counts[1]} in the other", step)
    return Line("rows", len(rows_a))


def _figures(rows_a: list[dict[str, Any]], rows_b: list[dict[str, Any]]) -> list[Line]:
    """Compare sample ids, loss terms, other figures of steps, what their updates did, and held-out figures."""
    by_place = {_step_and_kind(row): row for row in rows_b}
    counts = dict.fromkeys(("sample ids", "loss terms", "other figures", "updates", "held-out figures"), 0)
    first: dict[str, tuple[str, int]] = {}
    for row in rows_a:
        twin = by_place.get(_step_and_kind(row))
        if twin is None:
            continue
        for name in sorted((row.keys() | twin.keys()) - CLOCK - _of_one(row, twin), key=lambda name: (name == "loss", name)):
            what = _category(name, row)
            counts[what] += 1
            if row.get(name) != twin.get(name) and what not in first:
                first[what] = f"step {row['step']}: {name} is {row.get(name)} and {twin.get(name)}", row["step"]
    return [Line(what, count, *first.get(what, (None, 0))) for what, count in counts.items()]


def _of_one(row: Mapping[str, Any], twin: Mapping[str, Any]) -> set[str]:
    """Return the names of the figures of a look at the model where only one of two rows has one: when there is time for it, clocks say."""
    of_look = [{name for name in one if name.startswith(LOOKS)} for one in (row, twin)]
    return set() if all(of_look) else set().union(*of_look)


def _category(name: str, row: Mapping[str, Any]) -> str:
    if name == "ids":
        return "sample ids"
    if _step_and_kind(row)[1] == "held-out":
        return "held-out figures"
    if name.startswith(("update/", "moved/")):  # measured after the step's update
        return "updates"
    return "loss terms" if name == "loss" or name.startswith("loss/") else "other figures"


def _quarantined(a: Path, b: Path) -> Line:
    rows_a, rows_b = (files.read_rows(run / "quarantine.jsonl", files.STEP_KINDS) for run in (a, b))
    for row_a, row_b in itertools.zip_longest(rows_a, rows_b):
        if row_a != row_b:
            return Line("replaced samples", len(rows_a), f"{row_a} and {row_b}", (row_a or row_b)["step"])
    return Line("replaced samples", len(rows_a))


def _ledger(a: Path, b: Path) -> Line:
    """Compare what was measured at the boundaries of stages, row by row."""
    names = sorted({path.name for run in (a, b) for path in (run / forgetting.FOLDER).glob("*.json")})
    for name in names:
        in_a, in_b = (forgetting.read_object(run / forgetting.FOLDER / name) for run in (a, b))
        if in_a != in_b:
            keys = sorted(key for key in {**(in_a or {}), **(in_b or {})} if (in_a or {}).get(key) != (in_b or {}).get(key))
            lacking = "is in one run only" if in_a is None or in_b is None else f"differs in {', '.join(keys)}"
            return Line("stage ledger", len(names), f"{forgetting.FOLDER}/{name} {lacking}", (in_a or in_b or {}).get("step", 0))
    return Line("stage ledger", len(names))


def _state(a: Path, b: Path) -> Line:
    """Compare the state in the manifests of the newest checkpoints."""
    last = [integrity.locate(run) for run in (a, b)]
    names = [saved.folder.relative_to(run).as_posix() for saved, run in zip(last, (a, b), strict=True)]
    if names[0] != names[1]:
        return Line("state", 0, f"the newest checkpoints are {names[0]} and {names[1]}", min(saved.step for saved in last))
    in_a, in_b = (saved.manifest["state"] for saved in last)
    for name in sorted(in_a.keys() | in_b.keys()):
        if in_a.get(name) != in_b.get(name):
            return Line("state", len(in_a), f"{names[0]}: {name} is {in_a.get(name)} and {in_b.get(name)}", last[0].step)
    return Line("state", len(in_a))


def _tensors(group: str, a: Path, b: Path) -> Line:
    """Compare a tensor group in all checkpoints that both runs have, the oldest first."""
    count = 0
    shared = [folder.relative_to(a) for folder in reversed(checkpoint.published(a)) if (b / folder.relative_to(a)).is_dir()]
    for folder in shared:
        in_a, in_b = (integrity.locate(run / folder).tensors(group) for run in (a, b))
        count += len(in_a)
        difference = next(tensor_differences(in_a, in_b), None)
        if difference is not None:
            step = int(folder.name.removeprefix("step-"))
            return Line(group, count, f"{group} of {difference}, in {folder.as_posix()}", step)
    return Line(group, count)


def tensor_differences(in_a: Mapping[str, Tensor], in_b: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield a line of text for each tensor that only one of two checkpoints has, or that differs in any bit.

    `in_a`, `in_b`: {name: tensor} of each. The optimizer's step counts come first, because they show which parameters lost their moments.
    """
    for name in sorted(in_a.keys() | in_b.keys(), key=lambda name: (not name.endswith(".step"), name)):
        if name not in in_a or name not in in_b:
            yield f"{name} is in {'one' if name in in_a else 'the other'} run only"
            continue
        a, b = in_a[name], in_b[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            yield f"{name} is {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}"
        elif a.numel() == 1 and a.item() != b.item():
            yield f"{name} is {a.item():g} and {b.item():g}"
        elif not torch.equal(bits(a), bits(b)):
            count, largest = int((bits(a) != bits(b)).any(-1).sum()), (a.double() - b.double()).abs().max()
            yield f"{name} ({count} of {a.numel()} values differ, by at most {largest:.1e})"


def bits(value: Tensor) -> Tensor:
    """Return a tensor as rows of bytes (values, bytes per value), to compare it bit by bit; NaN equals NaN."""
    return value.contiguous().view(-1, 1).view(torch.uint8)
