"""Pass the samples of a step through the model one by one, in float32, with the weights before the update. Nothing of the step changes.

The gradient of a sample is its part of the global batch's: of sum(coefficient * numerator / weight), where the weights are those of all
samples. Norms are before clipping. A component is a named part of the model, a block one of its layers.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plait.data.loading.loader import MicroBatch
from plait.engine import loop
from plait.engine.loss import Loss, has_targets, sums_of
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks, local
from plait.engine.parallel.every_rank import on_every_rank
from plait.engine.precision import autocast
from plait.keys import key

Figures = dict[str, Any]

MOST_APART = 64
"""Samples of a step whose gradients are computed apart where weights are sharded: each takes a forward and a backward pass of all ranks."""


@dataclass(frozen=True)
class Passes:
    """Figures of a step's samples: `rows`, one a sample, and of all together: the `loss`, the gradient's `norm`, and that by module.

    A model whose weights are sharded makes them in `precision`, and forward passes alone, without norms, of more than MOST_APART samples.
    """

    rows: list[Figures]
    loss: float
    modules: dict[str, float]
    norm: float | None
    precision: str


@dataclass(frozen=True)
class Replay:
    """Makes the passes. `trained`: the parameters that train, by full name; `modules`: the module that each of them belongs to."""

    model: nn.Module
    loss: Loss
    ranks: Ranks
    trained: Mapping[str, nn.Parameter]
    modules: Mapping[str, str]
    precision: str
    seed: int
    mark: Callable[[str], None]
    """Called with the name of a part of the work as it begins, for the watchdog."""

    def run(self, micros: Sequence[MicroBatch], names: Sequence[str]) -> Passes:
        """Return the figures of the samples in `micros`, one in each, called `names`. All ranks call this, each with its own samples.

        Raises PlaitError on all of several ranks where one fails, as where memory runs out; alone, what was raised.
        """
        own = loop.own_loss_weights(self.loss, micros)
        terms = [*self.loss.coefficients]
        loss_weights = dict(zip(terms, loop.sum_over_ranks([own[term] for term in terms], self.ranks), strict=True))
        with torch.compiler.set_stance("force_eager"):
            if distributed.is_sharded(self.model):
                return self._sharded(micros, names, loss_weights)
            with _gradients_kept(self.model), _in_float32(self.model):
                rows = on_every_rank(self.ranks, functools.partial(self._each, micros, names, loss_weights))
                modules = self._norms()
        norm = math.sqrt(sum(value**2 for value in modules.values()))
        every = [row for part in rows for row in part]
        return Passes(every, self._total(every, loss_weights), modules, norm, "fp32")

    def _total(self, rows: Sequence[Figures], loss_weights: Mapping[str, float]) -> float:
        """Return the loss of all rows together."""
        return self._of({term: sum(row["sums"][term] for row in rows) for term in loss_weights}, loss_weights)

    def _of(self, sums: Mapping[str, float], loss_weights: Mapping[str, float]) -> float:
        """Return the loss of numerators over denominators, by term."""
        return sum(self.loss.coefficients[term] * sums[term] / weight for term, weight in loss_weights.items() if weight > 0)

    def _row(self, micro: MicroBatch, name: str, sums: Mapping[str, Tensor]) -> Figures:
        """Return the figures of a sample: its name, numerators, denominators, and its loss by itself."""
        own = loop.own_loss_weights(self.loss, [micro])
        weights, numerators = {term: own[term] for term in self.loss.coefficients}, {term: float(sums[term].detach()) for term in sums}
        (sample,) = micro.ids
        return {"sample": name, **sample._asdict(), "loss": self._of(numerators, weights), "sums": numerators, "weights": weights}

    def _sums(self, micro: MicroBatch) -> Mapping[str, Tensor]:
        self.mark("replay")
        loop.seed(key(self.seed, "dropout of a replay", *micro.ids[0]), self.ranks.device)
        return sums_of(self.loss, self.model, distributed.to_device(micro.batch, self.ranks.device))

    def _each(self, micros: Sequence[MicroBatch], names: Sequence[str], loss_weights: Mapping[str, float]) -> list[Figures]:
        """Return the row of each of this rank's samples, with `gradient_norm`; their gradients are left, added, in the parameters."""
        rows = []
        for norms_only in (True, False):  # the sum is computed again: a second gradient of each sample would take the memory of one more
            for micro, name in zip(micros, names, strict=True):
                sums = self._sums(micro)
                self._backward(sums, loss_weights)
                if norms_only:
                    gradients = [value.grad for value in self.trained.values() if value.grad is not None]
                    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) if gradients else 0.0
                    rows.append(self._row(micro, name, sums) | {"gradient_norm": norm})
                    for value in self.trained.values():
                        value.grad = None
        return rows

    def _backward(self, sums: Mapping[str, Tensor], loss_weights: Mapping[str, float], times: float = 1.0) -> None:
        if not has_targets(self.loss, loss_weights):
            return
        factors = {term: times * self.loss.coefficients[term] / loss_weights[term] for term in sums if loss_weights[term] > 0}
        terms = [term for term in factors if sums[term].requires_grad]
        torch.autograd.backward([sums[term] for term in terms], [torch.full_like(sums[term], factors[term]) for term in terms])

    def _norms(self) -> dict[str, float]:
        """Return the norm, by module, of the gradients in the parameters, added over ranks."""
        gradients = {}
        for name, value in self.trained.items():
            gradient = value.grad if value.grad is not None else torch.zeros_like(value)
            gradients[name] = self.ranks.sum(gradient)
            value.grad = None
        return norms_by_module(gradients, self.modules)

    def _sharded(self, micros: Sequence[MicroBatch], names: Sequence[str], loss_weights: Mapping[str, float]) -> Passes:
        """Make as many passes on each rank, as those of a sharded model are made together.

        A backward pass adds the gradients of all ranks. So those of a sample are apart where the others multiply theirs by zero.
        """
        counts = self.ranks.gather(len(micros))
        apart = sum(counts) <= MOST_APART
        rows: list[Figures] = []
        modules: dict[str, float] = {}
        try:
            with _gradients_kept(self.model):
                for number in range(max(counts)):
                    mine = number < len(micros)
                    sums = self._together(micros[min(number, len(micros) - 1)], loss_weights, gradient=apart, counts=mine)
                    if mine:
                        rows.append(self._row(micros[number], names[number], sums))
                if apart:
                    modules = self._gradient_norms(self.modules)
                    for rank, number in [(rank, number) for rank, count in enumerate(counts) for number in range(count)]:
                        mine = rank == self.ranks.rank
                        self._together(micros[number if mine else min(number, len(micros) - 1)], loss_weights, gradient=True, counts=mine)
                        norm = sum(self._gradient_norms(dict.fromkeys(self.modules, "")).values())
                        if mine:
                            rows[number]["gradient_norm"] = norm
        finally:
            distributed.reshard(self.model)
        every = [row for part in self.ranks.gather(rows) for row in part]
        of_all = math.sqrt(sum(value**2 for value in modules.values())) if apart else None
        return Passes(every, self._total(every, loss_weights), modules, of_all, self.precision)

    def _together(self, micro: MicroBatch, loss_weights: Mapping[str, float], *, gradient: bool, counts: bool) -> Mapping[str, Tensor]:
        """Pass a sample forward while the other ranks pass theirs, and with `gradient` backward; one that does not count adds zeros."""
        with torch.set_grad_enabled(gradient), distributed.accumulating(self.model, True):
            with autocast(self.precision, self.ranks.device):
                sums = self._sums(micro)
            if gradient:
                self._backward(sums, loss_weights, self.ranks.size if counts else 0.0)
        return sums

    def _gradient_norms(self, modules: Mapping[str, str]) -> dict[str, float]:
        """Return the norm, by module, of the sharded gradients in the parameters, and drop them."""
        gradients = {name: value.grad for name, value in self.trained.items() if value.grad is not None}
        norms = norms_by_module(gradients, modules)
        for value in self.trained.values():
            value.grad = None
        return norms


