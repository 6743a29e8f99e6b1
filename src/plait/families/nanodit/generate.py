"""Generate pictures for prompts and a reference image (`plait generate`): PNG files that hold their settings, and a grid of them."""

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plait.config.messages import one_line
from plait.engine.checkpoints import folders
from plait.errors import PlaitError
from plait.families.idle_options import refuse_idle
from plait.families.nanodit import pictures, prompts
from plait.families.nanodit.config import Config, Sampling
from plait.families.nanodit.inputs import Inputs
from plait.families.nanodit.network.transformer import NanoDiT
from plait.families.nanodit.options import GenerateOptions
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key

_NAME_LENGTH, _NAME_BYTES = 60, 160  # of a prompt in a file's name: disks take 255 bytes, and a letter has up to 4
_BATCH = 16  # pictures per forward pass, before guidance multiplies them


def generate(model: NanoDiT, inputs: Inputs, options: GenerateOptions, out: Path | None, moment: str) -> list[str]:
    """Generate `count` pictures per prompt into `out`, a PNG each and a grid of all. Returns a line to print per file.

    `out` None: RUN/generated. `moment`: the checkpoint's step, part of the file names; existing files are not overwritten. Raises
    PlaitError for options that do not fit each other or the model.
    """
    refuse_idle(options.model_fields_set, _idle(options))
    sampling, shape = sampling_with(inputs.config, options), sample_shape(inputs, options.size)
    device = next(model.parameters()).device
    folder = out or inputs.assets.parent / "generated"
    show = pictures.decoder(inputs, device)
    conditions = prompts.conditions(inputs, options.prompt, options.image, device, shape)
    jobs = [(index, seed) for index in range(len(options.prompt)) for seed in range(options.seed, options.seed + options.count)]
    drawn, lines = [], []
    for start in range(0, len(jobs), _BATCH):
        batch = jobs[start : start + _BATCH]
        requests = [Request(conditions[index], shape, key("generate", seed)) for index, seed in batch]
        for (index, seed), picture in zip(batch, show(draw(model, inputs, requests, sampling)), strict=True):
            prompt, size = options.prompt[index], f"{picture.shape[1]}x{picture.shape[0]}"
            settings = {"prompt": prompt, "image": str(options.image) if options.image else None, "seed": seed, "checkpoint": moment}
            path = folders.unused(folder / f"{_words_of(prompt)}-{size}-seed-{seed}-{moment}.png")
            pictures.write(path, picture, {**settings, "size": [picture.shape[1], picture.shape[0]], **sampling.model_dump(mode="json")})
            drawn.append(picture)
            lines.append(f"{path}: {prompt!r}, {size}, seed {seed}")
    grid = folders.unused(folder / f"grid-{moment}.png")
    pictures.write(grid, pictures.tile(drawn), {"prompts": options.prompt, "checkpoint": moment, **options.model_dump(mode="json")})
    return [*lines, f"{grid}: all {len(drawn)}"]


def _idle(options: GenerateOptions) -> dict[str, str]:
    """Return the options of guidance that change nothing for the conditions that are given, with the reason."""
    text, image = any(options.prompt), options.image is not None
    idle = {} if text else {"text_scale": "no --prompt is given"}
    idle |= {} if image else {"image_scale": "no --image is given"}
    idle |= {} if text and image else {"guidance": "its kinds differ only where both --prompt and --image are given"}
    return idle | ({} if text or image else {"interval": "neither --prompt nor --image is given, so that nothing guides"})


def _words_of(prompt: str) -> str:
    """Return the beginning of a prompt as a part of a file name: "A red dot!" -> "A-red-dot"; "no-prompt" without any word."""
    words = "-".join(re.findall(r"\w+", prompt))[:_NAME_LENGTH]
    return words.encode()[:_NAME_BYTES].decode(errors="ignore").strip("-") or "no-prompt"


def sampling_with(config: Config, options: GenerateOptions) -> Sampling:
    """Return the run's settings `model.sampling`, replaced by the options that the user set. Raises PlaitError for an invalid value."""
    given: dict[str, Any] = options.model_dump(include=set(Sampling.model_fields), exclude_none=True)
    if options.interval is not None:
        try:
            given["interval"] = tuple(float(part) for part in options.interval.split(","))
        except ValueError:
            raise PlaitError(f"generate: --interval is {options.interval!r}: write two numbers, such as 0.1,0.9") from None
    try:
        return Sampling.model_validate({**config.sampling.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise PlaitError(f"generate: --{name or 'interval'}: {one_line(first['msg'])} (given {first['input']!r})") from error


def sample_shape(inputs: Inputs, size: str | None) -> tuple[int, int, int]:
    """Return the shape (C, H, W), in latents or pixels, of samples for pictures of `size`, "WIDTHxHEIGHT" in pixels.

    `size` None: in pixel space `model.image_size`, for latents the commonest size in the training shards. Raises PlaitError for sides that
    are no whole number of tokens, and for latents without a size if the run has no metadata of its shards.
    """
    config, stride = inputs.config, inputs.downsample
    if size is None:
        if config.space == "pixels":
            return (config.channels, config.image_size, config.image_size)
        buckets = (inputs.metadata or {}).get("buckets", {})
        if not buckets:
            raise PlaitError("generate: --size is missing: give WIDTHxHEIGHT in pixels, such as --size=1024x1024")
        size = str(max(buckets, key=lambda name: buckets[name]["samples"]))
    width, height = (int(side) for side in size.split("x"))
    if width % (stride * config.patch) or height % (stride * config.patch):
        raise PlaitError(f"generate: --size is {size}: both sides must be multiples of {stride * config.patch} pixels")
    return (config.channels, height // stride, width // stride)
