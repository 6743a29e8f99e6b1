"""A mixture: data sets (sources) that are trained on together, and their shares. A YAML or JSON file, read before any data is opened.

Two forms. A list of rows, `[{name: vqa2, weight: 2}, ...]`, whose weights are shares of the samples drawn; a row may be any source of a
`data:` section. Or `groups: {demo: {weight: 0.15, datasets: [cap-qa, {name: cap, size: 50000}]}}`: a group has its share, and inside it
datasets are drawn in proportion to the square root of their size, or of the `size` written in its place.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from plait.config import data_paths
from plait.config.conflicts import source_conflicts
from plait.config.messages import problem_at, problems_in, raise_first
from plait.config.nodes import Node, to_plain
from plait.config.reading import read_any
from plait.config.schema import SourceEntry
from plait.config.sections.base import Count, Rate, Section
from plait.config.source_rules import SourceRules
from plait.errors import PlaitError


class _Row(SourceEntry):
    """A row of a mixture: any source, or the name of a dataset alone."""

    source: str = "dataset"

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class _Member(_Row):
    """A row of a group."""

    size: Count | None = Field(default=None, description="taken for the dataset's own size when shares are made")


class _Group(Section):
    """A group: its share, and its datasets."""

    weight: Rate
    datasets: list[_Member] = Field(min_length=1)


class _Listed(Section):
    """A mixture file that lists rows."""

    datasets: list[_Row] = Field(min_length=1)


class _Grouped(Section):
    """A mixture file of groups."""

    groups: dict[str, _Group] = Field(min_length=1)


@dataclass(frozen=True)
class MixturePart:
    """One dataset of a mixture: its source settings (`entry`), and its group's name (None in a plain list).

    `size`: in a group, the number of samples to reckon shares with in place of the dataset's own; None: its own.
    """

    entry: SourceEntry
    group: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Mixture:
    """A mixture without the datasets named in `data.without`. `title`: the stem of its file; `parts`: its datasets, in the file's order."""

    title: str
    parts: tuple[MixturePart, ...]
    group_weights: dict[str, float]
    """The weight of each group that is left, by name; {} where there are no groups."""

    @property
    def entries(self) -> list[SourceEntry]:
        """The settings of each source of the mixture, in the order of its file."""
        return [part.entry for part in self.parts]

    def sampling_weights(self, sizes: Sequence[int]) -> list[float]:
        """Return the weight of each source by which samples are drawn; `sizes` are their numbers of samples.

        In a plain list it is the row's own; in a group it is the group's weight * sqrt(size) / sum of the group's sqrt(size).
        """
        roots = [math.sqrt(part.size or size) for part, size in zip(self.parts, sizes, strict=True)]
        totals = {
            name: math.fsum(root for part, root in zip(self.parts, roots, strict=True) if part.group == name) for name in self.group_weights
        }
        return [
            part.entry.weight if part.group is None else self.group_weights[part.group] * root / totals[part.group]
            for part, root in zip(self.parts, roots, strict=True)
        ]


def read(path: Path, without: Sequence[str], kinds: Mapping[str, SourceRules]) -> Mixture:
    """Read the mixture in the file `path`, leaving out the datasets of `without`. Raises PlaitError, with the line, for any error in it.

    `kinds`: the rules of every kind of source (shards, jsonl, ...), by name. A name in `without` that the file lacks is an error too.
    """
    tree = read_any(path)
    if isinstance(tree.value, list):
        tree = Node({"datasets": _moved(tree)}, tree.file, tree.line)
    elif not isinstance(tree.value, dict) or not tree.value.keys() & {"groups", "datasets"}:
        raise PlaitError(f"{path}: a mixture is a list of {{name, weight}} rows, or has `groups`; this file has neither")
    tree = data_paths.resolve_rows(tree, kinds)
    kind: type[BaseModel] = _Grouped if "groups" in tree.value else _Listed
    try:
        parsed = kind.model_validate(to_plain(tree))
    except ValidationError as error:
        raise_first(problems_in(error, tree, kind))
        raise
    lists: list[tuple[tuple[str, ...], str | None, Sequence[_Row]]]
    if isinstance(parsed, _Grouped):
        group_weights = {name: group.weight for name, group in parsed.groups.items()}
        lists = [(("groups", name, "datasets"), name, group.datasets) for name, group in parsed.groups.items()]
    else:
        assert isinstance(parsed, _Listed)
        group_weights, lists = {}, [(("datasets",), None, parsed.datasets)]
    parts: list[MixturePart] = []
    for list_path, group, rows in lists:
        for index, row in enumerate(rows):
            _check(tree, (*list_path, index), row, kinds, grouped=group is not None, seen=[part.entry for part in parts])
            entry = SourceEntry(**row.model_dump(exclude={"size"}))
            parts.append(MixturePart(entry, group, row.size if isinstance(row, _Member) else None))
    kept = _without(parts, without, path)
    return Mixture(
        path.stem, tuple(kept), {name: weight for name, weight in group_weights.items() if any(part.group == name for part in kept)}
    )


def _moved(node: Node) -> Node:
    """Return a bare list of rows with the paths that it would have under `datasets`."""
    value = node.value
    if isinstance(value, dict):
        value = {name: _moved(child) for name, child in value.items()}
    elif isinstance(value, list):
        value = [_moved(child) for child in value]
    return replace(node, value=value, path=f"datasets.{node.path}" if node.path else "datasets")


def _check(
    tree: Node, path: tuple[str | int, ...], row: _Row, kinds: Mapping[str, SourceRules], *, grouped: bool, seen: Sequence[SourceEntry]
) -> None:
    """Raise PlaitError for a row that breaks the rules of its kind. Also for a weight inside a group, and for one of `seen` again."""
    message = None
    if "source" not in row.model_fields_set and row.name is None:
        message = "needs a name"
    elif problems := source_conflicts(row, kinds):
        below, message = problems[0]
        path = (*path, *below)
    elif grouped and "weight" in row.model_fields_set:
        message = "has a weight, but in a group the size decides: write size, or leave it out"
    elif row.held_out is not None:
        path, message = (*path, "held_out"), "is for data.train: of a mixture, hold out one share of each dataset, data.validation=1%"
    elif any((other.source, other.name, other.path, other.split) == (row.source, row.name, row.path, row.split) for other in seen):
        message = f"lists {row.name or row.path or row.source} a second time: keep one"
    if message:
        raise_first([problem_at(tree, path, message)])


def _without(parts: Sequence[MixturePart], without: Sequence[str], path: Path) -> list[MixturePart]:
    """Return the parts that `without` does not name. Raises PlaitError for a name that is not there, and where nothing is left."""
    names = [part.entry.name or part.entry.path or part.entry.source for part in parts]
    unknown = next((name for name in without if name not in names), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
        raise PlaitError(f"data.without names {unknown!r}, which mixture {path.stem} does not have: {hint}")
    kept = [part for part, name in zip(parts, names, strict=True) if name not in without]
    if not kept:
        raise PlaitError(f"data.without leaves nothing of mixture {path.stem}: keep at least one dataset")
    return kept