def norms_by_module(tensors: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, float]:
    """Return the norm of all tensors of each module; all ranks call this. `modules`: the module of each tensor, by their name."""
    squares: dict[str, list[Tensor]] = {}
    for name, value in tensors.items():
        squares.setdefault(modules[name], []).append(torch.linalg.vector_norm(local(value.detach()).float()))
    if not squares:
        return {}
    norms = [torch.linalg.vector_norm(torch.stack(part)) for part in squares.values()]
    return dict(zip(squares, map(float, distributed.norms_of_all(norms, next(iter(tensors.values())))), strict=True))


@contextlib.contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """Take the gradients out of the parameters inside the block, and put back the same tensors at its end."""
    kept = {name: value.grad for name, value in model.named_parameters()}
    try:
        for value in model.parameters():
            value.grad = None
        yield
    finally:
        for name, value in model.named_parameters():
            value.grad = None
            value.grad = kept[name]


@contextlib.contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Hold the parameters in float32 inside the block; those of fewer bits have their own values back at its end."""
    kept = {name: value.data for name, value in model.named_parameters() if value.is_floating_point() and value.dtype != torch.float32}
    parameters = dict(model.named_parameters())
    try:
        for name, value in kept.items():
            parameters[name].data = value.float()
        yield
    finally:
        for name, value in kept.items():
            parameters[name].grad = None
            parameters[name].data = value
