"""Two runs held against each other: the samples of every step, every logged number, and every tensor of the checkpoints both have.

Equal means equal to the bit; only what tells the time may differ. The first difference is named in the order in which one causes the next:
sample ids, then a loss term, then other figures, then a tensor.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait import files
from plait.engine import power_ema
from plait.engine.checkpoints import checkpoint
from plait.engine.state import GROUPS

CLOCK = frozenset({"samples_per_s", "data_wait_s", "step_s", "time_s", "recompiles", "tflop_per_s", "mfu"})
"""Fields of a metrics row that tell of the process, not of the run: the time, and what it compiled since its start."""

BEFORE_UPDATE = ("sample ids", "loss terms", "other figures")
"""What a row tells of the moment before its step's update."""


@dataclass(frozen=True)
class Line:
    """One line of the comparison: what, how many were compared, and the first that differs (None: all agree)."""

    what: str
    compared: int
    first: str | None = None
    step: int = 0
    """The step of that first difference."""


def runs(a: Path, b: Path) -> list[Line]:
    """Every line of the comparison of two runs."""
    mine, theirs = (files.read_rows(run / "metrics.jsonl") for run in (a, b))
    lines = [_rows(mine, theirs), *_figures(mine, theirs), _quarantined(a, b), _facts(a, b)]
    tensors = [_tensors(group, a, b) for group in GROUPS]
    return lines + [line for line in tensors if line.compared or line.first or line.what not in power_ema.KEPT]


def divergence(lines: Iterable[Line]) -> str | None:
    """The first divergence in words, or None: of what was logged the earliest step, there ids before losses, then the first tensors."""
    found = [line for line in lines if line.first is not None]
    tensors = [line for line in found if line.what in GROUPS]
    logged = [line for line in found if line not in tensors]
    first = min(logged, key=lambda line: line.step, default=None)
    said = [f"{first.what}: {first.first}"] if first else []
    if tensors:
        early = min(line.step for line in tensors)
        said.append("first differing parameter: " + "; ".join(str(line.first) for line in tensors if line.step == early))
        if all(line.step > early for line in logged if line.what in BEFORE_UPDATE):
            said.append(f"loss and gradient of step {early} were equal, so its update was not: moments did not come back")
    return "; ".join(said) or None


def _place(row: Mapping[str, Any]) -> tuple[int, str]:
    kind = "held-out" if any(name.startswith("eval/") for name in row) else "step" if "loss" in row else "note"
    return row["step"], kind


def _rows(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Line:
    places, other = [_place(row) for row in mine], [_place(row) for row in theirs]
    for step, kind in sorted({*places, *other}):
        counts = places.count((step, kind)), other.count((step, kind))
        if counts[0] != counts[1]:
            return Line("rows", len(mine), f"step {step} has {counts[0]} {kind} rows in one run and {counts[1]} in the other", step)
    return Line("rows", len(mine))


def _figures(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[Line]:
    """Sample ids, loss terms, other figures of steps, held-out figures."""
    other = {_place(row): row for row in theirs}
    counts = dict.fromkeys(("sample ids", "loss terms", "other figures", "held-out figures"), 0)
    first: dict[str, tuple[str, int]] = {}
    for row in mine:
        twin = other.get(_place(row))
        if twin is None:
            continue
        for name in sorted((row.keys() | twin.keys()) - CLOCK, key=lambda name: (name == "loss", name)):
            what = _category(name, row)
            counts[what] += 1
            if row.get(name) != twin.get(name) and what not in first:
                first[what] = f"step {row['step']}: {name} is {row.get(name)} and {twin.get(name)}", row["step"]
    return [Line(what, count, *first.get(what, (None, 0))) for what, count in counts.items()]


def _category(name: str, row: Mapping[str, Any]) -> str:
    if name == "ids":
        return "sample ids"
    if _place(row)[1] == "held-out":
        return "held-out figures"
    return "loss terms" if name == "loss" or name.startswith("loss/") else "other figures"


def _quarantined(a: Path, b: Path) -> Line:
    mine, theirs = (files.read_rows(run / "quarantine.jsonl") for run in (a, b))
    for one, other in zip([*mine, *[None] * len(theirs)], [*theirs, *[None] * len(mine)], strict=True):
        if one != other:
            return Line("replaced samples", len(mine), f"{one} and {other}", (one or other or {})["step"])
    return Line("replaced samples", len(mine))


def _facts(a: Path, b: Path) -> Line:
    last = [checkpoint.locate(run) for run in (a, b)]
    names = [one.folder.relative_to(run).as_posix() for one, run in zip(last, (a, b), strict=True)]
    if names[0] != names[1]:
        return Line("state", 0, f"the newest checkpoints are {names[0]} and {names[1]}", min(one.step for one in last))
    mine, theirs = (one.manifest["state"] for one in last)
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            return Line("state", len(mine), f"{names[0]}: {name} is {mine.get(name)} and {theirs.get(name)}", last[0].step)
    return Line("state", len(mine))


def _tensors(group: str, a: Path, b: Path) -> Line:
    """A tensor group over all checkpoints that both runs have, the oldest first."""
    count = 0
    shared = [folder.relative_to(a) for folder in reversed(checkpoint.published(a)) if (b / folder.relative_to(a)).is_dir()]
    for folder in shared:
        mine, theirs = (checkpoint.locate(run / folder).tensors(group) for run in (a, b))
        count += len(mine)
        for said in tensor_differences(mine, theirs):
            step = int(folder.name.removeprefix("step-"))
            return Line(group, count, f"{group} of {said}, in {folder.as_posix()}", step)
    return Line(group, count)


def tensor_differences(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Iterator[str]:
    """One line for each tensor that only one has or that differs in any bit; counts of updates first: they tell whose moments were lost."""
    for name in sorted(mine.keys() | theirs.keys(), key=lambda name: (not name.endswith(".step"), name)):
        if name not in mine or name not in theirs:
            yield f"{name} is in {'one' if name in mine else 'the other'} run only"
            continue
        one, other = mine[name], theirs[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            yield f"{name} is {tuple(one.shape)} {one.dtype} and {tuple(other.shape)} {other.dtype}"
        elif one.numel() == 1 and one.item() != other.item():
            yield f"{name} is {one.item():g} and {other.item():g}"
        elif not torch.equal(bits(one), bits(other)):
            apart = (one.double() - other.double()).abs()
            yield f"{name} ({int((bits(one) != bits(other)).any(-1).sum())} of {one.numel()} values differ, by at most {apart.max():.1e})"


def bits(value: Tensor) -> Tensor:
    """A tensor as rows of bytes, one row per value: what is equal here is equal in every bit, NaN included."""
    return value.contiguous().view(-1, 1).view(torch.uint8)
