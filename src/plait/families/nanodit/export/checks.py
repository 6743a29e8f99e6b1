"""How `plait export --check diffusers` asks a pipeline of this family: pictures of the seeds, prompts and sizes that plait draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.errors import PlaitError
from plait.families.module_contracts import Check
from plait.families.nanodit import pictures, prompts
from plait.families.nanodit.config import Config
from plait.families.nanodit.export.write import parts_of, settings_of
from plait.families.nanodit.generate import sample_shape, sampling_with
from plait.families.nanodit.inputs import Inputs
from plait.families.nanodit.network.transformer import NanoDiT
from plait.families.nanodit.options import GenerateOptions
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key

_STEPS = 4
_SEEDS = (0, 1)


def _weights(model: NanoDiT, config: Config, assets: Path) -> dict[str, Tensor]:
    """Return the weights of all parts of the pipeline, by part and name."""
    parts = {"transformer": model, **parts_of(Inputs(config, assets))}
    modules = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.named_parameters()}


def _asked(inputs: Inputs, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the arguments of calls: with the run's own sampling but for fewer steps, and with every condition that the model has.

    Raises PlaitError for a run that does not know the encoder of its latents, as there are no pictures then.
    """
    if inputs.config.space == "latents" and inputs.encoder("latents") is None:
        raise PlaitError(
            "--check diffusers: the run does not know the VAE of its latents (model.metadata), so that there are no pictures to compare: "
            "export without --check, or train with model.metadata"
        )
    size = {} if inputs.config.space == "pixels" or (inputs.metadata or {}).get("buckets") else {"width": 256, "height": 256}
    given = {"num_inference_steps": _STEPS, "seed": _SEEDS[0], "num_images_per_prompt": len(_SEEDS), **size}
    texts = inputs.config.text == "words" or inputs.encoder("texts") is not None
    prompt = "a large red circle left of a small blue square" if texts else ""
    image = {"image": str(files[0])} if inputs.config.image_dim and inputs.encoder("images") is not None else {}
    return [{"prompt": [prompt, ""], **image, **given}, {"prompt": prompt, **given, "solver": "heun"}]


def _results(model: NanoDiT, inputs: Inputs, call: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the pictures (n, H, W, 3) uint8 of a call, as `plait generate` draws them."""
    size = f"{call['width']}x{call['height']}" if "width" in call else None
    texts = [call["prompt"]] if isinstance(call["prompt"], str) else list(call["prompt"])
    options = GenerateOptions(prompt=texts, size=size, steps=call["num_inference_steps"], solver=call.get("solver"))
    device, shape = next(model.parameters()).device, sample_shape(inputs, size)
    image = Path(call["image"]) if "image" in call else None
    conditions = prompts.conditions(inputs, texts, image, device, shape)
    seeds = range(call["seed"], call["seed"] + call["num_images_per_prompt"])
    requests = [Request(condition, shape, key("generate", seed)) for condition in conditions for seed in seeds]
    samples = draw(model, inputs, requests, sampling_with(inputs.config, options))
    return {"pictures": torch.from_numpy(np.stack(pictures.decoder(inputs, device)(samples)))}


def _settings(model: NanoDiT, inputs: Inputs) -> dict[str, Any]:
    return settings_of(inputs)


checks = {"diffusers": Check("diffusers", _weights, _asked, _results, _settings, trust=True, autocast=True)}
