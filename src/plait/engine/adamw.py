"""An AdamW that updates parameters chunk by chunk in float32, for bfloat16 weights and moments, and for moments kept in host memory.

A chunk is CHUNK consecutive values of a flattened, unsharded parameter. The arithmetic is torch's fused AdamW (Loshchilov & Hutter 2019,
arXiv 1711.05101). Results go back to bfloat16 by stochastic rounding (Zamirai et al. 2020, arXiv
2010.06192), seeded per chunk: the same on any ranks, and after a resume. Without it most updates of bfloat16 weights are lost.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from plait.engine.parallel.distributed import local, local_row_range

_DROPPED_BITS = 16  # float32 has 23 bits of fraction, bfloat16 7
CHUNK = 1 << 22
"""Values per chunk: 4 M need 64 MB in float32 with gradient and moments, and as much for their noise."""

Noise = Callable[[str, int], int]
"""Maps (parameter name, chunk number from 0) to the integer seed of the noise that rounds the chunk in this step."""


class ChunkedAdamW(torch.optim.Optimizer):
    """AdamW for bfloat16 weights, or moments in bfloat16 or on the host: computes in float32, some values (a chunk) at a time.

    Groups need all of the keys `params`, `names` (of `params`), `lr`, `betas`, `eps`, `weight_decay`, `moments_device` (None: the
    parameter's) and `moments_dtype`: none has a default. Results in bfloat16 are rounded up or down at random, so that small updates count;
    `noise(name, chunk)`: the integer seed of that, for chunk number `chunk` of the parameter `name` in this step.
    """

    def __init__(self, groups: list[dict[str, Any]], noise: Noise) -> None:
        super().__init__(groups, {})
        self.noise = noise

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: the loop has run backward already
        """Apply one AdamW update in place to every parameter that has a gradient (`.grad`, not scaled); `closure` is not used."""
        for group in self.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if parameter.grad is not None:
                    self._update(group, name, parameter)

    def _update(self, group: dict[str, Any], name: str, parameter: nn.Parameter) -> None:
        state = self.state[parameter]
        if not state:
            state.update(initial_moments(group, parameter))
        assert parameter.grad is not None
        stored = [local(value).view(-1) for value in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"])]
        gradient = local(parameter.grad).reshape(-1)
        for chunk, here, within in chunks(parameter):
            working = [value[here].to(stored[1].device, torch.float32) for value in (*stored, gradient)]
            self._advance(group, working, state["step"].clone())
            stochastic = any(value.dtype == torch.bfloat16 for value in stored)
            bits = self._random_bits(name, chunk, parameter.numel(), stored[1].device)[within] if stochastic else None
            for i, (kept, value) in enumerate(zip(stored, working, strict=False)):
                if kept.dtype == torch.bfloat16:
                    assert bits is not None
                    kept[here] = round_stochastically(value, (bits >> 16 * i & 0xFFFF).to(torch.int32)).to(kept.device)
                elif kept.device != value.device:
                    kept[here] = value.to(kept.device)
        state["step"] += 1

    def _advance(self, group: dict[str, Any], working: list[Tensor], step: Tensor) -> None:
        """Apply AdamW in place to (weight, first moment, second moment, gradient), all float32 on one device."""
        weight, first, second, gradient = ([value] for value in working)
        beta1, beta2 = group["betas"]
        rates = {"lr": group["lr"], "weight_decay": group["weight_decay"], "eps": group["eps"]}
        adamw(weight, [*gradient], first, second, [], [step], fused=True, amsgrad=False, beta1=beta1, beta2=beta2, maximize=False, **rates)

    def _random_bits(self, name: str, chunk: int, values: int, device: torch.device) -> Tensor:
        """Draw 48 random bits for each value of a chunk: 16 each for the weight and its two moments.

        They are drawn for the whole chunk, whatever part of it this rank holds.
        """
        generator = torch.Generator(device).manual_seed(self.noise(name, chunk))
        return torch.randint(1 << 48, (min(CHUNK, values - chunk * CHUNK),), generator=generator, device=device)


def initial_moments(group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """Return AdamW's state of a new parameter: zeros `exp_avg`, `exp_avg_sq` (in the `moments_dtype` of its `group`) and `step`."""
    device = group["moments_device"] or parameter.device
    zeros = [torch.zeros_like(parameter, dtype=group["moments_dtype"], device=device) for _ in range(2)]
    return {"exp_avg": zeros[0], "exp_avg_sq": zeros[1], "step": torch.zeros((), device=device)}


def chunks(parameter: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Yield the chunks that overlap this rank's rows of a parameter, as (chunk number from 0, `here`, `within`).

    A chunk is CHUNK (4 M) consecutive values of the flattened, unsharded parameter; random numbers for rounding are drawn for all of it.
    `here` slices this rank's flattened values; `within` is the same range counted from the chunk's start, to take its part of them.
    """
    first = 0
    if isinstance(parameter, DTensor):
        first = local_row_range(parameter.shape[0], parameter.device_mesh)[0] * (parameter.numel() // max(1, parameter.shape[0]))
    start, end = first, first + local(parameter).numel()
    while start < end:
        chunk = start // CHUNK
        stop = min((chunk + 1) * CHUNK, end)
        yield chunk, slice(start - first, stop - first), slice(start - chunk * CHUNK, stop - chunk * CHUNK)
        start = stop


def round_stochastically(values: Tensor, noise: Tensor) -> Tensor:
    """Round float32 to bfloat16, up or down with probabilities that make the mean exact.

    `noise`: int32 of the same shape, uniform on [0, 65536).
    Neighbours in bfloat16 are 65,536 float32 apart, so adding noise to the bits carries with probability (x - below) / (above - below).
    """
    bits = values.view(torch.int32) + noise
    return (bits >> _DROPPED_BITS << _DROPPED_BITS).view(torch.float32).to(torch.bfloat16)
