"""AdamW whose moments of large tensors are kept in 8 bits, block by block (Dettmers et al. 2022, arXiv 2110.02861), by torchao.

A value is a code of 8 bits, on a dynamic scale, times the largest magnitude of its block of BLOCK values; torchao computes in float32.
Tensors that are small, or no whole number of blocks, have torch's fused AdamW. In a checkpoint codes and scales are plain tensors.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from plait.config.schema import Optim
from plait.errors import PlaitError

BLOCK = 256
"""Values that share a scale, which is torchao's default."""
_SMALLEST = 4096
"""Values of the smallest tensor that is kept in 8 bits, as torchao and bitsandbytes have it."""
SCALES = ("exp_avg_scale", "exp_avg_sq_scale")
MOMENTS = ("exp_avg_codes", "exp_avg_scale", "exp_avg_sq_codes", "exp_avg_sq_scale", "step")
"""What is kept of such a parameter: codes (uint8, of its shape) and scales (float32, one a block) of two moments, and its updates."""


class AdamWInEightBits(torch.optim.Optimizer):
    """Updates groups whose `moments` are MOMENTS with torchao's AdamW8bit, and the others with torch's fused AdamW.

    `state` has plain tensors, which torchao's own kind of tensor is made of for it to update in place.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: Optim) -> None:
        super().__init__(groups, {})
        optimizer = torchao()
        self._large, small = ([group for group in self.param_groups if (group["moments"] == MOMENTS) == large] for large in (True, False))
        keys = ("params", "lr", "betas", "eps", "weight_decay")
        self._torchao = optimizer([{key: group[key] for key in keys} for group in self._large], block_size=BLOCK) if self._large else None
        self._adamw = torch.optim.AdamW(small, lr=settings.lr, fused=True) if small else None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: the loop has run backward already
        """Apply one update in place to every parameter that has a gradient; `closure` is not used."""
        if self._adamw is not None:
            self._adamw.state = self.state
            self._adamw.step()
        if self._torchao is None:
            return
        for group, theirs in zip(self._large, self._torchao.param_groups, strict=True):
            theirs["lr"].fill_(group["lr"])
            for parameter in group["params"]:
                if parameter.grad is not None and parameter not in self._torchao.state:
                    self._torchao.state[parameter] = _wrapped(self.state[parameter] or initial(parameter))
                    self.state[parameter] = _plain(self._torchao.state[parameter])
        with _uncompiled(self._large[0]["params"][0]):
            self._torchao.step()


def is_large(parameter: Tensor) -> bool:
    """Return whether the moments of a parameter are kept in 8 bits."""
    return parameter.numel() >= _SMALLEST and parameter.numel() % BLOCK == 0


def make(groups: Sequence[dict[str, Any]], settings: Optim) -> AdamWInEightBits:
    """Build the optimizer from AdamW's groups. Raises PlaitError without torchao, and for parameters that are sharded over ranks."""
    divided = []
    for group in groups:
        part = dict(zip(group["names"], group["params"], strict=True))
        if any(isinstance(value, DTensor) for value in part.values()):
            raise PlaitError("optim.name is adamw8bit, whose moments are whole on each rank: distributed.strategy=ddp, or optim.name=adamw")
        for large in (True, False):
            named = {name: value for name, value in part.items() if is_large(value) == large}
            own = {"moments": MOMENTS, "moments_dtype": torch.uint8} if large else {}
            if named:
                divided.append({**group, "params": list(named.values()), "names": list(named), **own})
    return AdamWInEightBits(divided, settings)


def initial(parameter: Tensor) -> dict[str, Tensor]:
    """Return the state of a new parameter: zeros."""
    codes = {f"{moment}_codes": torch.zeros_like(parameter, dtype=torch.uint8) for moment in ("exp_avg", "exp_avg_sq")}
    scales = {name: torch.zeros(parameter.numel() // BLOCK, device=parameter.device) for name in SCALES}
    return {**codes, **scales, "step": torch.zeros(())}


def _wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state as torchao has it, over the same memory."""
    from torchao.optim.subclass_8bit import OptimState8bit

    moments = {}
    for moment, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        codes, scale = state[f"{moment}_codes"], state[f"{moment}_scale"]
        scheme = OptimState8bit.zeros((BLOCK,), signed, BLOCK, codes.device)
        moments[moment] = OptimState8bit(codes, scale, scheme.qmap, signed, torch.float32)
    return {**moments, "step": state["step"].cpu()}


def _plain(state: dict[str, Any]) -> dict[str, Tensor]:
    """Return the state in plain tensors, which are those that torchao updates."""
    parts = {f"{name}_{part}": getattr(state[name], part) for name in ("exp_avg", "exp_avg_sq") for part in ("codes", "scale")}
    return {**parts, "step": state["step"]}


def _uncompiled(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Return a context in which nothing is compiled on a CPU, where that takes a compiler of C++ and longer than tiny models train."""
    return torch.compiler.set_stance("force_eager") if parameter.device.type == "cpu" else nullcontext()


def torchao() -> Callable[..., torch.optim.Optimizer]:
    """Import torchao's optimizer. Raises PlaitError where it cannot be imported."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise PlaitError(f"optim.name is adamw8bit, which needs torchao ({error}): pip install 'plait[torchao]'") from error
    chosen: Callable[..., torch.optim.Optimizer] = AdamW8bit
    return chosen
