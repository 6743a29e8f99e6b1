"""Averages of the trained weights: the EMA, and averages whose length is chosen after training (post-hoc EMA).

A power-function average gives the weights of update tau the profile p(tau) = (g + 1) tau^g / t^(g + 1) on [0, t]: its length is a fraction
of the run so far. Two of them, saved with each checkpoint, span a space of profiles; any other length is the
combination of saved averages whose profile is nearest in the least-squares sense (Karras et al. 2024, arXiv:2312.02696, section 3 and
appendix C).
Nothing here touches files: tensors by name in, tensors by name out. `post_hoc_ema.py` reads the files.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from plait.engine.parallel.distributed import local, reshard_like
from plait.errors import PlaitError

KEPT = {"ema-0.05": 0.05, "ema-0.10": 0.10}
"""The averages that training keeps: tensor group in a checkpoint -> relative length. All other lengths are reconstructed from them."""
_LONGEST = 1 / math.sqrt(12)  # the uniform average (g = 0): no rising profile is longer
_HALF_LIVES_IN_A_RUN = 5  # at least: an average that reaches further back is warned about


class Ema:
    """Exponential moving average of the trained weights, in float32, updated once per optimizer step.

    decay_k = min(decay, (k + 1) / warmup_steps) for the k-th update of a stage (k from 0), so nothing but the averages is state. `average`:
    averages to continue from, by parameter name; parameters without one start with `track`.
    """

    def __init__(self, decay: float, warmup_steps: int, average: Mapping[str, Tensor] | None = None) -> None:
        self.decay, self.warmup_steps = decay, warmup_steps
        self.average: dict[str, Tensor] = dict(average or {})
        """The averages by parameter name; an entry's tensor is updated in place."""
        self._weights: dict[str, Tensor] = {}
        """While averages are swapped in for weights of another dtype: this rank's rows of those weights."""

    def track(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Start averages for those of `parameters` that have none yet, from their present values."""
        for name, value in parameters.items():
            if name not in self.average:
                self.average[name] = value.detach().to(torch.float32, copy=True)

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], k: int) -> None:
        """Update the averages after update `k` (from 0) of the stage: average <- decay_k average + (1 - decay_k) weight."""
        averages = [local(self.average[name]) for name in parameters]
        new_fraction, values = 1 - self.decay_at(k), [local(value.detach()) for value in parameters.values()]
        if all(value.dtype == torch.float32 for value in values):
            torch._foreach_lerp_(averages, values, new_fraction)
            return
        for average, value in zip(averages, values, strict=True):  # one by one: no float32 copy of the whole model
            average.lerp_(value.float(), new_fraction)

    def decay_at(self, k: int) -> float:
        """Return the decay of the k-th update (from 0): the fraction of the average that it keeps."""
        return min(self.decay, (k + 1) / self.warmup_steps) if self.warmup_steps else self.decay

    def reshard_like(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Shard the averages over ranks as the parameters are now; called at the start of a stage, when those may have changed."""
        self.average = {name: reshard_like(value, parameters[name]) for name, value in self.average.items()}

    @torch.no_grad()
    def swap(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Exchange weights and averages in place, to evaluate the averages; a second call restores both exactly."""
        for name, average in self.average.items():
            parameter = parameters[name]
            if parameter.dtype != average.dtype:  # the average keeps its own memory: rounded to the weight's dtype it would lose bits
                rows, weights = local(parameter.detach()), self._weights.pop(name, None)
                if weights is None:
                    self._weights[name], weights = rows.clone(), local(average)
                rows.copy_(weights)
            elif isinstance(parameter, DTensor):  # FSDP gathers from this very memory: exchange contents, not tensors
                rows, averaged = parameter.to_local(), local(average)
                weights = rows.clone()
                rows.copy_(averaged)
                averaged.copy_(weights)
            else:
                self.average[name], parameter.data = parameter.data, average


def exponent(length: float) -> float:
    """Return the exponent g of an average over updates tau, weighted by tau^g, whose spread is `length` times the run so far.

    The spread is the standard deviation of tau under these weights: length^2 = (g + 1) / ((g + 2)^2 (g + 3)), solved by bisection for
    g >= 0. Raises PlaitError for a length outside (0, 0.288].
    """
    if not 0 < length <= _LONGEST:
        raise PlaitError(f"an average's length is {length:g}; it must be above 0 and at most {_LONGEST:.3f} of the run (the plain mean)")
    low, high = 0.0, 2.0 / length  # length ~ 1 / g for large g
    for _ in range(200):
        middle = (low + high) / 2
        spread = math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3)))
        low, high = (middle, high) if spread > length else (low, middle)
    return (low + high) / 2


def decay(g: float, update: int) -> float:
    """Return (1 - 1/t)^(g + 1): the fraction of a power-function average (exponent `g`) that update t = `update` (from 1) keeps."""
    return math.pow(1 - 1 / update, g + 1)


class PowerEma(Ema):
    """Power-function average of the trained weights, in float32, updated after each step: update tau has a weight like tau^g.

    `length`, from which g follows: standard deviation of tau under these weights, as a fraction of the run so far, such as 0.05: how far
    back the average reaches. `average`: averages to continue from, by parameter name. Raises PlaitError for a length outside (0, 0.288].
    """

    def __init__(self, length: float, average: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(0.0, 0, average)
        self.length, self.g = length, exponent(length)

    def decay_at(self, k: int) -> float:
        """Return the decay of the run's update k (from 0): the fraction of the average that it keeps."""
        return decay(self.g, k + 1)


@dataclass(frozen=True)
class Profile:
    """The weights that an average made at `step` gives to the updates before it. They are a power function of exponent `g` on [0, step]."""

    step: int
    g: float


def overlap(a: Profile, b: Profile) -> float:
    """Return the integral of the product of two profiles over all updates, of which the equations of a least-squares fit consist.

    (g_a + 1)(g_b + 1) m^(g_a + g_b + 1) / ((g_a + g_b + 1) t_a^(g_a + 1) t_b^(g_b + 1)), m = min(t_a, t_b); in ratios, lest powers
    overflow.
    """
    m = min(a.step, b.step)
    ratio = math.pow(m / a.step, a.g) * math.pow(m / b.step, b.g)
    return (a.g + 1) * (b.g + 1) / (a.g + b.g + 1) * ratio * m / (a.step * b.step)


def mixture(saved: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """Return the coefficients of the saved averages whose combined profile fits the wanted one best (least squares).

    They solve A x = b with A_ij the overlap of saved profiles i and j, b_i that of i and the wanted one. They sum to nearly 1.
    """
    gram = np.array([[overlap(a, b) for b in saved] for a in saved])
    side = np.array([overlap(a, wanted) for a in saved])
    scale = 1 / np.sqrt(np.diag(gram))  # unit diagonal: profiles of early and late saves differ by orders of magnitude
    solution = np.linalg.lstsq(gram * scale[:, None] * scale, side * scale, rcond=1e-14)[0]
    return np.asarray(solution * scale, np.float64)


@dataclass(frozen=True)
class SavedAverage:
    """One average as it was saved. It has its profile, the names of the weights it covers, and a function that reads them from disk."""

    profile: Profile
    names: frozenset[str]
    tensors: Callable[[], Mapping[str, Tensor]]


def reconstruct(saved: Sequence[SavedAverage], length: float, step: int) -> dict[str, Tensor]:
    """Return the average of `length` at `step`: float32 weights by name, combined from averages saved by then.

    `length`: how far back it reaches (standard deviation of its weighting over updates), as a fraction of the run so far. One saved
    average is in memory at a time. A weight that began to train later is fitted from the averages that cover it. Raises PlaitError when
    nothing was saved by then.
    """
    usable = [average for average in saved if average.profile.step <= step]
    if not usable:
        steps = ", ".join(str(average.profile.step) for average in saved)
        raise PlaitError(f"no average was saved up to step {step}; saved at: {steps or 'none'}")
    wanted, coefficients = Profile(step, exponent(length)), {}
    total: dict[str, Tensor] = {}
    covering = {name: tuple(i for i, average in enumerate(usable) if name in average.names) for name in usable[-1].names}
    for chosen in set(covering.values()):
        coefficients[chosen] = dict(zip(chosen, mixture([usable[i].profile for i in chosen], wanted), strict=True))
    for i, average in enumerate(usable):
        tensors = average.tensors()
        for name, chosen in covering.items():
            if i in coefficients[chosen]:
                term = float(coefficients[chosen][i]) * tensors[name].double()
                total[name] = total[name] + term if name in total else term
    return {name: value.float() for name, value in sorted(total.items())}


def misfit(saved: Sequence[Profile], wanted: Profile) -> float:
    """Return the norm of the fitted profile minus the wanted one, divided by the wanted one's norm: the error of a reconstruction."""
    x = mixture(saved, wanted)
    square = overlap(wanted, wanted) - 2 * sum(c * overlap(profile, wanted) for c, profile in zip(x, saved, strict=True))
    square += sum(c * d * overlap(first, second) for c, first in zip(x, saved, strict=True) for d, second in zip(x, saved, strict=True))
    return math.sqrt(max(0.0, square) / overlap(wanted, wanted))


def half_life(rate: float) -> float:
    """Return the half-life of a plain EMA of decay `rate`, in updates: ln 2 / -ln rate. 0.9999 gives 6931."""
    return math.log(0.5) / math.log(rate) if rate > 0 else 0.0


def half_life_warning(rate: float, steps: int) -> str | None:
    """Return a warning if the half-life of decay `rate` is more than a fifth of a run of `steps`, else None."""
    reach = half_life(rate)
    if reach <= steps / _HALF_LIVES_IN_A_RUN:
        return None
    return (
        f"optim.ema.decay = {rate:g} has a half-life of {reach:,.0f} updates, more than a fifth of the {steps:,} steps: evaluations would "
        f"measure old weights; use {fitting_decay(steps):g} or less"
    )


def fitting_decay(steps: int) -> float:
    """Return the largest decay, of six digits, whose half-life is a fifth of a run of `steps`."""
    return math.floor(2 ** (-_HALF_LIVES_IN_A_RUN / steps) * 1e6) / 1e6
