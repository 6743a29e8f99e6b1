"""Averages of weights whose length is chosen after training, and how far back any average reaches.

A power-function average gives the weights of update tau the profile p(tau) = (g + 1) tau^g / t^(g + 1) on [0, t]: its length is a share of
the run, whatever the run's length. Two of them, saved now and then, span a space of profiles; any other length is the combination of saved
averages whose profile is nearest in the least-squares sense (Karras et al. 2024, arXiv:2312.02696, section 3 and appendix C).
Nothing here touches files: tensors by name in, tensors by name out. The files are those of averages.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from plait.engine.optim import Ema
from plait.errors import PlaitError

KEPT = {"ema-0.05": 0.05, "ema-0.10": 0.10}
"""The averages that training keeps, by their names in checkpoints, and their relative lengths: others are made of them afterwards."""
_LONGEST = 1 / math.sqrt(12)  # the uniform average (g = 0): no rising profile is longer
_HALF_LIFE_SHARE = 5


def exponent(length: float) -> float:
    """g of the profile whose standard deviation is `length` x the run, so far: length^2 = (g + 1) / ((g + 2)^2 (g + 3)).

    The root of length^2 (g + 2)^2 (g + 3) = g + 1 at g >= 0, by bisection. Raises PlaitError for a length outside (0, 0.288].
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
    """The share of the average that update number `update` (from 1) keeps: (1 - 1/t)^(g + 1). The first keeps nothing."""
    return (1 - 1 / update) ** (g + 1)


class PowerEma(Ema):
    """A power-function average in float32, advanced once per optimizer step; updates count over all stages."""

    def __init__(self, length: float):
        super().__init__(0.0, 0)
        self.length, self.g = length, exponent(length)

    def decay_at(self, k: int) -> float:
        """`decay` of update k (from 0)."""
        return decay(self.g, k + 1)


@dataclass(frozen=True)
class Profile:
    """What a saved average has averaged: updates up to `step`, with exponent `g`."""

    step: int
    g: float


def overlap(a: Profile, b: Profile) -> float:
    """The integral of p_a p_b over tau: (g_a + 1)(g_b + 1) m^(g_a + g_b + 1) / ((g_a + g_b + 1) t_a^(g_a + 1) t_b^(g_b + 1)), m = min(t).

    In ratios of the steps, so that no power overflows.
    """
    m = min(a.step, b.step)
    ratio = (m / a.step) ** a.g * (m / b.step) ** b.g
    return (a.g + 1) * (b.g + 1) / (a.g + b.g + 1) * ratio * m / (a.step * b.step)


def mixture(saved: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """Coefficients of the saved averages, float64: the least squares fit of their profiles to the wanted one.

    They solve A x = b with A_ij the overlap of saved averages i and j, b_i that of i and the wanted. They sum to nearly 1.
    """
    gram = np.array([[overlap(a, b) for b in saved] for a in saved])
    side = np.array([overlap(a, wanted) for a in saved])
    scale = 1 / np.sqrt(np.diag(gram))  # unit diagonal: profiles of early and late saves differ by orders of magnitude
    found, *_ = np.linalg.lstsq(gram * scale[:, None] * scale, side * scale, rcond=1e-14)
    return found * scale


@dataclass(frozen=True)
class Saved:
    """One average as it was saved: its profile, the weights it covers, and how to get them."""

    profile: Profile
    names: frozenset[str]
    tensors: Callable[[], Mapping[str, Tensor]]


def reconstruct(saved: Sequence[Saved], length: float, step: int) -> dict[str, Tensor]:
    """The average of relative `length` at `step`, from saved averages of updates up to `step`; float32. One of them is in memory at a time.

    A weight that joined later is fitted from those that cover it. Raises PlaitError when nothing was saved by then.
    """
    usable = [one for one in saved if one.profile.step <= step]
    if not usable:
        raise PlaitError(f"no average was saved up to step {step}; saved at: {', '.join(str(one.profile.step) for one in saved) or 'none'}")
    wanted, shares = Profile(step, exponent(length)), {}
    total: dict[str, Tensor] = {}
    covering = {name: tuple(place for place, one in enumerate(usable) if name in one.names) for name in usable[-1].names}
    for places in set(covering.values()):
        shares[places] = dict(zip(places, mixture([usable[place].profile for place in places], wanted), strict=True))
    for place, one in enumerate(usable):
        tensors = one.tensors()
        for name, places in covering.items():
            if place in shares[places]:
                part = float(shares[places][place]) * tensors[name].double()
                total[name] = total[name] + part if name in total else part
    return {name: value.float() for name, value in sorted(total.items())}


def misfit(saved: Sequence[Profile], wanted: Profile) -> float:
    """Distance of the fitted profile from the wanted one, over the wanted one's norm: how far to trust a reconstruction."""
    x = mixture(saved, wanted)
    square = overlap(wanted, wanted) - 2 * sum(c * overlap(one, wanted) for c, one in zip(x, saved, strict=True))
    square += sum(c * d * overlap(one, other) for c, one in zip(x, saved, strict=True) for d, other in zip(x, saved, strict=True))
    return math.sqrt(max(0.0, square) / overlap(wanted, wanted))


def half_life(rate: float) -> float:
    """Updates after which a plain EMA of decay `rate` has forgotten half: ln 2 / -ln rate. 0.9999 gives 6931."""
    return math.log(0.5) / math.log(rate) if rate > 0 else 0.0


def half_life_warning(rate: float, steps: int) -> str | None:
    """Advice when the average reaches further back than a fifth of a run of `steps`: it would judge weights of long ago."""
    reach = half_life(rate)
    if reach <= steps / _HALF_LIFE_SHARE:
        return None
    fitting = 2 ** (-_HALF_LIFE_SHARE / steps)
    return (
        f"optim.ema.decay = {rate:g} has a half-life of {reach:,.0f} updates, more than a fifth of the {steps:,} steps: evaluations would "
        f"judge old weights; use {math.floor(fitting * 1e6) / 1e6:g} or less"
    )
