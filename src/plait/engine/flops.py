"""Floating point operations of a training step, and the peak rate of a device: together, its utilisation (MFU).

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
"""FLOP/s by `torch.cuda.get_device_name` and the dtype of matrix products."""


def peak(device_name: str, products: torch.dtype) -> float | None:
    """Return a device's peak FLOP/s for matrix products in dtype `products` (float16 as bfloat16), or None where PEAKS does not list it."""
    return PEAKS.get(device_name, {}).get(torch.bfloat16 if products == torch.float16 else products)


def _gradients(*factors: Tensor) -> int:
    """Count the factors that get a gradient."""
    return sum(value.requires_grad for value in factors) if torch.is_grad_enabled() else 0


def _matrices(out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> float:
    return 2.0 * out.numel() * a.shape[-1] * (1 + _gradients(a, b))


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> float:
    return 2.0 * out.numel() * weight[0].numel() * (1 + _gradients(x, weight))


def _attention(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, keys_seen: float | None = None, **___: Any) -> float:
    """Count the scores Q K^T and their product with V; masked positions count, as in dense products, but not those of other documents."""
    pairs = 2.0 * query.shape[:-1].numel() * (keys_seen or key.shape[-2])
    scores = _gradients(query, key)
    return pairs * (query.shape[-1] * (1 + scores) + value.shape[-1] * (1 + (scores > 0) + _gradients(value)))


def _supervised(_: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor | None = None, **named: Any) -> Any:
    """Count the logits of positions with a target, or a weight: `plait.nn` computes no others, and keeps none for the backward pass."""
    chosen_N, places_S = target_N >= 0 if weight_N is None else weight_N > 0, named.get("places_S")
    chosen = chosen_N.sum(dtype=torch.float64) if places_S is None else len(places_S)
    return chosen * (2.0 * head_VD.numel() * (1 + _gradients(hidden_ND, head_VD)))


_RULES: dict[str, Callable[..., float | Tensor]] = {
    **dict.fromkeys(("linear", "matmul", "__matmul__", "mm", "bmm", "grouped_mm", "_grouped_mm"), _matrices),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("scaled_dot_product_attention", "document_attention"), _attention),
    **dict.fromkeys(("token_cross_entropy", "weighted_cross_entropy"), _supervised),
}
"""FLOPs of a call, by the name of a torch function or of one that dispatches to `__torch_function__` itself."""
MOST_SHAPES = 1024  # whose FLOPs are remembered, the last used


class Flops(TorchFunctionMode):
    """Context manager: counts the FLOPs of the forward passes inside it, and of the backward pass that will follow each."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: list[float | Tensor] = []
        self.masked, self.calls = 0.0, 0  # FLOPs of attention with a mask that is a tensor; functions that returned a tensor

    @property
    def total(self) -> float:
        """FLOPs counted so far. Reading it for the first time waits for the device, where some counts are tensors on it."""
        self._counts = [sum((float(count) for count in self._counts), 0.0)]
        return float(self._counts[0])

    def add(self, total: float, masked: float, calls: int) -> None:
        """Count what is known of functions that do not run inside this context."""
        self._counts, self.masked, self.calls = [*self._counts, total], self.masked + masked, self.calls + calls

    def __torch_function__(self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the function and count it; the functions that it calls inside are not seen."""
        out = func(*args, **(kwargs or {}))
        self.calls += isinstance(out, Tensor)
        if (rule := _RULES.get(func.__name__)) is not None:
            self._counts.append(rule(out, *args, **(kwargs or {})))
            if rule is _attention and (args[3] if len(args) > 3 else (kwargs or {}).get("attn_mask")) is not None:
                self.masked += float(self._counts[-1])
        return out


class Meter:
    """Counts the FLOPs of a stage (part of a run) on this rank: of each batch's shapes once, when they first occur.

    `precision`: a `train.precision`, such as "bf16", at whose dtype the peak rate of `device` is known.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.peak = peak(name, TYPES[precision].products)
        self.counting: Flops | None = None
        """The count in progress; None outside of `forward` and where the shapes are known."""
        self.blind = False  # whether some FLOPs cannot be known; then none are told
        self._known: dict[tuple[Any, ...], Flops] = {}
        self._step, self.taken = list[Flops](), list[Flops]()

    def forward(self, batch: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Return a context that counts the forward pass inside it, with its backward pass. `batch`: tensors of its micro-batch by name."""
        shapes = tuple([(name, value.shape) for name, value in batch.items() if isinstance(value, Tensor)])
        if (count := self._known.pop(shapes, None)) is None:
            return self._first(shapes)
        self._step.append(self._known.setdefault(shapes, count))  # as the last used
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _first(self, shapes: tuple[Any, ...]) -> Iterator[None]:
        """Count the first pass with tensors of these shapes, which later ones repeat."""
        try:
            with Flops() as self.counting:
                yield
            self._known[shapes] = self.counting
        finally:
            self.counting = None
        self._step.append(self._known[shapes])
        if len(self._known) > MOST_SHAPES:
            del self._known[next(iter(self._known))]

    def take(self) -> float:
        """Return the FLOPs counted since the last call; where new shapes came, this waits for the device."""
        self.taken, self._step = [] if self.blind else self._step, []
        return sum(count.total for count in self.taken)

    def rates(self, flops: float, seconds: float, ranks: int) -> dict[str, float]:
        """Return {"tflop_per_s": of one device, "mfu": fraction of its peak, if known}, for `flops` of all `ranks` in `seconds`."""
        per_device = flops / seconds / ranks
        return {"tflop_per_s": per_device / 1e12, **({"mfu": per_device / self.peak} if self.peak else {})}
