"""Muon for matrices and AdamW for everything else, in one optimizer whose groups and state are named.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the moment of a matrix before it is applied;
embeddings, heads, gains and biases are AdamW's, as its authors have it. `torch.optim.Muon` does the work; it needs whole matrices, and
those that are sharded over ranks are brought together by `sharded_muon.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from plait.config.schema import Component, Optim
from plait.config.sections.muon import Muon
from plait.engine.optimizers import sharded_muon
from plait.errors import PlaitError

MOMENT = "momentum_buffer"
"""Muon's state per matrix: one moment of its shape."""


class MuonAndAdamW(torch.optim.Optimizer):
    """Updates groups whose `moments` are Muon's with `torch.optim.Muon`, and the others with fused `torch.optim.AdamW`.

    Both work on the groups and the state of this one, so that what sets a learning rate or reads a moment sees one optimizer.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: Optim) -> None:
        super().__init__(groups, {})
        own = {"ns_coefficients", "ns_steps", "momentum", "nesterov", "adjust_lr_fn"}
        muon, (matrices, rest) = settings.muon or Muon(), self._divided()
        self._muon = torch.optim.Muon(matrices, lr=settings.lr, **muon.model_dump(include=own))
        self._adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True) if rest else None

    def _divided(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the groups of Muon and those of AdamW."""
        matrices = [group for group in self.param_groups if group["moments"] == (MOMENT,)]
        return matrices, [group for group in self.param_groups if group["moments"] != (MOMENT,)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: the loop has run backward already
        """Apply one update in place to every parameter that has a gradient; `closure` is not used. Sharded: all ranks call it."""
        matrices, rest = self._divided()
        if isinstance(matrices[0]["params"][0], DTensor):
            sharded_muon.step(matrices, self.state)
        else:
            self._muon.param_groups, self._muon.state = matrices, self.state
            self._muon.step()
        if self._adamw is not None:
            self._adamw.param_groups, self._adamw.state = rest, self.state
            self._adamw.step()


def matrices(decaying: Mapping[str, Mapping[str, Tensor]], settings: Optim, blocks: Iterable[nn.Module]) -> set[str]:
    """Return the names of what Muon updates: two-dimensional weights of blocks, or of a component that `optim.components` says it for.

    `decaying`: {component: {name: parameter}} of what trains and has weight decay; `blocks`: the model's repeated layers.
    """
    inside = {id(value) for block in blocks for value in block.parameters()}
    names = set()
    for component, parameters in decaying.items():
        wanted = settings.components.get(component, Component()).muon
        chosen = {name: id(value) in inside if wanted is None else wanted for name, value in parameters.items() if value.ndim == 2}
        names |= {name for name, is_chosen in chosen.items() if is_chosen}
    return names


def flops(shape: Sequence[int], ns_steps: int) -> int:
    """Return the floating point operations that orthogonalise an update of `shape`, (rows, columns), in `ns_steps` iterations.

    With m the shorter side and n the longer: G = X X^T takes 2 m m n, c G G 2 m m m, and its product with X again 2 m m n.
    """
    m, n = sorted(shape)
    return ns_steps * (4 * m * m * n + 2 * m**3)


def make(groups: Sequence[dict[str, Any]], settings: Optim, blocks: Iterable[nn.Module]) -> MuonAndAdamW:
    """Build the optimizer from AdamW's groups, of which matrices are taken apart. `blocks`: the model's repeated layers.

    Raises PlaitError where there is nothing for Muon to update.
    """
    parts = [dict(zip(group["names"], group["params"], strict=True)) for group in groups]
    chosen = matrices({group["component"]: part for group, part in zip(groups, parts, strict=True) if group["decays"]}, settings, blocks)
    if not chosen:
        raise nothing_for_it(list(dict.fromkeys(group["component"] for group in groups)))
    divided = []
    for group, part in zip(groups, parts, strict=True):
        for mine in (True, False):
            named = {name: value for name, value in part.items() if (name in chosen) == mine}
            own = {"moments": (MOMENT,), **_rate(group, settings)} if mine else {}
            if named:
                divided.append({**group, "params": list(named.values()), "names": list(named), **own})
    return MuonAndAdamW(divided, settings)


def nothing_for_it(components: Sequence[str]) -> PlaitError:
    """Return the error for a stage that trains these components, of which no matrix is in a block."""
    cure = f"--optim.components.{components[0]}.muon=true, or --optim.name=adamw"
    return PlaitError(f"optim.name is muon, but no matrix of {', '.join(components)} is in a block, so there is none for it: {cure}")


def _rate(group: dict[str, Any], settings: Optim) -> dict[str, Any]:
    """Return the peak of a group of matrices that have a learning rate of their own, and the name under which it is logged."""
    if settings.muon is None or settings.muon.lr is None:
        return {}
    return {"peak": group["peak"] * settings.muon.lr / settings.lr, "rate": f"{group['component']}.muon"}
