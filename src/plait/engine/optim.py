"""AdamW groups by component, clipping, and moments by parameter name.

Native optimizer state is keyed by position, which puts one layer's moments on another when the set of trained parameters changes.
Here it never is.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from plait.config.schema import Component, Optim
from plait.engine.adamw import Noise, PieceAdamW
from plait.engine.parallel.distributed import StoredTensor, full_tensor, local, norm_of_all, reshard_like
from plait.engine.schedule import Moment, lr_factor, warmup_of
from plait.errors import PlaitError
from plait.keys import key

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state per parameter: two moments of the parameter's shape and a count of its own updates."""
_OWN = ("lr", "weight_decay", "betas", "eps")
"""Of AdamW, what a component may have its own of."""


def select(
    components: Mapping[str, Mapping[str, nn.Parameter]], trainable: Iterable[str], never: frozenset[str]
) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that train, per component.

    `trainable` holds component names, `component:part` for those of its parameters whose name contains `part`, or `*` for everything.
    Raises PlaitError for a name that selects nothing, listing the components.
    """
    chosen: dict[str, dict[str, nn.Parameter]] = {}
    usable = [name for name in components if name not in never]
    for item in trainable:
        component, _, part = item.partition(":")
        if component in never:
            raise PlaitError(f"trainable names {component!r}, which is never trained; components: {', '.join(usable)}")
        if component != "*" and component not in components:
            raise PlaitError(f"trainable names {component!r}, which is no component of this model; components: {', '.join(usable)}")
        for name in usable if component == "*" else [component]:
            found = {key: value for key, value in components[name].items() if part in key}
            if not found and component != "*":
                raise PlaitError(f"trainable names {item!r}, but no parameter of {component!r} has {part!r} in its name")
            chosen.setdefault(name, {}).update(found)
    return {name: chosen[name] for name in components if chosen.get(name)}


def check_components(optim: Optim, components: Mapping[str, Mapping[str, nn.Parameter]]) -> None:
    """Raise PlaitError when `optim.components` names what is no component of the model."""
    for name in optim.components:
        if name not in components:
            raise PlaitError(f"optim.components names {name!r}, which is no component of this model; components: {', '.join(components)}")


def freeze(model: nn.Module, trained: Mapping[str, Mapping[str, nn.Parameter]]) -> None:
    """Let gradients reach exactly the parameters in `trained`."""
    wanted = {id(parameter) for part in trained.values() for parameter in part.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)


def adamw(trained: Mapping[str, Mapping[str, nn.Parameter]], optim: Optim, noise: Noise | None = None) -> torch.optim.Optimizer:
    """Fused AdamW with two groups per component: matrices, which decay, and vectors, which do not.

    What `optim.components` sets for a component (lr, weight_decay, betas, eps, warm-up) takes the place of the common value. Piece by piece
    for weights in bfloat16, rounded with `noise`, and for moments on the host.
    """
    groups = []
    for component, parameters in trained.items():
        own = optim.components.get(component, Component())
        chosen = {name: getattr(optim if getattr(own, name) is None else own, name) for name in _OWN}
        chosen["warmup"] = warmup_of(optim, component)
        for matrices in (True, False):
            named = {name: value for name, value in parameters.items() if (value.ndim >= 2) == matrices}
            if named:
                settings = {**chosen, "peak": chosen["lr"], "weight_decay": chosen["weight_decay"] if matrices else 0.0}
                place = {"home": torch.device("cpu") if optim.offload else None, "kept": next(iter(named.values())).dtype}
                groups.append({"params": list(named.values()), "names": list(named), "component": component, **settings, **place})
    if optim.offload or any(group["kept"] != torch.float32 for group in groups):
        return PieceAdamW(groups, noise or _unseeded)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def _unseeded(name: str, piece: int) -> int:
    return key("rounding", name, piece)


def set_lr(optimizer: torch.optim.Optimizer, optim: Optim, at: Moment) -> dict[str, float]:
    """Give every group the learning rate of an update; returns it per component.

    `min_lr` is for `optim.lr`; a component with another peak falls by the same share of its own.
    """
    floor = optim.schedule.min_lr / optim.lr if optim.lr > 0 else 0.0
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * lr_factor(optim.schedule.name, at, group["warmup"], floor)
    return {group["component"]: group["lr"] for group in optimizer.param_groups}


def by_component(optimizer: torch.optim.Optimizer) -> dict[str, list[nn.Parameter]]:
    """The parameters the optimizer moves, per component."""
    found: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["component"], []).extend(group["params"])
    return found


@torch.no_grad()
def clip(parts: Mapping[str, Sequence[nn.Parameter]], limit: float | None, own: Mapping[str, float]) -> dict[str, Tensor]:
    """Scale gradients by min(1, limit / (norm + 1e-6)): a part with a limit of its `own` by its own norm, the others by theirs together.

    Returns the norm of everything before (`grad_norm`) and, of several parts, each one's (`grad_norm/PART`). A limit of None only
    measures. For one part `nn.utils.clip_grad_norm_` to the bit, without its sorting by device and type: these are float32 in one place.
    """
    found = {name: [value.grad for value in part if value.grad is not None] for name, part in parts.items()}
    every = [gradient for part in found.values() for gradient in part]
    if not every:
        return {"grad_norm": torch.zeros(())}
    gradients = {name: [local(value) for value in part] for name, part in found.items()}
    tensors = torch.stack(torch._foreach_norm([gradient for part in gradients.values() for gradient in part], 2, torch.float32))
    several = len(parts) > 1
    cut = tensors.split([len(part) for part in gradients.values()]) if several else [tensors]
    sections = dict(zip(gradients, cut, strict=True))
    together = [name for name in gradients if name not in own]
    apart = 0 < len(together) < len(parts)
    measured = [tensors]
    if apart:
        measured.append(torch.cat([sections[name] for name in together]))
    if several:
        measured.extend(sections.values())
    full_tensor, *others = norm_of_all(torch.stack([torch.linalg.vector_norm(part) for part in measured]), every[0])
    rest, each = (others[0] if apart else full_tensor), (others[apart:] or [full_tensor])
    norms = dict(zip(sections, each, strict=True))
    for name in own.keys() & gradients.keys():
        _scale(gradients[name], own[name], norms[name])
    if limit is not None:
        _scale([gradient for name in together for gradient in gradients[name]], limit, rest)
    return {"grad_norm": full_tensor, **({f"grad_norm/{name}": norm for name, norm in norms.items()} if len(norms) > 1 else {})}


def _scale(gradients: list[Tensor], limit: float, norm: Tensor) -> None:
    if gradients:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))


def named_groups(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Every parameter the optimizer moves, by name."""
    found: dict[str, nn.Parameter] = {}
    for group in optimizer.param_groups:
        found.update(zip(group["names"], group["params"], strict=True))
    return found


