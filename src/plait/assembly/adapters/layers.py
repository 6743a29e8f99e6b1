"""Adapters in a model's linear layers: LoRA (Hu et al. 2021, arXiv 2106.09685) and its kin, by the library peft.

peft puts a layer of its own in a linear layer's place, which holds that one as `base_layer` and the matrices A and B. Names of parameters
are told here alone: those of the model stay as they were without adapters (`_keep_names`), as checkpoints and components know them;
those of adapters are LAYER.lora_A.default.weight, LAYER.lora_B.default.weight and, of DoRA, LAYER.lora_magnitude_vector.default.weight.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from plait.assembly.adapters import quantised
from plait.config.sections.adapters import AUTO, SUFFIX, Adapter
from plait.engine.parallel.distributed import full_tensor, local, reshard_like
from plait.errors import PlaitError
from plait.families.contract import Family
from plait.keys import key
from plait.nn.connectors import seeded

NAME = "default"
"""peft's name of the one adapter that a layer has."""
Names = Mapping[str, tuple[str, ...]]
"""Names by component (part of the model that trains or stays frozen as a whole)."""


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model. `components`: names of parameters by component, those of adapters as COMPONENT.lora.

    `layers`: {component: {name of a layer: peft's layer that stands there}}.
    """

    model: nn.Module
    settings: Mapping[str, Adapter]
    components: Names
    layers: Mapping[str, Mapping[str, Any]]

    @property
    def names(self) -> frozenset[str]:
        """Return the names of all adapters' parameters."""
        return frozenset(name for component in self.layers for name in self.components[component + SUFFIX])

    def begin(self, trained: Collection[str], training: Collection[str] = ()) -> list[str]:
        """Use the adapters of which a parameter is among `trained`, those ever trained so far, or `training`, those that train next.

        Others are left out of the forward pass: untrained, they add nothing to it. The lengths of DoRA that were never trained are those of
        the weights as they are now. Call this before parameters are frozen: peft has all adapters in use train. Returns a line for each
        component whose adapters train next.
        """
        lines = []
        for component, layers in self.layers.items():
            own = set(self.components[component + SUFFIX])
            used = not own.isdisjoint({*trained, *training})
            if not own.isdisjoint(training):
                lines.append(f"{component}{SUFFIX}: {described(self.settings[component], layers)}")
            for name, layer in layers.items():
                layer.enable_adapters(used)
                if used and NAME in layer.lora_magnitude_vector and f"{name}.lora_magnitude_vector.{NAME}.weight" not in trained:
                    _measure_lengths(layer)
        return lines

    def quantise(self) -> None:
        """Keep the weights of layers in 4 bits from now on where `quantize` says so, in place. Raises PlaitError without bitsandbytes."""
        for component, kind in ((name, adapter.quantize) for name, adapter in self.settings.items() if adapter.quantize is not None):
            for layer in self.layers[component].values():
                layer.base_layer = quantised.quantise(layer.get_base_layer(), kind)
                _keep_names(layer)

    def merge(self) -> dict[str, str]:
        """Add all adapters in use to the weights, in float32, and put the model's own layers back in their places.

        Returns {name of an adapter's parameter: name of the weight that it is in now}. Raises PlaitError for weights that are not finite.
        """
        moved = {}
        for component, layers in self.layers.items():
            for name, layer in layers.items():
                own = [parameter for parameter in self.components[component + SUFFIX] if parameter.startswith(f"{name}.lora_")]
                moved.update(dict.fromkeys(own, f"{name}.weight"))
                if not layer.get_base_layer().weight.is_floating_point():
                    layer.base_layer = quantised.restored(layer.get_base_layer())
                base = layer.get_base_layer()
                if not layer.disable_adapters:
                    base.weight.data = base.weight.data.float()
                    try:
                        layer.merge(safe_merge=True)
                    except ValueError as error:
                        raise PlaitError(f"the adapters of {name} cannot be merged: {error}") from error
                self.model.set_submodule(name, base)
        return moved


def add(family: Family, model: nn.Module, settings: Mapping[str, Adapter], seed: int) -> Adapters:
    """Add adapters to the model, in place, by `settings`, the section `adapters:`; return them. Their A is drawn from `seed`, their B is 0.

    Raises PlaitError for an unknown component, targets that hit nothing, a rank above all their sizes, and without peft.
    """
    components, never = {component: tuple(part) for component, part in family.components(model).items()}, family.never_trained
    blocks = family.blocks(model)
    for component in settings:
        if component not in components or component in never:
            why = "which is never trained" if component in never else "which is no component of this model"
            usable = ", ".join(name for name in components if name not in never)
            raise PlaitError(f"adapters names {component!r}, {why}; components: {usable}")
    chosen = {component: targets(model, component, components[component], blocks, adapter) for component, adapter in settings.items()}
    for component, adapter in settings.items():
        _check_rank(model, component, adapter.rank, chosen[component])
        seeded(0, lambda adapter=adapter, names=chosen[component]: _inject(model, adapter, names))  # type: ignore[misc]
    layers: dict[str, dict[str, Any]] = {
        component: {name: model.get_submodule(name) for name in names} for component, names in chosen.items()
    }
    for name, layer in ((name, layer) for part in layers.values() for name, layer in part.items()):
        assert NAME in layer.lora_A, f"peft has put no adapter at {name}"
        _keep_names(layer)
        if not layer.lora_A[NAME].weight.is_meta:
            seeded(key(seed, "adapters", name) >> 1, lambda layer=layer: layer.reset_lora_parameters(NAME, True))  # type: ignore[misc]
    known = {name for names in components.values() for name in names}
    added = [name for name, _ in model.named_parameters() if name not in known]
    owned = {
        component + SUFFIX: tuple(name for name in added if name.partition(".lora_")[0] in names) for component, names in chosen.items()
    }
    assert sum(map(len, owned.values())) == len(added), "a parameter of the model has another name with adapters"
    return Adapters(model, settings, {**components, **owned}, layers)


def _check_rank(model: nn.Module, component: str, rank: int, names: Sequence[str]) -> None:
    """Raise PlaitError for a rank above both sides of every layer: no product of matrices has one above the smaller side."""
    sides = [(layer.in_features, layer.out_features) for layer in map(model.get_submodule, names) if isinstance(layer, nn.Linear)]
    if rank > max(map(max, sides)):
        raise PlaitError(
            f"adapters.{component}.rank is {rank:,}, above both sides of all its layers, at most {max(map(max, sides)):,}: "
            f"no weight there has a rank above {max(map(min, sides)):,}"
        )


def described(adapter: Adapter, layers: Collection[str]) -> str:
    """Return a line of text on adapters: their kind, sizes, and how many layers of each name they are in."""
    counts = Counter(name.rpartition(".")[2] for name in layers)
    where = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{adapter.kind}, rank {adapter.rank}, alpha {adapter.alpha or adapter.rank:g}, in {len(layers)} layers: {where}"


def peft_config(adapter: Adapter, targets: str | list[str]) -> Any:
    """Return peft's own configuration of adapters in the layers `targets`, a pattern or names."""
    alpha = adapter.alpha or adapter.rank
    return _peft().LoraConfig(
        r=adapter.rank,
        lora_alpha=int(alpha) if float(alpha).is_integer() else alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_rslora=adapter.kind == "rslora",
        use_dora=adapter.kind == "dora",
    )


def targets(model: nn.Module, component: str, names: Collection[str], blocks: Sequence[nn.Module], adapter: Adapter) -> list[str]:
    """Return the names of the layers of a component that get adapters. Raises PlaitError for a target that is none of its linear layers.

    `names`: of the component's parameters; `blocks`: the model's layers, of which `auto` takes all linear ones.
    """
    linear = dict(_linear(model, set(names)))
    inside = {id(module) for block in blocks for module in block.modules()}
    found: dict[str, None] = {}
    for target in adapter.targets:
        if target == AUTO:
            hit = [name for name, module in linear.items() if id(module) in inside] or list(linear)
        else:
            hit = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not hit:
            ends = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            near = difflib.get_close_matches(target, ends, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise PlaitError(
                f"adapters.{component}.targets: {target!r} is no linear layer of {component}: {hint}"
                f"there {'are ' + ', '.join(ends) if ends else 'is none'}"
            )
        found.update(dict.fromkeys(hit))
    return [name for name in linear if name in found]


def _linear(model: nn.Module, names: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear layers whose parameters are among `names`, but for output heads, whose weight is used without their forward pass."""
    ends = (getattr(module, "get_output_embeddings", None) for module in model.modules())  # of transformers' models
    heads = {id(end()) for end in ends if end is not None}
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
        if linear and id(module) not in heads and f"{name}.weight" in names:
            yield name, module


def _peft() -> ModuleType:
    """Import peft. Raises PlaitError where it cannot be imported."""
    try:
        import peft
    except ImportError as error:
        raise PlaitError(f"adapters need peft ({error}): pip install 'plait[adapters]'") from error
    return peft


def _inject(model: nn.Module, adapter: Adapter, names: Sequence[str]) -> None:
    config = peft_config(adapter, "|".join(name.replace(".", r"\.") for name in names))
    meta = next(model.parameters()).is_meta
    with torch.device("meta" if meta else "cpu"):
        _peft().inject_adapter_in_model(config, model, NAME)
    del model.peft_config  # a note of peft's, of the adapters of this component alone


def _keep_names(layer: Any) -> None:
    """Register the parameters of the layer in whose place `layer` stands with `layer` too, so that they keep their names.

    `named_parameters` names a parameter that two modules hold by the outer one: q_proj.weight, not q_proj.base_layer.weight.
    """
    layer._parameters.update(layer.get_base_layer()._parameters)


@torch.no_grad()
def _measure_lengths(layer: Any) -> None:
    """Set the lengths that DoRA trains (Liu et al. 2024, arXiv 2402.09353, equation 5) to those of the rows of the layer's weight."""
    lengths = layer.lora_magnitude_vector[NAME].weight
    base = layer.get_base_layer()
    base = base if base.weight.is_floating_point() else quantised.restored(base)
    weight = full_tensor(base.weight.detach())
    if lengths.is_meta or weight.is_meta:
        return
    values: Tensor = torch.linalg.norm(weight.float(), dim=1).to(lengths.dtype)
    local(lengths).copy_(local(reshard_like(values, lengths)))
