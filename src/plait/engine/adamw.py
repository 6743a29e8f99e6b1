"""AdamW piece by piece, each in float32 for a moment: for weights and moments kept in bfloat16, and for moments kept on the host.

The arithmetic is torch's own fused AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101). What is written back to bfloat16 is rounded by
chance, from a key of (seed, step, parameter, piece): the same on any ranks, and after a resume.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from plait.engine.parallel.distributed import local, local_row_range
from plait.engine.precision import rounded

PIECE = 1 << 22
"""Values at a time: 4 M need 64 MB in float32 with gradient and moments, and as much for their noise."""

Noise = Callable[[str, int], int]
"""(parameter, piece) to the seed of a piece's noise."""


class PieceAdamW(torch.optim.Optimizer):
    """AdamW whose groups say where moments live: `home` (None: beside the weight) and `kept` (their type)."""

    def __init__(self, groups: list[dict[str, Any]], noise: Noise):
        super().__init__(groups, {})
        self.noise = noise

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if parameter.grad is not None:
                    self._update(group, name, parameter)

    def _update(self, group: dict[str, Any], name: str, parameter: nn.Parameter) -> None:
        state = self.state[parameter]
        if not state:
            state.update(fresh(group, parameter))
        assert parameter.grad is not None
        kept = [local(value).view(-1) for value in (parameter.detach(), state["exp_avg"], state["exp_avg_sq"])]
        gradient = local(parameter.grad).reshape(-1)
        for piece, rows, within in pieces(parameter):
            working = [value[rows].to(kept[1].device, torch.float32) for value in (*kept, gradient)]
            self._advance(group, working, state["step"].clone())
            chance = any(value.dtype == torch.bfloat16 for value in kept)
            draws = self._draws(name, piece, parameter.numel(), working[0].device)[within] if chance else working[0]
            for i, (whole, value) in enumerate(zip(kept, working, strict=False)):
                if whole.dtype == torch.bfloat16:
                    whole[rows] = rounded(value, (draws >> 16 * i & 0xFFFF).to(torch.int32)).to(whole.device)
                elif whole.device != value.device:
                    whole[rows] = value.to(whole.device)
        state["step"] += 1

    def _advance(self, group: dict[str, Any], working: list[Tensor], step: Tensor) -> None:
        weight, first, second, gradient = ([value] for value in working)
        beta1, beta2 = group["betas"]
        rates = {"lr": group["lr"], "weight_decay": group["weight_decay"], "eps": group["eps"]}
        adamw(weight, [*gradient], first, second, [], [step], fused=True, amsgrad=False, beta1=beta1, beta2=beta2, maximize=False, **rates)

    def _draws(self, name: str, piece: int, values: int, device: torch.device) -> Tensor:
        """48 random bits for each value of a piece: 16 each for the weight and its two moments. The whole piece, whoever holds a part."""
        generator = torch.Generator(device).manual_seed(self.noise(name, piece))
        return torch.randint(1 << 48, (min(PIECE, values - piece * PIECE),), generator=generator, device=device)


def fresh(group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """The moments of a parameter before its first update, where and as its group keeps them."""
    place = {"dtype": group["kept"], "device": group["home"] or parameter.device}
    found = {kind: torch.zeros_like(parameter, **place, requires_grad=False) for kind in ("exp_avg", "exp_avg_sq")}
    return found | {"step": torch.zeros((), device=place["device"])}


def pieces(parameter: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """The pieces of a parameter that this rank holds values of: the number, where they are here, and where within the piece."""
    start = 0
    if isinstance(parameter, DTensor):
        start = local_row_range(parameter.shape[0], parameter.device_mesh)[0] * (parameter.numel() // max(1, parameter.shape[0]))
    at, end = start, start + local(parameter).numel()
    while at < end:
        piece = at // PIECE
        stop = min((piece + 1) * PIECE, end)
        yield piece, slice(at - start, stop - start), slice(at - piece * PIECE, stop - piece * PIECE)
        at = stop
