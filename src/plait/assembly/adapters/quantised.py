"""Frozen weights below adapters in 4 bits (QLoRA: Dettmers et al. 2023, arXiv 2305.14314), by the layers of the library bitsandbytes.

A weight is cut into blocks of 64 values, each with its scale; the scales are quantised in turn. Products are computed from values that are
made again from that, in the forward and in the backward pass, in the dtype that they would have without it.
"""

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from plait.errors import PlaitError


def _bitsandbytes() -> ModuleType:
    """Import bitsandbytes. Raises PlaitError where it cannot be imported."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise PlaitError(f"adapters with quantize need bitsandbytes ({error}): pip install 'plait[qlora]'") from error
    found: ModuleType = bitsandbytes
    return found


@torch.no_grad()
def quantise(layer: nn.Linear, kind: str) -> nn.Module:
    """Return a linear layer with the frozen weights of `layer` in 4 bits, and its bias. `kind`: nf4 or fp4.

    Weights are quantised on the CPU, so that a run that continues on another device has the same. Raises PlaitError without bitsandbytes.
    """
    bnb = _bitsandbytes()
    bias = layer.bias is not None
    with torch.device("meta"):
        made = _class(bnb)(layer.in_features, layer.out_features, bias=bias, quant_type=kind)
    device, weight = layer.weight.device, layer.weight.detach().cpu().float().contiguous()
    made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type=kind).to("cpu").to(device)
    if bias:
        made.bias = layer.bias
    quantised: nn.Module = made
    return quantised


@torch.no_grad()
def restored(layer: Any) -> nn.Linear:
    """Return a linear layer of float32 weights, which are those that `layer`, of `quantise`, computes with."""
    weight = layer.weight
    values = _bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state).float()
    with torch.device("meta"):
        made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.weight = nn.Parameter(values.view(layer.out_features, layer.in_features), requires_grad=False)
    if layer.bias is not None:
        made.bias = layer.bias
    return made


@functools.cache
def _class(bnb: ModuleType) -> Any:
    class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc,name-defined]  # of a library that is not always there
        """bitsandbytes' layer, whose products have the dtype of `nn.Linear` under autocast and are counted as its FLOPs."""

        def forward(self, x: Tensor) -> Tensor:
            """Return W x + b, (..., out) of (..., in)."""
            kind = x.device.type
            product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            out: Tensor = linear(x.to(product), self.weight, None if self.bias is None else self.bias.to(product))
            return out

    return Linear4bit


def linear(x: Tensor, weight: Any, bias: Tensor | None) -> Any:
    """Return W x + b for a weight in 4 bits. A FLOP counter sees a product of the name and shapes of `torch.nn.functional.linear`."""
    if has_torch_function((x,)):
        return handle_torch_function(linear, (x,), x, weight, bias)
    return _bitsandbytes().matmul_4bit(x, weight.data, quant_state=weight.quant_state, bias=bias)
