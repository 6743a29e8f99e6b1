"""The dtypes of products, weights and gradients for each `train.precision`, and float16's loss scaling.

| `train.precision` | products computed in | what trains | gradients | frozen |
| fp32              | float32              | float32     | float32   | float32 |
| bf16              | bfloat16             | float32     | float32   | bfloat16 |
| fp16              | float16              | float32     | float32   | float16 |
| pure_bf16         | bfloat16             | bfloat16    | bfloat16  | bfloat16 |

Micikevicius et al. 2018 (arXiv 1710.03740): float32 weights beside half-precision products, and the scaled loss.
"""

import logging
import math
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from plait.engine.parallel import distributed, hosted
from plait.engine.parallel.distributed import Ranks, local

log = logging.getLogger(__name__)

SCALE, GOOD_STEPS, OVERFLOWS = "loss_scale", "loss_scale_steps", "overflows"
"""Keys among the state's totals: the scale, the steps since it last changed, and how often gradients overflowed."""

_FIRST_SCALE = 2.0**16
_SMALL_SCALE = 128.0
_GROWS_AFTER_STEPS = 2000


class Types(NamedTuple):
    """The dtypes of a `train.precision`: of matrix `products`, of weights that were ever `trained`, of those `frozen` so far."""

    products: torch.dtype
    trained: torch.dtype
    frozen: torch.dtype


TYPES = {  # by `train.precision`
    "fp32": Types(torch.float32, torch.float32, torch.float32),
    "bf16": Types(torch.bfloat16, torch.float32, torch.bfloat16),
    "fp16": Types(torch.float16, torch.float32, torch.float16),
    "pure_bf16": Types(torch.bfloat16, torch.bfloat16, torch.bfloat16),
}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context that computes matrix products in the dtype of `precision`; norms, softmax and losses stay in float32."""
    products = TYPES[precision].products
    return nullcontext() if products == torch.float32 else torch.autocast(device.type, dtype=products)


def caution(precision: str, device: torch.device) -> str | None:
    """Return a warning to log where `precision` is slow on this device (fp16 on a CPU), else None."""
    if precision == "fp16" and device.type == "cpu":
        return "train.precision fp16: a CPU multiplies float16 some hundred times slower than float32; use bf16 or fp32 here"
    return None


def set_precision(model: nn.Module, full: Collection[str], precision: str, device: torch.device | None = None) -> None:
    """Cast a model's parameters in place to the dtypes of `precision`, on `device`. Those named in `full` train or ever did.

    `device`: None: where each is. Buffers keep their dtype and place. Updates at a learning rate of 1e-5 vanish in bfloat16's 8 bits;
    frozen weights have no updates to lose.
    """
    types, parameters = types_of(model, full, precision), dict(model.named_parameters())
    held = hosted.names(model) if device is not None and device.type != "cpu" else ()
    for name, dtype in types.items():
        distributed.place(parameters[name], dtype, parameters[name].device if device is None or name in held else device)


def types_of(model: nn.Module, full: Collection[str], precision: str) -> dict[str, torch.dtype]:
    """Return the dtype of each floating-point parameter by name under `precision`. Those named in `full` train or ever did."""
    types, named = TYPES[precision], model.named_parameters()
    return {name: types.trained if name in full else types.frozen for name, value in named if value.is_floating_point()}


def count(parameter: nn.Parameter) -> int:
    """Return how many values a parameter holds; of one that bitsandbytes keeps in 4 bits, how many it stands for."""
    return math.prod(parameter.__dict__.get("quant_state", parameter).shape)


@dataclass
class Scaler:
    """Loss scaling for float16: the scale is halved when gradients overflow, and doubled after 2,000 steps without an overflow.

    It and its count are kept in `totals`, the counters that are saved and resumed with the run. With any other precision the scale is 1.
    A step whose gradients overflow is done again with half the scale: no batch is lost, and steps, schedule and averages count updates.
    """

    precision: str
    totals: dict[str, float]

    @property
    def scale(self) -> float:
        """Factor that the loss is multiplied with before backward, a power of two; 1 unless the precision is fp16."""
        return self.totals.get(SCALE, _FIRST_SCALE) if self.precision == "fp16" else 1.0

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the parameters' gradients by the scale, in place: exactly, as it is a power of two."""
        if self.scale != 1:
            torch._foreach_mul_([local(value.grad) for value in parameters if value.grad is not None], 1 / self.scale)

    def overflowed(self, loss: float, norm: float, ranks: Ranks) -> bool:
        """Return whether gradients overflowed on any rank, so that the step is done again; updates the scale. The same on every rank.

        `norm`: of the gradients. False as well where scaling is not to blame: the loss itself is not finite, or the scale is 1 already.
        """
        if self.precision != "fp16":
            return False
        if ranks.any(math.isfinite(loss) and not math.isfinite(norm)) and self.scale > 1:
            self.totals[SCALE] = self.scale / 2
            self.totals[GOOD_STEPS] = 0
            self.totals[OVERFLOWS] = self.totals.get(OVERFLOWS, 0) + 1
            return True
        self.totals[GOOD_STEPS] = self.totals.get(GOOD_STEPS, 0) + 1
        if self.totals[GOOD_STEPS] >= _GROWS_AFTER_STEPS:
            self.totals[SCALE] = self.scale * 2
            self.totals[GOOD_STEPS] = 0
        return False

    def end_step(self, first: float, *, sound: bool) -> None:
        """End a step that began with the scale `first`. Warns of a scale that has become small, or restores `first` without an update.

        `sound`: whether there was an update. A bad batch overflows at every scale, which says nothing of the batches that follow.
        """
        if self.scale < first and not sound:
            self.totals[SCALE] = first
        elif self.scale < min(first, _SMALL_SCALE):
            log.warning(f"the loss scale is down to {self.scale:g}: small gradients become 0 in float16; bf16 needs no scale")

    def figures(self) -> dict[str, float]:
        """Return {"loss_scale": the scale, "overflows": how often it was halved} for the log; {} for other precisions."""
        return {SCALE: self.scale, OVERFLOWS: self.totals.get(OVERFLOWS, 0)} if self.precision == "fp16" else {}
