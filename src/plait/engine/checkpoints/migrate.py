"""A saved state held against a model, by name: what is kept, begun, left behind or lacking. Printed, saved and, unless exact, asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from plait.engine.parallel.distributed import StoredTensor
from plait.engine.state import GROUPS

VERDICTS = ("keep", "initialise", "drop", "missing")
"""keep: saved and wanted. initialise: wanted, never trained before. drop: saved, no place here. missing: was trained, not saved."""

OTHER = "(none)"
"""The component of saved tensors that this model has no parameter for."""


@dataclass(frozen=True)
class Row:
    """One line of the table: how many tensors and values of a group and component meet one verdict."""

    group: str
    component: str
    verdict: str
    tensors: int
    values: int
    names: tuple[str, ...]


def compare(
    saved: Mapping[str, Mapping[str, StoredTensor]],
    components: Mapping[str, Mapping[str, nn.Parameter]],
    wanted: Mapping[str, set[str]],
    expected: set[str],
) -> list[Row]:
    """The table for weights, ema and moments.

    `wanted`: parameters each group needs for what trains now. `expected`: parameters that the saved state says it trained.
    """
    owner = {name: component for component, part in components.items() for name in part}
    shapes = {name: value.shape for part in components.values() for name, value in part.items()}
    found: dict[tuple[str, str, str], dict[str, int]] = {}

    def add(group: str, verdict: str, name: str, values: int) -> None:
        found.setdefault((group, owner.get(name, OTHER), verdict), {})[name] = values

    for group, tensors in saved.items():
        held = _parameters(group, tensors)
        for name, value in held.items():
            fits = name in shapes and shapes[name] == value.shape
            add(group, "keep" if fits else "drop", name, value.shape.numel())
        for name in sorted(wanted.get(group, set()) - held.keys()):
            add(group, "initialise", name, shapes[name].numel())
    for name in sorted(expected - saved["weights"].keys()):
        add("weights", "missing", name, shapes[name].numel() if name in shapes else 0)
    return [Row(*place, len(names), sum(names.values()), tuple(names)) for place, names in sorted(found.items(), key=_by_place)]


def _parameters(group: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The saved tensors by parameter; of the moments, the first one stands for all."""
    if group != "moments":
        return dict(tensors)
    return {name.removesuffix(".exp_avg"): value for name, value in tensors.items() if name.endswith(".exp_avg")}


def _by_place(item: tuple[tuple[str, str, str], Any]) -> tuple[int, str, int]:
    group, component, verdict = item[0]
    return GROUPS.index(group), component, VERDICTS.index(verdict)


def inexact(rows: Sequence[Row]) -> list[str]:
    """What would be lost, a line each; empty when the migration is exact."""
    return [
        f"{row.group} of {row.component}: {row.verdict} {row.tensors} ({', '.join(row.names[:3])}{', ...' if row.tensors > 3 else ''})"
        for row in rows
        if row.verdict in ("drop", "missing")
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    lines = [("", "component", "", "tensors", "values")]
    lines += [(row.group, row.component, row.verdict, f"{row.tensors:,}", f"{row.values:,}") for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        "  "
        + "  ".join(text.rjust(width) if i > 2 else text.ljust(width) for i, (text, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
