"""AdamW groups by component, clipping, and moments by parameter name.

A component is a named part of the model, such as its vision encoder: {component: {parameter name: parameter}}. torch keys optimizer state
by position, which mixes up moments when the set of trained parameters changes; here they go by name. A stage is a part of a run.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from plait.config.schema import Component, Optim
from plait.config.sections.adapters import component_of
from plait.engine.adamw import ChunkedAdamW, Noise
from plait.engine.optimizers import choice
from plait.engine.optimizers.fused_adamw import FusedAdamW
from plait.engine.parallel.distributed import StoredTensor, full_tensor, local, norms_of_all, reshard_like
from plait.engine.schedule import Progress, factor, warmup_of
from plait.errors import PlaitError
from plait.keys import key

Trained = Mapping[str, Mapping[str, nn.Parameter]]
"""What trains, or of what to choose that: {component: {parameter name: parameter}}."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state per parameter: two moments of the parameter's shape and a count of its own updates."""
_MULTIPLIED = ("weight", "proj", "kernel", "matrix")
"""Words in the last part of a name that tell a matrix or filter, which is multiplied, from a learned vector or a table of those."""
_OVERRIDABLE = ("lr", "weight_decay", "betas", "eps")
"""Settings of AdamW that `optim.components` can override for a component."""


def select(components: Trained, trainable: Iterable[str], never: frozenset[str]) -> dict[str, dict[str, nn.Parameter]]:
    """Choose what trains: return those parameters of `components` that `trainable` names, in the same form.

    `trainable` holds component names, `component:part` for those of its parameters whose name contains `part`, or `*` for everything but
    `never`, the components that cannot train. Raises PlaitError for a name that selects nothing, listing the components.
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
            matching = {key: value for key, value in components[name].items() if part in key}
            if not matching and component != "*":
                raise PlaitError(f"trainable names {item!r}, but no parameter of {component!r} has {part!r} in its name")
            chosen.setdefault(name, {}).update(matching)
    return {name: chosen[name] for name in components if chosen.get(name)}


def check_components(optim: Optim, components: Trained, never: frozenset[str]) -> None:
    """Check the names in `optim.components`. Raises PlaitError for one that is no component, or of `never`, which cannot train."""
    for name in optim.components:
        if name not in components or name in never:
            what = "is never trained" if name in never else "is no component of this model"
            known = ", ".join(part for part in components if part not in never)
            raise PlaitError(f"optim.components names {name!r}, which {what}; components: {known}")


def check_optimizer(optim: Optim, trained: Trained, blocks: Sequence[nn.Module]) -> None:
    """Raise PlaitError where the optimizer of what a stage trains cannot be made. `blocks`: the model's layers."""
    if optim.name != "adamw":
        choice.check({part: {name: p for name, p in named.items() if decays(name, p)} for part, named in trained.items()}, optim, blocks)


def freeze(model: nn.Module, trained: Trained) -> None:
    """Set `requires_grad` on exactly the parameters in `trained` (by component and name), and freeze all others."""
    wanted = {id(parameter) for part in trained.values() for parameter in part.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)


def build(trained: Trained, optim: Optim, noise: Noise | None = None, blocks: Sequence[nn.Module] = ()) -> torch.optim.Optimizer:
    """Build fused AdamW with two groups per component: parameters that decay (matrices and filters), and those that do not.

    What `optim.components` sets for a component (lr, weight_decay, betas, eps, warm-up) replaces the common value. Weights in bfloat16,
    whose random rounding `noise` seeds (None: alike in all steps), or moments on the host get `ChunkedAdamW`, others torch's AdamW, which
    rounds nothing. Another `optim.name`: what `optimizers/choice.py` makes of the groups; `blocks` are the model's layers.
    """
    groups, common = [], optim.model_dump(include=set(_OVERRIDABLE))
    for component, parameters in trained.items():
        overrides = optim.components.get(component, Component()).model_dump()
        chosen = {name: value if overrides[name] is None else overrides[name] for name, value in common.items()}
        chosen["warmup"] = warmup_of(optim, component)
        for decaying in (True, False):
            named = {name: value for name, value in parameters.items() if decays(name, value) == decaying}
            if named:
                settings = {**chosen, "peak": chosen["lr"], "weight_decay": chosen["weight_decay"] if decaying else 0.0}
                settings |= {"moments_device": torch.device("cpu") if optim.offload else None}
                settings |= {"moments_dtype": next(iter(named.values())).dtype, "moments": MOMENTS, "decays": decaying}
                groups.append({"params": list(named.values()), "names": list(named), "component": component, **settings})
    if optim.name != "adamw":
        return choice.make(groups, optim, blocks)
    if optim.offload or any(group["moments_dtype"] != torch.float32 for group in groups):
        return ChunkedAdamW(groups, noise or _unseeded)
    return FusedAdamW(groups)


def decays(name: str, parameter: Tensor) -> bool:
    """Return whether weight decay applies to the parameter: to matrices and filters, never to gains, biases and learned vectors.

    Gains may have the shape (C, 1, 1). Learned vectors (brackets, registers, positions) are known by the last part of `name`: it has none
    of `weight`, `proj`, `kernel` and `matrix`. Decay would pull what the model has learned to read towards zero.
    """
    is_gain = parameter.ndim < 2 or (parameter.ndim > 2 and sum(size > 1 for size in parameter.shape) < 2)
    return not is_gain and any(word in name.rpartition(".")[2] for word in _MULTIPLIED)


def _unseeded(name: str, chunk: int) -> int:
    return key("rounding", name, chunk)


