"""What the optimizer of a stage will keep of each parameter, before there is one: for plans, strategies and checkpoints."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from plait.config.schema import Optim, RunConfig
from plait.config.sections.muon import Muon
from plait.engine import optim
from plait.engine.optimizers import eight_bit, muon
from plait.engine.parallel.distributed import StoredTensor
from plait.engine.parallel.memory_estimate import Storage
from plait.engine.precision import TYPES

_DTYPE = {1: "U8", 2: "BF16", 4: "F32"}


def kinds(trained: optim.Trained, settings: Optim, blocks: Iterable[nn.Module]) -> dict[str, tuple[str, ...]]:
    """Return the names of the tensors that are kept of each parameter: {parameter: ("exp_avg", "exp_avg_sq", "step")}, or Muon's.

    `trained`: {component: {name: parameter}}; `blocks`: the model's repeated layers.
    """
    names = [name for part in trained.values() for name in part]
    if settings.name == "adamw8bit":
        large = {name for part in trained.values() for name, value in part.items() if eight_bit.is_large(value)}
        return {name: eight_bit.MOMENTS if name in large else optim.MOMENTS for name in names}
    if settings.name != "muon":
        return dict.fromkeys(names, optim.MOMENTS)
    decaying = {part: {name: value for name, value in named.items() if optim.decays(name, value)} for part, named in trained.items()}
    chosen = muon.matrices(decaying, settings, blocks)
    return {name: (muon.MOMENT,) if name in chosen else optim.MOMENTS for name in names}


def misfits(saved: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Return the parameters whose saved moments, {"PARAMETER.exp_avg": tensor}, are not those `wanted`, which is `kinds`."""
    there = {name.rpartition(".")[0] for name in saved}
    return {name for name in there & wanted.keys() if any(f"{name}.{kind}" not in saved for kind in wanted[name])}


class Orthogonalised(NamedTuple):
    """What Muon updates in each step: so many `matrices` of so many `values` together, with so many `flops` (docs/configuration.md)."""

    matrices: int
    values: int
    flops: int


def orthogonalised(trained: optim.Trained, settings: Optim, blocks: Iterable[nn.Module]) -> Orthogonalised | None:
    """Return what Muon orthogonalises in a step of a stage; None for another optimizer. See `kinds`."""
    if settings.name != "muon":
        return None
    names = {name for name, tensors in kinds(trained, settings, blocks).items() if tensors == (muon.MOMENT,)}
    chosen = [value for part in trained.values() for name, value in part.items() if name in names]
    steps = (settings.muon or Muon()).ns_steps
    return Orthogonalised(len(chosen), sum(value.numel() for value in chosen), sum(muon.flops(value.shape, steps) for value in chosen))


class Form(NamedTuple):
    """A tensor in a checkpoint: the name that safetensors gives its dtype, its shape, and its bytes."""

    dtype: str
    shape: list[int]
    size: int


def form_of(kind: str, parameter: nn.Parameter, itemsize: int) -> Form:
    """Return the form of what is kept of a parameter under the name `kind`, as "exp_avg". `itemsize`: bytes of a value of a moment."""
    values = parameter.numel()
    if kind == "step":
        return Form("F32", [], 4)
    if kind in eight_bit.SCALES:
        return Form("F32", [values // eight_bit.BLOCK], values // eight_bit.BLOCK * 4)
    size = 1 if kind in eight_bit.MOMENTS else itemsize
    return Form(_DTYPE[size], list(parameter.shape), values * size)


def storage(config: RunConfig, trained: optim.Trained, blocks: Iterable[nn.Module]) -> Storage:
    """Return the bytes of each value of a stage with settings `config`, of which `trained` trains; see `kinds`."""
    itemsize = TYPES[config.train.precision].trained.itemsize
    parameters = {name: value for part in trained.values() for name, value in part.items()}
    tensors = {(name, kind) for name, kept in kinds(trained, config.optim, blocks).items() for kind in kept if kind != "step"}
    size = sum(form_of(kind, parameters[name], itemsize).size for name, kind in tensors)
    moments = size / max(1, sum(value.numel() for value in parameters.values()))
    hook = config.distributed.ddp_comm_hook
    stored = Storage.of(config.train.precision, config.optim.average_count, comm_hook=hook, moments=moments)
    return replace(stored, whole=config.optim.name == "adamw8bit", offloaded=config.optim.offload)
