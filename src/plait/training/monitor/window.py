"""Add up what the rows of a stage (part of a run) say of where the time of its steps went."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spent = dict[str, Any]
"""What a row has under `spent`: of the steps since the row before, seconds by part of a step, and what explains them."""

PARTS = ("data", "start", "copy", "forward", "backward", "update", "record", "evaluate", "save", "other")
"""The parts of a step in the order in which they come. start: denominators are added, which waits for the data of the other ranks. copy:
of batches to the device; on a GPU until the copy is queued. update: norms, clipping, optimizer, averages; on a GPU also the wait for the
passes. record: metrics, callbacks. other: what stages begin with."""
_STEP = {"step": "start", **{f"step/{part}": part for part in ("copy", "forward", "backward", "update", "record")}}
_WARM = 3
"""From so many rows of a start on, its first is left out: workers start in it, memory is allocated, blocks are compiled."""

_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("seconds", "forward", "prepare"), dict),
    **dict.fromkeys(("steps", "micro_batches", "micro_batch"), int),
    **dict.fromkeys(("collate", "padding", "masked"), int | float),
    "device": str,
}
"""What `spent` must have; a row without is passed over."""


@dataclass(frozen=True)
class Window:
    """Where the time of some steps went. All seconds are those of rank 0 per step, but for those of `ranks` and `prepare`."""

    first: int
    last: int
    """The run's steps before the first and after the last of the window."""
    steps: int
    seconds: Mapping[str, float]
    """By part of a step, as of PARTS."""
    forward: Mapping[str, float]
    """Seconds of the forward pass by component, in the recorded steps."""
    prepare: Mapping[str, tuple[float, float]]
    """By source: seconds to read and encode a sample, and samples per step on this rank."""
    collate: float
    ranks: Mapping[str, Sequence[float]]
    """By name of what each rank measured, numbers in rank order: seconds per step of a part, and `positions`. {}: one rank alone."""
    micro_batches: int
    micro_batch: int
    padding: float
    masked: float
    compiled: bool
    """Whether blocks are compiled."""
    graphs: int
    """How many were compiled meanwhile."""
    recompiling: float
    """Seconds per step that compiling took; of rows that do not tell, those of both passes beyond the fastest rows."""
    compiling: tuple[float, float] | None
    """Seconds of compiling in all rows of the stage, those that are left out included, and the share of the time; None: not recorded."""
    device: str
    memory: float | None
    """Share of the GPU's memory that was allocated at the most; None: not on a GPU."""
    features_read: float
    """Share of the pictures whose features were read from the feature cache."""
    samples_per_s: float
    tflop_per_s: float | None
    mfu: float | None
    flops: float | None
    """FLOPs of a step on this rank. None: not recorded, as the next four."""
    calls: int | None
    """Calls of torch in the forward passes of a step, of which compiled blocks have none."""
    call_s: float | None
    """Seconds that one takes on this processor however few values it is about, its backward pass included. Of a CPU, as the next two."""
    product_tflop_per_s: float | None
    """Rate of products in float32, with their gradients, of the model's layers; of a run in float32, as the next."""
    bf16_gain: float | None
    """How many times as fast they are in bfloat16."""
    monitor: float | None
    """Seconds of a step that watching took, which are among those of other parts; None: not recorded."""

    @property
    def total(self) -> float:
        """Seconds of a step, with everything between it and the next."""
        return sum(self.seconds.values())

    @property
    def passes(self) -> float:
        """Seconds of a step that forward and backward passes take; on a GPU the wait for them is in the update."""
        waited = self.seconds["update"] if self.device != "cpu" else 0.0
        return self.seconds["forward"] + self.seconds["backward"] + waited

    def share(self, part: str) -> float:
        """Return the share of a step's time that a part takes."""
        return self.seconds[part] / self.total if self.total else 0.0


def part_of(doing: str) -> str:
    """Return the part of PARTS that a heartbeat's phase, or part of one, such as "save/write", belongs to."""
    phase = doing.partition("/")[0]
    return _STEP.get(doing) or (phase if phase in PARTS else "start" if phase == "step" else "other")


