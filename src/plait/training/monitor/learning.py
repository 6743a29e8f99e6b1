"""Measure how the components of a model learn: how far they move, and what they put out.

Only in the steps that are recorded. Weights are looked at by a fixed sample of their values, the same number however large the model is,
so that this costs next to nothing.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from plait import files
from plait.engine.parallel.distributed import local

SAMPLED = 1 << 14
"""Values of a component that are looked at, about."""
_ROWS, _FEWEST_ROWS = 256, 8
"""Positions of an output that are looked at, at the most and at the least."""
_CONSTANT = 1e-3
"""A unit whose values deviate by less than this share of the scale of all units is constant."""

LEARNING = "learning"
"""Folder of a run with the sample of each stage's first weights, a file each."""


class Learning:
    """Watches the weights that train, by component, and the outputs of components: `begin`, a step, `figures`.

    `path`: a file of the weights' sample at the start of the stage (part of a run). With `continues` it is read, if it fits; else the
    weights as they are now are the start, which `keep` writes.
    """

    def __init__(self, trained: Mapping[str, Sequence[Tensor]], path: Path, *, continues: bool) -> None:
        self.trained, self.path, self.kept = trained, path, False
        self.start = self._sampled()
        if continues and (stored := self._stored()) is not None:
            self.start, self.kept = {name: value.to(self.start[name].device) for name, value in stored.items()}, True
        self.before: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Note the weights before a step."""
        self.outputs, self.before = {}, self._sampled()

    def keep(self) -> None:
        """Write the start, once a step has been done: a start that fails before leaves nothing. Later calls do nothing."""
        if not self.kept:
            self.kept = True
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(self.path, save({name: value.cpu() for name, value in self.start.items()}), sync=False)

    def output(self, component: str, value: Tensor) -> None:
        """Note what a module of a component put out, of any shape; the last one of a step counts."""
        if (measured := measure(value)) is not None:
            self.outputs[component] = measured

    def figures(self) -> dict[str, float]:
        """Return the figures of the step since `begin`: {} without one.

        update/COMPONENT: norm of the update over that of the weights; moved/COMPONENT: of the difference to the stage's start over that of
        the start; activation/COMPONENT: root mean square of its output; dead/COMPONENT: share of the output's units that are constant.
        """
        values: dict[str, Tensor] = {}
        for component, before in self.before.items():
            after, start = sample(self.trained[component]), self.start[component]
            values[f"update/{component}"] = _ratio(after - before, before)
            values[f"moved/{component}"] = _ratio(after - start, start)
        for component, measured in self.outputs.items():
            values[f"activation/{component}"], values[f"dead/{component}"] = measured.unbind()
        self.before, self.outputs = {}, {}
        numbers = torch.stack([value.float() for value in values.values()]).tolist() if values else []
        return {name: number for name, number in zip(values, numbers, strict=True) if math.isfinite(number)}

    def _sampled(self) -> dict[str, Tensor]:
        return {component: sample(part) for component, part in self.trained.items()}

    def _stored(self) -> dict[str, Tensor] | None:
        """Return the sample that the file holds; None where there is none that fits these weights."""
        try:
            stored = load(self.path.read_bytes())
        except Exception:  # noqa: BLE001  whatever is wrong with it, it is made anew
            return None
        fits = {name: value.shape for name, value in stored.items()} == {name: value.shape for name, value in self.start.items()}
        return stored if fits else None


def sample(parameters: Sequence[Tensor]) -> Tensor:
    """Return some values of parameters, evenly spread and always the same ones, as one float32 vector; of shards, this rank's."""
    tensors = [local(value.detach()) for value in parameters]
    every = max(1, sum(value.numel() for value in tensors) // SAMPLED)
    return torch.cat([torch.as_strided(value, (-(-value.numel() // every),), (every,)) for value in tensors]).float()


def _ratio(difference: Tensor, values: Tensor) -> Tensor:
    ratio: Tensor = torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(values)
    return ratio


@torch.no_grad()
def measure(value: Tensor) -> Tensor | None:
    """Return (root mean square, share of constant units) of an output (..., units), or (N, units, ...) of four dimensions and more.

    None where it has fewer than eight positions, of which nothing can be said.
    """
    units = value.movedim(1, -1) if value.ndim > 3 else value
    if not units.ndim or len(rows := units.reshape(-1, units.shape[-1])) < _FEWEST_ROWS:
        return None
    rows = rows[:: max(1, len(rows) // _ROWS)].float()
    scale = rows.square().mean().sqrt()
    constant = rows.std(0, correction=0) <= _CONSTANT * scale
    return torch.stack([scale, constant.float().mean()])
