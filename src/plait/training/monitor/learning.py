"""Measure how the components of a model learn: how far they move, and what they put out.

Only in the steps that are recorded. Weights are looked at by a fixed sample of their values, the same number however large the model is,
so that this costs next to nothing.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.tensor import DTensor

from plait import files
from plait.engine.parallel.distributed import local

SAMPLED = 1 << 12
"""Values of a component that are looked at, about."""
_ROWS, _FEWEST_ROWS = 64, 8
"""Positions of an output that are looked at, at the most and at the least."""
_CONSTANT = 1e-3
"""A unit whose values deviate by less than this share of the scale of all units is constant."""

LEARNING = "learning"
"""Folder of a run with the sample of each stage's first weights, a file each."""
LOOKS = ("update/", "moved/", "activation/", "dead/", "idle/", "idle_layer/")
"""Beginnings of the names of figures that only rows of steps have which were looked at (look_budget.py), those of units included."""


class Learning:
    """Watches the weights that train, by component, and the outputs of components: `begin`, a step, `figures`.

    `path`: a file of the weights' sample at the start of the stage (part of a run). With `continues` it is read, if it fits; else the
    weights as they are now are the start, which `keep` writes.
    """

    def __init__(self, trained: Mapping[str, Sequence[Tensor]], path: Path, *, continues: bool) -> None:
        self.names, self.path, self.kept = [*trained], path, False
        self.samples = Samples([*trained.values()])
        start = self.samples.values()
        if continues and (stored := self._stored()) is not None:
            start, self.kept = stored.to(start.device), True
        self.start, self.start_norms = start, torch.stack(torch._foreach_norm([*self.samples.split(start)])).tolist()
        self.before: Tensor | None = None
        self.outputs: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Note the weights before a step."""
        self.outputs, self.before = {}, self.samples.values()

    def keep(self) -> None:
        """Write the start, before the first save: a start that fails before leaves nothing. Later calls do nothing."""
        if not self.kept:
            self.kept = True
            self.path.parent.mkdir(parents=True, exist_ok=True)
            start = dict(zip(self.names, self.samples.split(self.start.cpu()), strict=True))
            files.write_whole(self.path, save({name: value.clone() for name, value in start.items()}), sync=False)

    def output(self, component: str, value: Tensor) -> None:
        """Note what a module of a component put out, of any shape; the last one of a step counts."""
        if (rows := positions(value)) is not None:
            self.outputs[component] = rows

    def figures(self) -> dict[str, float]:
        """Return the figures of the step since `begin`: {} without one.

        update/COMPONENT: norm of the update over that of the weights; moved/COMPONENT: of the difference to the stage's start over that of
        the start; activation/COMPONENT: root mean square of its output; dead/COMPONENT: share of the output's units that are constant.
        """
        names, values = list[str](), list[Tensor]()
        if self.before is not None:
            after, split = self.samples.values(), self.samples.split
            norms = torch.stack(torch._foreach_norm([*split(after - self.before), *split(after - self.start), *split(self.before)]))
            names += [f"{figure}/{name}" for figure in ("update", "moved", "") for name in self.names]
            values.append(norms)
        for components in _alike(self.outputs).values():
            names += [f"{figure}/{name}" for figure in ("activation", "dead") for name in components]
            values.append(measure([self.outputs[name] for name in components]))
        self.before, self.outputs = None, {}
        numbers = dict(zip(names, torch.cat(values).tolist() if values else [], strict=True))
        for name, start in zip(self.names, self.start_norms, strict=True) if f"/{self.names[0]}" in numbers else ():
            numbers[f"update/{name}"] = _ratio(numbers[f"update/{name}"], numbers.pop(f"/{name}"))
            numbers[f"moved/{name}"] = _ratio(numbers[f"moved/{name}"], start)
        return {name: number for name, number in numbers.items() if math.isfinite(number)}

    def _stored(self) -> Tensor | None:
        """Return the sample that the file holds, as one vector; None where there is none that fits these weights."""
        try:
            stored = load(self.path.read_bytes())
        except Exception:  # noqa: BLE001  whatever is wrong with it, it is made anew
            return None
        sizes = dict(zip(self.names, self.samples.sizes, strict=True))
        fits = {name: [*value.shape] for name, value in stored.items()} == {name: [size] for name, size in sizes.items()}
        return torch.cat([stored[name].float() for name in self.names]) if fits else None


class Samples:
    """Some values of the parameters of each part of a model, evenly spread and always the same ones; of shards, this rank's.

    `sizes`: how many of each part. Views of the parameters are kept, and made anew where one of them has moved in memory.
    """

    def __init__(self, parts: Sequence[Sequence[Tensor]]) -> None:
        self.parameters = [value for part in parts for value in part]
        self._sharded = any(isinstance(value, DTensor) for value in self.parameters)
        locals_ = [[local(value.detach()) for value in part] for part in parts]
        every = [max(1, sum(value.numel() for value in part) // SAMPLED) for part in locals_]
        self._steps = [step for part, step in zip(locals_, every, strict=True) for _ in part]
        self.sizes = [sum(-(-value.numel() // step) for value in part) for part, step in zip(locals_, every, strict=True)]
        self._views: list[Tensor] = []
        self._addresses: list[int] = []

    @torch.no_grad()
    def values(self) -> Tensor:
        """Return the values as one new float32 vector, part after part."""
        now = [local(value) for value in self.parameters] if self._sharded else self.parameters
        addresses = [value.data_ptr() for value in now]
        if addresses != self._addresses:
            pairs = zip(now, self._steps, strict=True)
            self._views = [torch.as_strided(value, (-(-value.numel() // step),), (step,)).detach() for value, step in pairs]
            self._addresses = addresses
        return torch.cat(self._views).float()

    def split(self, values: Tensor) -> Sequence[Tensor]:
        """Return views of such a vector, one for each part."""
        parts: Sequence[Tensor] = values.split(self.sizes)
        return parts


def positions(value: Tensor) -> Tensor | None:
    """Return a copy of at most 64 positions of an output, evenly spread, as (positions, units).

    `value`: (..., units), or (N, units, ...) of four dimensions and more. None where there are fewer than eight, which say nothing.
    """
    if value.ndim < 2:
        return None
    if value.ndim < 4 and value.is_contiguous():
        count, width = value.numel() // max(1, value.shape[-1]), value.shape[-1]
        every = max(1, count // _ROWS)
        rows = value.as_strided((min(_ROWS, -(-count // every)), width), (every * width, 1))
        return rows.to(torch.float32, copy=True) if count >= _FEWEST_ROWS else None
    units = value.flatten(2).movedim(1, -1) if value.ndim > 3 else value.reshape(-1, *value.shape[-2:])
    samples, places, _ = units.shape
    if samples * places < _FEWEST_ROWS:
        return None
    every = max(1, samples * places // _ROWS)
    of_places = min(every, places)
    rows = units[:: max(1, every // of_places), ::of_places].flatten(0, 1)[:_ROWS]
    return rows.to(torch.float32, copy=True)


def _ratio(norm: float, of: float) -> float:
    return norm / of if of else math.nan


def _alike(outputs: Mapping[str, Tensor]) -> dict[int, list[str]]:
    """Return the names of outputs that have as many positions, by their number."""
    names = dict[int, list[str]]()
    for name, rows in outputs.items():
        names.setdefault(len(rows), []).append(name)
    return names


@torch.no_grad()
def measure(outputs: Sequence[Tensor]) -> Tensor:
    """Return (root mean square of each output, then the share of each one's units that are constant). Outputs: (positions, units) each.

    All have as many positions: they are looked at side by side, as calls cost more than values here.
    """
    rows = torch.cat([*outputs], 1)
    means, spread = _of_output(tuple(part.shape[1] for part in outputs), rows.device)
    squares = rows.square().mean(0) @ means
    constant = (rows - rows.mean(0)).square().mean(0) <= spread @ squares
    return torch.cat([squares.sqrt(), constant.float() @ means])


@functools.lru_cache(maxsize=4)
def _of_output(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two matrices (units of all outputs, outputs), 0 where a unit is not of an output: to take its mean, and its limits from it.

    `sizes`: the outputs' numbers of units. A unit's limit is the variance up to which it is constant.
    """
    mine: Tensor = torch.block_diag(*[torch.ones(size, 1) for size in sizes]).to(device)
    return mine / mine.sum(0), _CONSTANT**2 * mine
