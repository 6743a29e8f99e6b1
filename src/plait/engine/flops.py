"""Floating point operations of a training step, and what a device does at most: together, how well it is used (MFU).

Counted are products of matrices, convolutions and attention, 2 per multiplication and addition. A product costs once in the forward pass
and once more in the backward pass for each factor that wants a gradient: none for a frozen weight, none for what lies below the lowest
trainable one. What activation checkpointing computes again is not counted: Chowdhery et al. 2022 (arXiv 2204.02311, appendix B).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from plait.engine.precision import TYPES

# Dense, without sparsity: half of what data sheets print with it. Products in bfloat16 (float16 alike) and in float32 without TF32.
_A100 = {torch.bfloat16: 312e12, torch.float32: 19.5e12}  # NVIDIA A100 data sheet, 2021
_H100 = {torch.bfloat16: 989e12, torch.float32: 67e12}  # NVIDIA H100 data sheet, SXM column, 2023
_H100_PCIE = {torch.bfloat16: 756e12, torch.float32: 51e12}  # NVIDIA H100 data sheet, PCIe column, 2022
_L40S = {torch.bfloat16: 362e12, torch.float32: 91.6e12}  # NVIDIA L40S data sheet, 2023
_RTX_4090 = {torch.bfloat16: 165.2e12, torch.float32: 82.6e12}  # NVIDIA Ada architecture white paper, table 2: with float32 sums
PEAKS: Mapping[str, Mapping[torch.dtype, float]] = {
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA H200": _H100,  # the same chip with other memory
    "NVIDIA L40S": _L40S,
    "NVIDIA GeForce RTX 4090": _RTX_4090,
}
"""FLOP/s by torch.cuda.get_device_name and the type that products are taken in."""


def peak(device_name: str, products: torch.dtype) -> float | None:
    """FLOP/s of a device at most, or None where the table does not know: float16 runs as fast as bfloat16 on all of it."""
    return PEAKS.get(device_name, {}).get(torch.bfloat16 if products == torch.float16 else products)


def _wanted(*factors: Tensor) -> int:
    """How many of the factors get a gradient."""
    return sum(value.requires_grad for value in factors) if torch.is_grad_enabled() else 0


def _matrices(out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> float:
    return 2.0 * out.numel() * a.shape[-1] * (1 + _wanted(a, b))


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> float:
    return 2.0 * out.numel() * weight[0].numel() * (1 + _wanted(x, weight))


def _attention(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> float:
    """Scores from queries and keys, then their sums of values; masked positions count, as in dense products."""
    pairs = 2.0 * query[..., 0].numel() * key.shape[-2]
    scores = _wanted(query, key)
    return pairs * (query.shape[-1] * (1 + scores) + value.shape[-1] * (1 + (scores > 0) + _wanted(value)))


def _supervised(_: Tensor, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, **__: Any) -> Tensor:
    """Logits of the positions with a target; `plait.nn.losses` takes no others, and keeps none for the backward pass."""
    return (target_N >= 0).sum(dtype=torch.float64) * (2.0 * head_VD.numel() * (1 + _wanted(hidden_ND, head_VD)))


_RULES: dict[str, Callable[..., float | Tensor]] = {
    **dict.fromkeys(("linear", "matmul", "__matmul__", "mm", "bmm", "grouped_mm", "_grouped_mm"), _matrices),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "scaled_dot_product_attention": _attention,
    "token_cross_entropy": _supervised,
}
"""By the name of a torch function, or of one that asks to be treated as such."""


class Flops(TorchFunctionMode):
    """Counts over the forward passes inside the block, each with the backward pass that it calls for."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[float | Tensor] = []

    @property
    def total(self) -> float:
        """FLOPs so far. Waits for the device, where some were counted there."""
        self._found = [sum((float(some) for some in self._found), 0.0)]
        return float(self._found[0])

    def __torch_function__(self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the function; the functions that it is made of are not seen again."""
        out = func(*args, **(kwargs or {}))
        rule = _RULES.get(func.__name__)
        if rule is not None:
            self._found.append(rule(out, *args, **(kwargs or {})))
        return out

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What runs inside the block is not counted, and cannot tell that anything is."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


class Meter:
    """FLOPs of a stage's steps on this rank, and what they come to per second. A micro-batch is counted when its shapes are new.

    Others of these shapes count the same, though they may have more supervised tokens or fewer, which is the share of the logits.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.peak = peak(name, TYPES[precision].products)
        self.counting: Flops | None = None
        """The count in progress, if there is one."""
        self._known: dict[tuple[Any, ...], Flops] = {}
        self._step: list[Flops] = []

    @contextlib.contextmanager
    def forward(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Around the forward pass of one micro-batch."""
        shapes = tuple((name, value.shape) for name, value in batch.items() if isinstance(value, Tensor))
        if shapes in self._known:
            yield
        else:
            try:
                with Flops() as self.counting:
                    yield
                self._known[shapes] = self.counting
            finally:
                self.counting = None
        self._step.append(self._known[shapes])

    def take(self) -> float:
        """FLOPs since this was last asked; where new shapes came, this waits for the device."""
        done, self._step = sum(some.total for some in self._step), []
        return done

    def rates(self, flops: float, seconds: float, ranks: int) -> dict[str, float]:
        """TFLOP/s of each device from what all did; with its share of the peak (MFU), where that is known."""
        each = flops / seconds / ranks
        return {"tflop_per_s": each / 1e12, **({"mfu": each / self.peak} if self.peak else {})}