def set_lr(optimizer: torch.optim.Optimizer, optim: Optim, progress: Progress) -> dict[str, float]:
    """Set each group's learning rate for the update at `progress`, its peak times the schedule's factor; returns it by component."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor(optim, progress, group["warmup"])
    return {group.get("rate", group["component"]): group["lr"] for group in optimizer.param_groups}


def by_component(optimizer: torch.optim.Optimizer) -> dict[str, list[nn.Parameter]]:
    """Return the optimizer's parameters as {component: parameters}, for `measure`."""
    components: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        components.setdefault(group["component"], []).extend(group["params"])
    return components


def measure(
    components: Mapping[str, Sequence[nn.Parameter]], limit: float | None, own_limits: Mapping[str, float]
) -> tuple[dict[str, Tensor], Callable[[Mapping[str, float]], None]]:
    """Return gradients' norms, and a function that clips: it scales gradients in place by min(1, limit / (norm + 1e-6)).

    A component in `own_limits` is clipped by its own norm, the others by the norm of all of them together. A limit of None only measures.
    Returns the norm of everything (`grad_norm`) and, of several components, each one's (`grad_norm/COMPONENT`). The function is given them
    once the host has read them, and multiplies nothing below the limit. For one component bit-equal to `nn.utils.clip_grad_norm_`.
    """
    gradients = {name: [local(value.grad) for value in part if value.grad is not None] for name, part in components.items()}
    every = [gradient for part in gradients.values() for gradient in part]
    if not every:
        return {"grad_norm": torch.zeros(())}, lambda _: None
    tensor_norms = torch.stack(torch._foreach_norm(every, 2, torch.float32))
    several = len(components) > 1
    counts = [len(part) for part in gradients.values()]
    by_component = dict(zip(gradients, torch.split(tensor_norms, counts) if several else [tensor_norms], strict=True))
    common = [name for name in gradients if name not in own_limits]
    some_apart = 0 < len(common) < len(components)
    norms_to_join = [tensor_norms]
    if some_apart:
        norms_to_join.append(torch.cat([by_component[name] for name in common]))
    if several:
        norms_to_join.extend(by_component.values())
    total_norm, *others = norms_of_all([torch.linalg.vector_norm(norms) for norms in norms_to_join], next(iter(components.values()))[0])
    norms = dict(zip(by_component, others[some_apart:] or [total_norm], strict=True))
    limits = [(value, [name], norms[name]) for name, value in own_limits.items() if name in gradients]
    if limit is not None:
        limits.append((limit, common, others[0] if some_apart else total_norm))

    def clip(read: Mapping[str, float]) -> None:
        for most, names, norm in limits:
            about = math.hypot(*(read.get(f"grad_norm/{name}", read["grad_norm"]) for name in names))
            if not about < 0.999 * most:
                torch._foreach_mul_([value for name in names for value in gradients[name]], (most / (norm + 1e-6)).clamp(max=1.0))

    return {"grad_norm": total_norm, **({f"grad_norm/{name}": norm for name, norm in norms.items()} if several else {})}, clip


def drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Set all gradients to None, as `optimizer.zero_grad` does, but without its profiler's record."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def drop_idle(optimizer: torch.optim.Optimizer, components: Iterable[str], norms: Mapping[str, float]) -> None:
    """Set to None the gradients of each of `components`, or its adapters, whose norm is exactly 0. Weights and moments then stay.

    Where no sample of a step has input for a component, its gradient is zeros, with which AdamW would still decay its weights and move them
    by old moments. `norms`: {"grad_norm": ..., "grad_norm/COMPONENT": ...}, as `measure` returns them.
    """
    for group in optimizer.param_groups:
        named = component_of(group["component"]) in components
        for parameter in group["params"] if named and norms.get(f"grad_norm/{group['component']}", norms["grad_norm"]) == 0 else ():
            parameter.grad = None


def named_groups(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Return the optimizer's parameters, those that train now, as {full name: parameter}."""
    parameters: dict[str, nn.Parameter] = {}
    for group in optimizer.param_groups:
        parameters.update(zip(group["names"], group["params"], strict=True))
    return parameters


def assert_covers(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Assert that the groups hold each trainable parameter once and no other; a missing one would never be updated."""
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    wanted = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped)), "a parameter is in two optimizer groups"
    assert set(grouped) == wanted, "optimizer groups and trainable parameters differ"


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as {"PARAMETER.exp_avg": tensor, ...}; none of a parameter that never had a gradient."""
    states = {name: optimizer.state.get(parameter, {}) for name, parameter in named_groups(optimizer).items()}
    return {f"{name}.{kind}": value for name, state in states.items() for kind, value in state.items()}


def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, StoredTensor]) -> list[str]:
    """Set moments from `saved`, {"PARAMETER.exp_avg": tensor}; return names of parameters without. Raises PlaitError for other shapes."""
    missing = []
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if any(f"{name}.{kind}" not in saved for kind in group["moments"]):
                missing.append(name)
                continue
            state, device = {}, group["moments_device"] or parameter.device
            for kind in group["moments"]:
                value = saved[f"{name}.{kind}"]
                if kind not in choice.OF_OWN_FORM and value.shape != parameter.shape:
                    raise PlaitError(f"saved moment {name}.{kind} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}")
                moment = full_tensor(value) if kind in choice.OF_OWN_FORM else reshard_like(value, parameter)
                state[kind] = moment.to(device, torch.float32 if kind in choice.OF_OWN_FORM else group["moments_dtype"], copy=True)
            optimizer.state[parameter] = state
    if lost := [name for name in missing if any(f"{name}.{kind}" in saved for kind in choice.KINDS)]:
        choice.tell_dropped(lost)
    return missing
