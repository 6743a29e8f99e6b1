"""Measure what a processor takes for a call of torch, and for products in float32 and in bfloat16, by a model's layers.

For causes of slow steps that no clock in a step tells. Of a CPU alone: of GPUs data sheets tell the rates of products, and the wait for
their kernels tells whether the host is the slower one. It takes some milliseconds, draws no random number, and is done once a stage.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS, _WIDEST, _SHAPES, _TIMES = 128, 512, 4, 3
"""Positions, and units at the most, of the products that are timed; how many layers, those that cost most; and how often each: the fastest
time counts, which other programs delay least."""
_CALLS = 40


@dataclass(frozen=True)
class DeviceSpeed:
    """What was measured. `call_s`: seconds of a call on a few values, forward and backward; `tflop_per_s`: of products in float32.

    `bf16_gain`: how many times as fast they are in bfloat16, casts included. Of products that were not measured both are None.
    """

    call_s: float
    tflop_per_s: float | None = None
    bf16_gain: float | None = None

    def figures(self) -> dict[str, Any]:
        """Return what rows have under `spent`."""
        known = {"call_s": self.call_s, "product_tflop_per_s": self.tflop_per_s, "bf16_gain": self.bf16_gain}
        return {name: float(f"{value:.4g}") for name, value in known.items() if value is not None}


def measure(model: nn.Module, *, products: bool) -> DeviceSpeed:
    """Measure this process's processor. `model`: gives the sizes of products, which are timed if `products`."""
    call_s = _fastest(_calls) / _CALLS
    shapes = Counter(tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Linear) and products)
    largest = sorted(shapes, key=lambda shape: -shape[0] * shape[1] * shapes[shape])[:_SHAPES]
    if not largest:
        return DeviceSpeed(call_s)
    flops, seconds = 0.0, [0.0, 0.0]
    for shape in largest:
        out, width = (min(size, _WIDEST) for size in shape)
        flops += shapes[shape] * 6.0 * _ROWS * out * width
        for i, half in enumerate((False, True)):
            seconds[i] += shapes[shape] * _fastest(_Product(out, width, half))
    return DeviceSpeed(call_s, flops / seconds[0] / 1e12, seconds[0] / seconds[1])


class _Product:
    """A linear layer's product and both of its gradients, as autocast computes them: call it."""

    def __init__(self, out: int, width: int, half: bool) -> None:
        self.x, self.weight = (torch.ones(rows, width, requires_grad=True) for rows in (_ROWS, out))
        self.half = half

    def __call__(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half):
            value = F.linear(self.x, self.weight)
        torch.autograd.grad(value, (self.x, self.weight), torch.ones_like(value))


def _calls() -> Tensor:
    start = torch.ones(8, requires_grad=True)
    value = start
    for _ in range(_CALLS):
        value = value * start
    return torch.autograd.grad(value.sum(), start)[0]


def _fastest(work: Callable[[], object]) -> float:
    """Return the least seconds that `work` took, after a first time that does not count."""
    took = []
    for _ in range(1 + _TIMES):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took[1:])
