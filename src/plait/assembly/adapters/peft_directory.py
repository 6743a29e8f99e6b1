"""Write a model's adapters as directories that `PeftModel.from_pretrained` loads over the model that they were trained on.

What such a model is: the largest model of transformers that has the layers, such as Gemma in one with a world encoder, else the whole.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from plait.assembly.adapters.layers import NAME, Adapters, peft_config
from plait.config.sections.adapters import LAYOUT, SUFFIX
from plait.engine.checkpoints.folders import new_folder
from plait.errors import PlaitError


def write(adapters: Adapters, trained: Collection[str], parts: Sequence[Mapping[str, str | None]], out: Path) -> list[str]:
    """Write the adapters that were trained to the new folder `out`; return lines on them.

    Of several components each gets a folder in it. `trained`: names of parameters that were; `parts`: the pretrained parts of the model, as
    a family's `base` returns them. Raises PlaitError where no adapters were trained, and where weights of the model below them were, which
    such a directory does not hold.
    """
    used = trained_components(adapters, trained)
    if not used:
        raise PlaitError(f"--to {LAYOUT}: no adapters were trained so far: {', '.join(f'{name}{SUFFIX}' for name in adapters.layers)}")
    lines = []
    with new_folder(out) as folder:
        for component in used:
            root, model = root_of(adapters.model, list(adapters.layers[component]))
            below = sorted(name for name in trained if name.startswith(root) and name not in adapters.names)
            if below:
                raise PlaitError(
                    f"--to {LAYOUT}: the run trained weights below the adapters of {component} too ({len(below)}, the first {below[0]}), "
                    "which such a directory does not hold: another layout merges the adapters"
                )
            base = next((part for part in parts if part["part"] == root.partition(".")[0]), None)
            _write_one(adapters, component, root, base, folder / component if len(used) > 1 else folder)
            named = f"{type(model).__name__} of {base['name']}" if base is not None else type(model).__name__
            lines.append(f"{component}{SUFFIX}: PeftModel.from_pretrained loads it over {named}")
    return lines


def trained_components(adapters: Adapters, trained: Collection[str]) -> list[str]:
    """Return the components of which an adapter's parameter is among `trained`, each of which has a folder where there are several."""
    return [component for component in adapters.layers if not set(adapters.components[component + SUFFIX]).isdisjoint(trained)]


def _write_one(adapters: Adapters, component: str, root: str, base: Mapping[str, str | None] | None, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors. `root`: what the names of the model's parameters begin with here."""
    parameters = dict(adapters.model.named_parameters())
    weights = {}
    for name in adapters.components[component + SUFFIX]:
        theirs = name.removeprefix(root).replace(f".{NAME}.weight", ".weight")
        theirs = theirs.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
        weights[f"base_model.model.{theirs}"] = parameters[name].detach().to("cpu", torch.float32).contiguous()
    layers = [name.removeprefix(root) for name in adapters.layers[component]]
    config = peft_config(adapters.settings[component], _targets(adapters.model.get_submodule(root.rstrip(".")), layers))
    config.inference_mode = True
    config.base_model_name_or_path = base["name"] if base is not None else None
    config.revision = base["revision"] if base is not None else None
    folder.mkdir(exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def root_of(model: nn.Module, layers: Sequence[str]) -> tuple[str, nn.Module]:
    """Return what the names of a part's parameters begin with, and the part: the largest model of transformers with all `layers`.

    The beginning is "gemma." of a part of that name, "" of the whole model.
    """
    parts = layers[0].split(".")
    for count in range(len(parts)):
        prefix = ".".join(parts[:count])
        module = model.get_submodule(prefix)
        inside = all(name.startswith(f"{prefix}.") for name in layers) or not prefix
        if isinstance(module, PreTrainedModel) and inside:
            return f"{prefix}." if prefix else "", module
    return "", model


def _targets(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return the last parts of the layers' names where no other layer ends so, as is usual; else their whole names."""
    ends = Counter(name.rpartition(".")[2] for name in layers)
    there = Counter(name.rpartition(".")[2] for name, _ in model.named_modules())
    return list(ends) if all(there[end] == count for end, count in ends.items()) else list(layers)
