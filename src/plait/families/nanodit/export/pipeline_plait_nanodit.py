"""A pipeline of diffusers that draws the pictures of a nanodit model: those of `plait generate`, from the same seeds. Needs no plait."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from plait.data.cropping import cover
from plait.data.pixels.rgb import to_rgb
from plait.families.nanodit.network.conditions import Conditions, pack, word_ids
from plait.families.nanodit.network.shape import Shape
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key
from plait.nn.encoder_calls import dino_vectors, t5_states, vae_pictures
from plait.nn.tiny_encoders import TinyImages, TinyLatents, TinyTexts

_TOGETHER = 16  # pictures per forward pass, before guidance multiplies them
_DECODED_PIXELS = 2 * 1024 * 1024  # that a VAE decodes at once
_KINDS = {"solver": ("euler", "heun"), "guidance": ("two_scale", "joint"), "grid": ("uniform", "quadratic")}
_ALIGNMENT = 64  # bytes: where torch begins a tensor
_SIDEWAYS = (5, 6, 7, 8)  # values of the EXIF tag 0x0112 that swap width and height
_PRODUCTS = {"bf16": torch.bfloat16, "pure_bf16": torch.bfloat16, "fp16": torch.float16}


class PlaitNanoDiTPipeline(DiffusionPipeline):
    """Draws pictures for prompts and a reference image.

    `transformer`: the network; `vae`, `text_encoder` with its `tokenizer`, `image_encoder`: what the training data was encoded with; None
    where the model works on pixels, learned its words itself or never sees an image, and for encoders without weights, which are here.
    `settings`: `space`, `size` ([width, height] of a picture), `downsample`, `latents` (mean, std of each channel), `encoders` (names of
    those without weights), `max_tokens`, `precision` of products, and `sampling`, the defaults of `__call__`.
    """

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    image_encoder: Any
    config: Any
    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"  # type: ignore[assignment]  # None there
    _optional_components = ["vae", "text_encoder", "tokenizer", "image_encoder"]  # noqa: RUF012  diffusers' own attribute

    def __init__(  # type: ignore[no-untyped-def]  # diffusers compares classes with annotations, and warns of subclasses
        self, transformer, vae=None, text_encoder=None, tokenizer=None, image_encoder=None, settings=None
    ):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, image_encoder=image_encoder)  # type: ignore[no-untyped-call]
        self.register_to_config(settings=settings)  # type: ignore[no-untyped-call]
        for part in (transformer, vae, text_encoder, image_encoder):
            _align(part)

    @property
    def prediction(self) -> str:
        """Return what the network gives: "v", a velocity, or "x", the clean sample."""
        return self._shape.prediction

    def pack(self, rows: Sequence[Conditions]) -> dict[str, Tensor]:
        """Pack the conditions of B samples for the network."""
        return pack(rows, self._shape)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        image: Any = None,
        *,
        width: int | None = None,
        height: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        text_scale: float | None = None,
        image_scale: float | None = None,
        solver: str | None = None,
        guidance: str | None = None,
        interval: tuple[float, float] | None = None,
        grid: str | None = None,
        shift: float | None = None,
        prompt_embeds: Sequence[Tensor] | None = None,
        image_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw `num_images_per_prompt` pictures for each prompt, of the seeds from `seed` on; return them as `images`.

        `image`: the reference image for all, a path, the content of a file or a PIL image ("": no text, None: no image). `generator`: one
        whose initial seed is taken as `seed`. `prompt_embeds` (a tensor (tokens, features) per prompt) and `image_embeds` (features,) stand
        in place of what the encoders make. The others replace `settings["sampling"]`. `output_type`: "pil", "np" (H, W, 3) uint8 or
        "latent". Raises ValueError for a value that cannot be.
        """
        given = {"steps": num_inference_steps, "text_scale": text_scale, "image_scale": image_scale, "solver": solver, "grid": grid}
        sampling = self._sampling({**given, "guidance": guidance, "interval": interval, "shift": shift})
        if output_type not in ("pil", "np", "latent"):
            raise ValueError(f"output_type is {output_type!r}: expected pil, np or latent")
        shape = self._sample_shape(width, height)
        first = generator.initial_seed() if generator is not None else seed
        with self._autocast():
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            conditions = self._conditions(prompts, image, shape, prompt_embeds, image_embeds)
            jobs = [(row, key("generate", first + number)) for row in conditions for number in range(num_images_per_prompt)]
            drawn = []
            for start in range(0, len(jobs), _TOGETHER):
                requests = [Request(row, shape, noise_key) for row, noise_key in jobs[start : start + _TOGETHER]]
                samples = draw(self.transformer, self, requests, sampling)  # type: ignore[arg-type]  # Sampling is a class of plait
                drawn += list(samples.cpu()) if output_type == "latent" else self._pictures(samples)
        if output_type == "pil":
            drawn = [Image.fromarray(picture) for picture in drawn]
        return ImagePipelineOutput(images=drawn) if return_dict else (drawn,)

    @property
    def _shape(self) -> Shape:
        return Shape(**self.transformer.config["shape"])

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context that computes products in the transformer's type, if it is a half one, else in that of training."""
        dtype, device = self.transformer.dtype, self._execution_device.type
        products = _PRODUCTS.get(self.config.settings["precision"]) if dtype == torch.float32 else dtype
        return contextlib.nullcontext() if products is None else torch.autocast(device, products)

    def _sampling(self, given: dict[str, Any]) -> SimpleNamespace:
        """Return the settings of sampling, replaced by those that are given."""
        values = {**self.config.settings["sampling"], **{name: value for name, value in given.items() if value is not None}}
        for name, known in _KINDS.items():
            if values[name] not in known:
                raise ValueError(f"{name} is {values[name]!r}: expected {' or '.join(known)}")
        low, high = values["interval"]
        steps, shift = values["steps"], values["shift"]
        if not (steps >= 1 and 0 <= low < high <= 1 and shift > 0):
            raise ValueError(f"steps {steps}, interval {[low, high]}, shift {shift}: expected at least 1, rising in 0..1, above 0")
        return SimpleNamespace(**values)

    def _sample_shape(self, width: int | None, height: int | None) -> tuple[int, int, int]:
        """Return (C, H, W) of the samples for pictures of this size in pixels; None: the settings' own."""
        settings = self.config.settings
        if (width is None) != (height is None) or (width is None and settings["size"] is None):
            raise ValueError(f"width is {width} and height {height}: give both, in pixels")
        wide, high = (width, height) if width is not None and height is not None else settings["size"]
        stride = settings["downsample"] * self._shape.patch
        if wide < 1 or high < 1 or wide % stride or high % stride:
            raise ValueError(f"the size is {wide}x{high}: both sides must be multiples of {stride} pixels")
        return self._shape.channels, high // settings["downsample"], wide // settings["downsample"]

    def _conditions(
        self, prompts: list[str], image: Any, shape: tuple[int, int, int], states: Sequence[Tensor] | None, vector: Tensor | None
    ) -> list[Conditions]:
        """Return the conditions of each prompt, with the one image for all."""
        if (image is not None or vector is not None) and not self._shape.image_dim:
            raise ValueError("this model was trained without reference images (image_dim is 0)")
        vector = self._vector(image, shape) if vector is None and image is not None else vector
        if states is not None:
            return [Conditions(rows, vector) for rows in states]
        if self._shape.text == "words":
            limit = self.config.settings["max_tokens"]
            return [Conditions(word_ids(text, self._shape.words, limit)[0], vector) for text in prompts]
        texts = [text for text in prompts if text]
        encoded = iter(self._states(texts) if texts else [])
        return [Conditions(next(encoded) if text else None, vector) for text in prompts]

    def _states(self, texts: list[str]) -> list[Tensor]:
        """Return the states (tokens, features) of texts."""
        settings = self.config.settings
        if self.text_encoder is not None:
            device = self._execution_device
            return t5_states(self.text_encoder, self.tokenizer, texts, settings["max_tokens"], device)
        if "texts" not in settings["encoders"]:
            raise ValueError("this pipeline has no text encoder, as its run did not know its own: give prompt_embeds")
        tiny = TinyTexts(self._shape.text_dim, settings["max_tokens"])
        return [torch.tensor(states) for states, _ in tiny.encode(texts)]

    def _vector(self, image: Any, shape: tuple[int, int, int]) -> Tensor:
        """Return the features (F,) of a reference image, cropped to the aspect ratio of the samples."""
        high, wide = (side * self.config.settings["downsample"] for side in shape[1:])
        pixels = cover(torch.from_numpy(_opened(image, high, wide)).permute(2, 0, 1), high, wide)
        if self.image_encoder is not None:
            return dino_vectors(self.image_encoder, pixels[None].to(self._execution_device))[0]
        if "images" not in self.config.settings["encoders"]:
            raise ValueError("this pipeline has no image encoder, as its run did not know its own: give image_embeds")
        return TinyImages().encode(pixels[None])[0]

    def _pictures(self, samples: Tensor) -> list[Any]:
        """Return pictures (H, W, 3) uint8 of samples (B, C, H, W)."""
        settings = self.config.settings
        if settings["space"] == "pixels":
            pixels = samples.cpu().float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
            return list(pixels.permute(0, 2, 3, 1).numpy())
        if self.vae is None and "latents" not in settings["encoders"]:
            raise ValueError('this pipeline has no VAE, as its run did not know its own: ask for output_type="latent"')
        mean, std = (torch.tensor(settings["latents"][name], dtype=torch.float32).view(-1, 1, 1) for name in ("mean", "std"))
        at_once = max(1, _DECODED_PIXELS // (samples.shape[-1] * samples.shape[-2] * settings["downsample"] ** 2))
        pictures = []
        for part in samples.split(at_once):
            latents = part.float().cpu() * std + mean
            if self.vae is not None:
                decoded = vae_pictures(self.vae, latents.to(self._execution_device))
            else:
                decoded = TinyLatents(settings["downsample"], self._shape.channels).decode(latents)
            pictures += list(decoded.permute(0, 2, 3, 1).numpy())
        return pictures


def _align(part: torch.nn.Module | None) -> None:
    """Copy the weights of a part that lie in a mapped file, where a CPU's kernels round sums otherwise than in memory of torch's own."""
    for value in () if part is None else part.parameters():
        if value.device.type == "cpu" and value.data_ptr() % _ALIGNMENT:
            value.data = value.data.clone()


def _opened(image: Any, high: int, wide: int) -> Any:
    """Return the pixels (H, W, 3) uint8 of a picture; a large JPEG of which the file is given is decoded at a part of its size."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else Path(image)) as file:
        if file.format == "JPEG":
            least = (wide, high) if file.getexif().get(0x0112) in _SIDEWAYS else (high, wide)
            if file.height >= 4 * least[0] and file.width >= 4 * least[1]:
                file.draft(None, (2 * least[1], 2 * least[0]))
        return to_rgb(file)
