"""Predict futures with NVIDIA's video world models, Cosmos-Predict2 and 2.5, by the pipelines of diffusers.

A pipeline is a transformer of 2 to 14 B parameters, a text encoder (T5-11B, or Qwen 2.5 VL of 7 B), the VAE that is the world encoder, and
NVIDIA's guardrail, which its licence asks for (package cosmos_guardrail). Futures stay latents: nothing is decoded.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.import_utils import is_torchvision_available
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from plait import keys
from plait.config import hub_errors
from plait.errors import BadSample, PlaitError
from plait.nn.trust import CONFIG, DIFFUSERS

CLASSES = ("Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline")
"""Pipelines that predict a video from a picture, in diffusers."""
_WEIGHTS = (".safetensors",)


def sizes(name: str, revision: str | None = None) -> dict[str, int]:
    """Return the bytes of each part's weights, {"transformer": 3900000000, ...}, before any is read.

    `name`: a Hub repository or a local folder of a pipeline. Raises PlaitError for another kind of pipeline, and if it cannot be found.
    """
    folder = Path(name)
    if folder.is_dir():
        listed = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*.safetensors")}
        index = folder / "model_index.json"
        if not index.is_file():
            raise PlaitError(f"--with={name}: the folder has no model_index.json: it is no pipeline of diffusers")
        kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
        if kind not in CLASSES:
            raise PlaitError(f"--with={name}: a {kind} does not predict a video from a picture; known: {', '.join(CLASSES)}")
    else:
        try:
            info = HfApi().model_info(name, revision=revision, files_metadata=True)
        except Exception as error:  # of the Hub's client, and of the HTTP library below it
            raise PlaitError(f"--with={name}: it is neither a folder nor a repository: {hub_errors.reason(error, name)}") from error
        listed = {file.rfilename: file.size or 0 for file in info.siblings or [] if file.rfilename.endswith(_WEIGHTS)}
    parts: dict[str, int] = {}
    for path, size in listed.items():
        part = path.partition("/")[0]
        parts[part] = parts.get(part, 0) + size
    return parts


def needs(parts: dict[str, int], device: str) -> str:
    """Return in a line what a pipeline with weights of these bytes needs of memory on `device`, and what is free there.

    Raises PlaitError where the weights alone do not fit.
    """
    total = sum(parts.values())
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else _free_on_host()
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sorted(parts.items(), key=lambda row: -row[1]))
    line = f"{total / 1e9:.2f} GB of weights ({listed}), and as much again in float32; {free / 1e9:.1f} GB are free on {device}"
    if total > free:
        raise PlaitError(f"{line}: they do not fit; take a larger machine or a smaller model")
    return line


def _free_on_host() -> int:
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


class Cosmos:
    """A video world model. `name`: a Hub repository, at `revision`, or a folder; `vae`: the world encoder, whose latents are wanted.

    `shape`: side of pictures in pixels, and frames of a future; `device`, `dtype`: where, and in which type, it computes. Raises
    PlaitError if it cannot be loaded, or has another VAE than `vae`.
    """

    def __init__(self, name: str, vae: Any, shape: tuple[int, int], *, revision: str | None, device: str, dtype: str) -> None:
        self.name, self.device = name, device
        self.side, self.frames = shape
        try:
            pipeline = DiffusionPipeline.from_pretrained(name, revision=revision, dtype=getattr(torch, dtype), **DIFFUSERS, **CONFIG)
        except ImportError as error:
            raise PlaitError(f"--with={name}: {_first(error)}") from error
        except (OSError, ValueError, HFValidationError, SafetensorError) as error:
            raise PlaitError(f"--with={name}: cannot be loaded: {hub_errors.reason(error, name)}") from error
        finally:
            torch.set_grad_enabled(True)  # importing the guardrail switches gradients off for the whole process
        if (kind := type(pipeline).__name__) not in CLASSES:
            raise PlaitError(f"--with={name}: a {kind} does not predict a video from a picture; known: {', '.join(CLASSES)}")
        if pipeline.transformer.config.concat_padding_mask and not is_torchvision_available():
            raise PlaitError(f"--with={name}: its transformer takes torchvision, which is not installed: pip install torchvision")
        _check_vae(name, pipeline.vae, vae)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline: Any = pipeline.to(device)
        self.kind = kind

    def predict(self, picture: Image.Image, prompt: str, seed: tuple[Any, ...], *, inference_steps: int, guidance: float) -> Tensor:
        """Return the latents (T, C, h, w) of a picture's future, float32 on the host, normalised as the world encoder's are.

        `seed`: what the noise is drawn from. Raises BadSample for a prompt that the guardrail refuses.
        """
        side = self.side
        generator = torch.Generator("cpu").manual_seed(keys.key("rollout", *seed) >> 1)
        frame = picture.resize((side, side), Image.Resampling.BILINEAR)
        # a video of one frame, because 2.5 takes a picture by torchvision
        given: dict[str, Any] = {"image": frame} if self.kind == CLASSES[0] else {"video": [frame], "num_latent_conditional_frames": 1}
        try:
            with torch.no_grad():
                latents: Tensor = self.pipeline(
                    prompt=prompt,
                    height=side,
                    width=side,
                    num_frames=self.frames,
                    num_inference_steps=inference_steps,
                    guidance_scale=guidance,
                    generator=generator,
                    output_type="latent",
                    **given,
                ).frames
        except ValueError as error:
            raise BadSample(_first(error)) from error
        scale = float(self.pipeline.scheduler.config.get("sigma_data") or 1.0) if self.kind == CLASSES[0] else 1.0
        return (latents[0].float().cpu() / scale).transpose(0, 1)


def _check_vae(name: str, vae: Any, mine: Any) -> None:
    """Raise PlaitError where a pipeline's VAE is not the world encoder: its latents would mean something else."""
    same = all(list(vae.config[key]) == list(mine.config[key]) for key in ("latents_mean", "latents_std"))
    theirs, ours = (model.encoder.conv_in.weight.detach().float().cpu() for model in (vae, mine))
    if not same or theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=1e-2):
        raise PlaitError(f"--with={name}: its VAE is not the encoder of model.world.source, whose latents are others: name {name} there")


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
