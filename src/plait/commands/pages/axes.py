"""Scales and ticks of a chart's axes, and numbers as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DECADES = 10.0
"""Largest value over the smallest from which positive values are drawn on a logarithmic axis."""
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to pixels from `start` to `end`; `log`: by their logarithms. `ticks`: values, with their texts."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: Sequence[tuple[float, str]]

    def at(self, value: float) -> float:
        """Return the pixel of a value; beyond the axis, its nearer end. On a logarithmic axis 0 and less are at the lower end."""
        if self.log:
            share = 0.0 if value <= 0 else (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)


def linear(low: float, high: float, start: float, end: float, *, most: int = 5, room: bool = True) -> Axis:
    """Return an axis with about `most` ticks at round values. `room`: widen it to the ticks beyond both ends."""
    if not high > low:
        reach = abs(low) * 0.05 or 0.5
        low, high = low - reach, high + reach
    step = _round_step((high - low) / most)
    first, last = (math.floor(low / step), math.ceil(high / step)) if room else (math.ceil(low / step), math.floor(high / step))
    values = [round(number * step, 12) for number in range(first, last + 1)]
    ends = (values[0], values[-1]) if room else (low, high)
    return Axis(*ends, start, end, False, [(value, compact(value, step)) for value in values])


def of_values(values: Sequence[float], start: float, end: float, *, log: bool | None = None) -> Axis:
    """Return the axis of finite values. `log`: whether it is logarithmic; None: where they are not negative and span 1 to 10 or more."""
    positive = [value for value in values if value > 0]
    if log is None:
        log = bool(positive) and min(values) >= 0 and max(positive) > _DECADES * min(positive) and len(positive) > len(values) / 2
    if not (log and positive) or max(positive) <= min(positive):
        return linear(min(values), max(values), start, end)
    low, high = min(positive), max(positive)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, math.ceil(len(exponents) / 6))
    factors = (1, 2, 5) if len(exponents) <= 3 else (1, 3) if len(exponents) <= 4 else (1,)
    known = [factor * 10.0**exponent for exponent in exponents if (exponent - exponents[0]) % every == 0 for factor in factors]
    return Axis(
        low * 0.93, high * 1.07, start, end, True, [(value, compact(value)) for value in known if low * 0.93 <= value <= high * 1.07]
    )


def _round_step(step: float) -> float:
    """Return the smallest round number (1, 2, 2.5 or 5 times a power of ten) that is at least `step`."""
    scale = 10.0 ** math.floor(math.log10(step))
    return next(scale * factor for factor in _STEPS if scale * factor >= step * 0.999)


def compact(value: float, step: float | None = None) -> str:
    """Return the text of a tick, such as 2k, 0.25 or 1e-5. `step`: the distance to the next tick, which decides the decimals."""
    if value == 0:
        return "0"
    size = abs(value)
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= factor and (step is None or step >= factor / 1000):
            return f"{value / factor:.6g}{unit}"
    if size < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.6g}"


def number(value: float) -> str:
    """Return a figure as text with four significant digits: 0.3271, 12,430, 3.2e-05; "not finite" for NaN and infinities."""
    if not math.isfinite(value):
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