def assert_covers(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Each parameter with a gradient is in exactly one group, and no other is: else an unfrozen part would never move."""
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    wanted = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(held) == len(set(held)), "a parameter is in two optimizer groups"
    assert set(held) == wanted, "optimizer groups and trainable parameters differ"


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<exp_avg|exp_avg_sq|step>`; a parameter that never had a gradient has none."""
    found = {}
    for name, parameter in named_groups(optimizer).items():
        for kind in MOMENTS:
            if kind in optimizer.state.get(parameter, {}):
                found[f"{name}.{kind}"] = optimizer.state[parameter][kind]
    return found


def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, StoredTensor]) -> list[str]:
    """Put saved moments on the parameters of the same names; returns the parameters that have none yet.

    Raises PlaitError when a moment's shape is not its parameter's.
    """
    missing = []
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if f"{name}.step" not in saved:
                missing.append(name)
                continue
            state, home = {}, group["home"] or parameter.device
            for kind in MOMENTS:
                value = saved[f"{name}.{kind}"]
                if kind != "step" and value.shape != parameter.shape:
                    raise PlaitError(f"saved moment {name}.{kind} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
                laid = full_tensor(value) if kind == "step" else reshard_like(value, parameter)
                state[kind] = laid.to(home, torch.float32 if kind == "step" else group["kept"], copy=True)
            optimizer.state[parameter] = state
    return missing


def averages(settings: Optim) -> int:
    """How many averages of each trained weight are kept."""
    return 0 if settings.ema is None else 1 + 2 * settings.ema.post_hoc


class Ema:
    """An fp32 running average of the trained weights, updated once per optimizer step.

    decay_k = min(decay, (k + 1) / warmup_steps) for the k-th update of a stage (k from 0), so nothing but the averages is state.
    """

    def __init__(self, decay: float, warmup_steps: int):
        self.decay, self.warmup_steps = decay, warmup_steps
        self.average: dict[str, Tensor] = {}
        self._aside: dict[str, Tensor] = {}

    def track(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Start averages, from the present weights, for the parameters that have none."""
        for name, value in parameters.items():
            if name not in self.average:
                self.average[name] = value.detach().to(torch.float32, copy=True)

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], k: int) -> None:
        """average <- decay_k average + (1 - decay_k) weight."""
        averages = [local(self.average[name]) for name in parameters]
        share, values = 1 - self.decay_at(k), [local(value.detach()) for value in parameters.values()]
        if all(value.dtype == torch.float32 for value in values):
            torch._foreach_lerp_(averages, values, share)
            return
        for average, value in zip(averages, values, strict=True):  # one by one: no float32 copy of the whole model
            average.lerp_(value.float(), share)

    def decay_at(self, k: int) -> float:
        """The share of the average that its k-th update keeps."""
        return min(self.decay, (k + 1) / self.warmup_steps) if self.warmup_steps else self.decay

    def reshard_like(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Cut the averages over ranks as the parameters are cut now."""
        self.average = {name: reshard_like(value, parameters[name]) for name, value in self.average.items()}

    @torch.no_grad()
    def swap(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Exchange weights and averages in place; a second call restores both exactly."""
        for name, average in self.average.items():
            value = parameters[name]
            if value.dtype != average.dtype:  # to be kept in fewer bits is no loss for the weights, but would be for the averages
                rows = local(value.detach())
                kept = self._aside.pop(name, None)
                if kept is None:
                    self._aside[name], kept = rows.clone(), local(average)
                rows.copy_(kept)
                continue
            if isinstance(value, DTensor):  # what is gathered from lives in this memory
                rows, others = value.to_local(), local(average)
                kept = rows.clone()
                rows.copy_(others)
                others.copy_(kept)
                continue
            kept = value.data
            value.data = average.to(kept.dtype)
            self.average[name] = kept