def window_of(rows: Sequence[Mapping[str, Any]]) -> Window | None:
    """Add up rows of one stage, in order; None where none says where the time went.

    The first row of each start is left out where there are enough others; `continued` marks those of later starts.
    """
    told = [row for row in rows if _is_sound(row.get("spent"))]
    warm = [row for i, row in enumerate(told) if i and not row.get("continued")]
    told = warm if len(told) >= _WARM and warm else told
    if not told:
        return None
    spent: list[Spent] = [row["spent"] for row in told]
    steps = sum(one["steps"] for one in spent)
    by_rank = [one["ranks"] for one in spent if "ranks" in one]
    last = spent[-1]
    return Window(
        first=told[0]["step"] - spent[0]["steps"],
        last=told[-1]["step"],
        steps=steps,
        seconds={part: sum(one["seconds"].get(part, 0.0) for one in spent) / steps for part in PARTS},
        forward=_means([one["forward"] for one in spent]),
        prepare=_prepared([one["prepare"] for one in spent], steps),
        collate=sum(one["collate"] for one in spent) / steps,
        ranks={name: [sum(values) / steps for values in zip(*(one[name] for one in by_rank), strict=True)] for name in by_rank[-1]}
        if by_rank and len({len(one["data"]) for one in by_rank}) == 1
        else {},
        micro_batches=last["micro_batches"],
        micro_batch=last["micro_batch"],
        padding=sum(one["padding"] * one["steps"] for one in spent) / steps,
        masked=statistics.fmean(one["masked"] for one in spent),
        compiled="graphs" in last,
        graphs=sum(one.get("graphs", 0) for one in spent),
        recompiling=_recompiling(spent, steps),
        compiling=_compiling([row["spent"] for row in rows if _is_sound(row.get("spent"))]),
        device=last["device"],
        memory=last["memory_gb"] / last["memory_of_gb"] if "memory_gb" in last else None,
        features_read=statistics.fmean(row.get("features_read", 0.0) for row in told),
        samples_per_s=statistics.median(row.get("samples_per_s", 0.0) for row in told),
        tflop_per_s=_median(told, "tflop_per_s"),
        mfu=_median(told, "mfu"),
        **{name: _number_of(last, name) for name in ("flops", "calls", "call_s", "product_tflop_per_s", "bf16_gain")},
        monitor=sum(one["monitor"] for one in spent) / steps if all(_number_of(one, "monitor") is not None for one in spent) else None,
    )


def _is_sound(spent: Any) -> bool:
    return isinstance(spent, dict) and all(isinstance(spent.get(name), kind) for name, kind in _KINDS.items()) and spent["steps"] > 0


def _number_of(spent: Spent, name: str) -> Any:
    value = spent.get(name)
    return value if isinstance(value, int | float) else None


def _median(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return statistics.median(values) if values else None


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(row.get(name, 0.0) for row in rows) / len(rows) for name in names}


def _prepared(rows: Sequence[Mapping[str, Sequence[float]]], steps: int) -> dict[str, tuple[float, float]]:
    names = dict.fromkeys(name for row in rows for name in row)
    sums = {name: [sum(row.get(name, (0.0, 0.0))[i] for row in rows) for i in (0, 1)] for name in names}
    return {name: (seconds / samples, samples / steps) for name, (seconds, samples) in sums.items() if samples}


def _recompiling(spent: Sequence[Spent], steps: int) -> float:
    """Return the seconds per step that compiling took, or those of both passes beyond the fastest rows."""
    if all(_number_of(one, "compile") is not None for one in spent):
        return float(sum(one["compile"] for one in spent) / steps)
    passes = [(one["seconds"].get("forward", 0.0) + one["seconds"].get("backward", 0.0)) / one["steps"] for one in spent]
    least = min(passes)
    beyond = sum(max(0.0, seconds - least) * one["steps"] for seconds, one in zip(passes, spent, strict=True) if one.get("graphs"))
    return float(beyond / steps)


def _compiling(spent: Sequence[Spent]) -> tuple[float, float] | None:
    """Return the seconds that compiling took, and their share of the time; None where a row does not tell."""
    if any(_number_of(one, "compile") is None for one in spent):
        return None
    seconds, total = sum(one["compile"] for one in spent), sum(sum(one["seconds"].values()) for one in spent)
    return float(seconds), seconds / total if total else 0.0
