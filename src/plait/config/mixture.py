"""A mixture: which datasets are trained on together, and in which shares. YAML or JSON, read before any data is opened.

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

from plait.config.conflicts import source_conflicts
from plait.config.messages import complain, explain, report
from plait.config.nodes import Node, plain
from plait.config.reading import read_any
from plait.config.schema import Count, Rate, Section, Source
from plait.config.source_rules import SourceRules
from plait.errors import PlaitError


class _Row(Source):
    source: str = "dataset"

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class _Member(_Row):
    size: Count | None = Field(default=None, description="taken for the dataset's own size when shares are made")


class _Group(Section):
    weight: Rate
    datasets: list[_Member] = Field(min_length=1)


class _Listed(Section):
    datasets: list[_Row] = Field(min_length=1)


class _Grouped(Section):
    groups: dict[str, _Group] = Field(min_length=1)


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture. `group`: None in a plain list, where the entry's own weight counts."""

    entry: Source
    group: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Mixture:
    """`shares` are those of the groups that are left."""

    title: str
    parts: tuple[Part, ...]
    shares: dict[str, float]

    @property
    def entries(self) -> list[Source]:
        """The sources, in order."""
        return [part.entry for part in self.parts]

    def weights(self, sizes: Sequence[int]) -> list[float]:
        """The weight of each source, when they hold so many samples: a row's own, or share * sqrt(size) / sum of its group's sqrt(size)."""
        roots = [math.sqrt(part.size or size) for part, size in zip(self.parts, sizes, strict=True)]
        totals = {name: math.fsum(root for part, root in zip(self.parts, roots, strict=True) if part.group == name) for name in self.shares}
        return [
            part.entry.weight if part.group is None else self.shares[part.group] * root / totals[part.group]
            for part, root in zip(self.parts, roots, strict=True)
        ]


def read(path: Path, without: Sequence[str], kinds: Mapping[str, SourceRules]) -> Mixture:
    """Read the mixture in a file, without the datasets named in `without`. `kinds`: the kinds of source that a row may be.

    Raises PlaitError, one line, for what is wrong with it.
    """
    tree = read_any(path)
    if isinstance(tree.value, list):
        tree = Node({"datasets": _moved(tree)}, tree.file, tree.line)
    elif not isinstance(tree.value, dict) or not tree.value.keys() & {"groups", "datasets"}:
        raise PlaitError(f"{path}: a mixture is a list of {{name, weight}} rows, or has `groups`; this file has neither")
    kind: type[BaseModel] = _Grouped if "groups" in tree.value else _Listed
    try:
        found = kind.model_validate(plain(tree))
    except ValidationError as error:
        report(explain(error, tree, kind))
        raise
    wanted: list[tuple[tuple[str, ...], str | None, Sequence[_Row]]]
    if isinstance(found, _Grouped):
        shares = {name: group.weight for name, group in found.groups.items()}
        wanted = [(("groups", name, "datasets"), name, group.datasets) for name, group in found.groups.items()]
    else:
        assert isinstance(found, _Listed)
        shares, wanted = {}, [(("datasets",), None, found.datasets)]
    parts: list[Part] = []
    for where, group, rows in wanted:
        for index, row in enumerate(rows):
            _check(tree, (*where, index), row, kinds, grouped=group is not None, seen=[part.entry for part in parts])
            entry = Source(**row.model_dump(exclude={"size"}))
            parts.append(Part(entry, group, row.size if isinstance(row, _Member) else None))
    kept = _without(parts, without, path)
    return Mixture(path.stem, tuple(kept), {name: share for name, share in shares.items() if any(part.group == name for part in kept)})


def _moved(node: Node) -> Node:
    """A bare list of rows as if it stood under `datasets`."""
    value = node.value
    if isinstance(value, dict):
        value = {name: _moved(child) for name, child in value.items()}
    elif isinstance(value, list):
        value = [_moved(child) for child in value]
    return replace(node, value=value, path=f"datasets.{node.path}" if node.path else "datasets")


def _check(
    tree: Node, path: tuple[str | int, ...], row: _Row, kinds: Mapping[str, SourceRules], *, grouped: bool, seen: Sequence[Source]
) -> None:
    said = None
    if "source" not in row.model_fields_set and row.name is None:
        said = "needs a name"
    elif problems := source_conflicts(row, kinds):
        below, said = problems[0]
        path = (*path, *below)
    elif grouped and "weight" in row.model_fields_set:
        said = "has a weight, but in a group the size decides: write size, or leave it out"
    elif any((one.source, one.name, one.path, one.split) == (row.source, row.name, row.path, row.split) for one in seen):
        said = f"lists {row.name or row.path or row.source} a second time: keep one"
    if said:
        report([complain(tree, path, said)])


def _without(parts: Sequence[Part], without: Sequence[str], path: Path) -> list[Part]:
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
