"""Compare a saved state with a model by name and shape: which tensors it can use, must initialise or would lose.

A group is a kind of tensor (weights, ema, moments), a component a named part of the model. The table is logged and saved at every start; a
start that would lose something needs `--allow-inexact` (`training/start.py`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from plait.engine.optimizers import choice
from plait.engine.parallel.distributed import StoredTensor
from plait.engine.state import GROUPS

VERDICTS = ("keep", "initialise", "drop", "missing")
"""keep: saved and used. initialise: needed, never trained before. drop: saved, but without a place here. missing: trained, not saved."""

OTHER = "(none)"
"""In place of the component, for saved tensors that this model has no parameter for."""


@dataclass(frozen=True)
class Row:
    """The tensors of a group (weights, ema, moments, ...) and component (part of the model) that have one verdict.

    `verdict`: keep (saved and used), initialise (needed, never trained before), drop (saved, without a place in the model) or missing
    (trained, not saved). `tensors`: how many they are, of `values` elements together; `names`: of their parameters.
    """

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
    misfits: Collection[str] = (),
) -> list[Row]:
    """Compare saved tensors, {group: {name: tensor}}, with a model's, {component: {name: parameter}}; returns Rows.

    `wanted`: {group: names} of the parameters that train now and need such tensors: those not saved count as `initialise`. `expected`:
    names that the saved state says it trained: those without saved weights count as `missing`. `misfits`: names whose moments are of
    another optimizer, which count as `drop`, and as `initialise` where they are wanted. Rows are sorted by group and component.
    """
    owner = {name: component for component, part in components.items() for name in part}
    shapes = {name: value.shape for part in components.values() for name, value in part.items()}
    cells: dict[tuple[str, str, str], dict[str, int]] = {}

    def add(group: str, verdict: str, name: str, values: int) -> None:
        cells.setdefault((group, owner.get(name, OTHER), verdict), {})[name] = values

    for group, tensors in saved.items():
        parameters = _parameters(group, tensors)
        for name, value in parameters.items():
            fits = name in shapes and shapes[name] == value.shape and not (group == "moments" and name in misfits)
            add(group, "keep" if fits else "drop", name, value.shape.numel())
        unusable = set(misfits) if group == "moments" else set()
        for name in sorted(wanted.get(group, set()) - (parameters.keys() - unusable)):
            add(group, "initialise", name, shapes[name].numel())
    for name in sorted(expected - saved["weights"].keys()):
        add("weights", "missing", name, shapes[name].numel() if name in shapes else 0)
    return [Row(*cell, len(values), sum(values.values()), tuple(values)) for cell, values in sorted(cells.items(), key=_sort_key)]


def _parameters(group: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the saved tensors by parameter; of the moments, the first stands for all."""
    if group != "moments":
        return dict(tensors)
    split = {name: name.rpartition(".") for name in tensors}
    return {parameter: tensors[name] for name, (parameter, _, kind) in split.items() if kind in choice.KINDS}


def _sort_key(item: tuple[tuple[str, str, str], Any]) -> tuple[int, str, int]:
    group, component, verdict = item[0]
    return GROUPS.index(group), component, VERDICTS.index(verdict)


def inexact(rows: Sequence[Row]) -> list[str]:
    """Return a line per row that loses something, as "weights of connector: drop 2 (a, b)"; [] when the migration is exact."""
    return [
        f"{row.group} of {row.component}: {row.verdict} {row.tensors} ({', '.join(row.names[:3])}{', ...' if row.tensors > 3 else ''})"
        for row in rows
        if row.verdict in ("drop", "missing")
    ]


def table(rows: Sequence[Row]) -> str:
    """Format the rows as a text table with aligned columns, for the log."""
    lines = [("", "component", "", "tensors", "values")]
    lines += [(row.group, row.component, row.verdict, f"{row.tensors:,}", f"{row.values:,}") for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join(
        "  "
        + "  ".join(text.rjust(width) if i > 2 else text.ljust(width) for i, (text, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
