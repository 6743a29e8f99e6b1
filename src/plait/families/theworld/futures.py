"""Predict futures for `plait data rollout`, as the world encoder's latents: of frames copied or drawn, or by a video world model.

A future is a clip (of the Wan VAE 1 + 4 k frames) that begins with the picture: k latent frames follow the first. Predictors: the picture
repeated (`copy`, the control), the exact motion of scenes (`scenes`), and video world models of diffusers (plait.nn.cosmos).
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from plait.data import images
from plait.data.synthetic.drawing import render
from plait.data.synthetic.physics import scene_of
from plait.errors import BadSample, PlaitError
from plait.families.futures import Futures, Request, Sample
from plait.families.theworld import towers
from plait.families.theworld.config import Config, WorldEncoderConfig
from plait.families.theworld.features import pin
from plait.families.theworld.pretrained import published, wan
from plait.nn import cosmos

Frames = Callable[[Sample], Sequence[Tensor]]
"""Returns the frames (3, H, W) uint8 of a sample's future, the picture first. Raises BadSample where it has no future."""


class Encoder:
    """The world encoder of a model, as it is before training. `device`: where it computes; `pin`: what identifies it.

    `config`: the model's section, with a world; `seed`: as of `build`, of a tiny one. Raises PlaitError if it cannot be loaded.
    """

    def __init__(self, config: Config, seed: int, device: str = "cpu") -> None:
        assert config.world is not None
        self.world = config.world
        self.module = towers.load_encoder(config, config.world, seed).eval().requires_grad_(False).to(device)
        self.device, self.pin, self.grid = device, pin(config, config.world), self.module.grid

    @torch.no_grad()
    def encode(self, futures: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return latents (B, T, C, h, w), float32 on the host, of B futures.

        `futures`: frames (3, H, W) uint8, equally many of each; they are resized to squares.
        """
        side = self.world.image_size
        squares = [images.resize_all(frames, side, side, mode="bilinear") for frames in futures]
        latents: Tensor = self.module(torch.stack(squares).to(self.device))
        return latents.transpose(1, 2).float().cpu()


def open_futures(config: Config, request: Request, *, seed: int) -> Futures:
    """Return what predicts the futures that `request` names. `config`: the model's section; `seed`: as of `build`.

    Raises PlaitError for a model without a world, a wrong number of steps, and a video world model that cannot be loaded or does not fit.
    """
    if config.world is None:
        raise PlaitError("model.world is off: there is no encoder to make futures for")
    steps = config.world.steps if request.steps is None else request.steps
    if not 1 <= steps <= config.world.max_steps:
        raise PlaitError(
            f"a future has k latent frames after the first, and k is {steps}: set model.world.steps, or --steps, to 1 to "
            f"{config.world.max_steps} (model.world.max_steps)"
        )
    world = config.world.model_copy(update={"steps": steps})
    encoder = Encoder(config.model_copy(update={"world": world}), seed, request.device)
    predict, made_by, lines = _predictor(request, encoder, world)
    return Futures(predict, steps, encoder.pin, made_by, seed if world.tiny is not None else None, lines)


def _predictor(request: Request, encoder: Encoder, world: WorldEncoderConfig) -> tuple[Any, Mapping[str, Any], list[str]]:
    """Return what predicts futures, what is to be said of it beside them, and what is to be told before."""
    if request.predictor in ("copy", "scenes"):
        frames_of = predictor(request.predictor, encoder.grid.frames(world.steps), int(request.options.get("supersample", 3)))
        return (lambda samples, indices: _of_frames(samples, indices, frames_of, encoder)), {"name": request.predictor}, []
    if not isinstance(encoder.module, wan.Encoder):
        raise PlaitError(
            f"--with={request.predictor}: video world models predict latents of their own VAE, an AutoencoderKLWan, and "
            f"model.world.source is a {encoder.grid.name}: make futures of its frames, with copy or scenes"
        )
    published.check_branch(request.predictor, request.revision, "--with=", "--revision=")
    line = f"{request.predictor}: {cosmos.needs(cosmos.sizes(request.predictor, request.revision), request.device)}"
    model = cosmos.Cosmos(
        request.predictor,
        encoder.module.vae,
        (world.image_size, encoder.grid.frames(world.steps)),
        revision=request.revision,
        device=request.device,
        dtype=request.dtype,
    )
    sampler: dict[str, Any] = {"inference_steps": request.inference_steps, "guidance": request.guidance}

    def predict(samples: Sequence[Sample], indices: Sequence[int]) -> dict[int, Tensor | str]:
        return _of_model(samples, indices, lambda picture, i: model.predict(picture, request.prompt, (i,), **sampler), encoder)

    return predict, {"name": request.predictor, "revision": request.revision, "prompt": request.prompt, **sampler}, [line]


def _of_frames(samples: Sequence[Sample], indices: Sequence[int], frames_of: Frames, encoder: Encoder) -> dict[int, Tensor | str]:
    """Encode the frames that each sample's future has."""
    found: dict[int, Any] = {}
    for i, sample in zip(indices, samples, strict=True):
        try:
            found[i] = frames_of(dict(sample))
        except BadSample as error:
            found[i] = str(error)
    usable = [i for i in indices if not isinstance(found[i], str)]
    if usable:
        found |= dict(zip(usable, encoder.encode([found[i] for i in usable]), strict=True))
    return found


def _of_model(
    samples: Sequence[Sample], indices: Sequence[int], predict: Callable[[Image.Image, int], Tensor], encoder: Encoder
) -> dict[int, Tensor | str]:
    """Predict the future of each sample's picture. The first latent frame is the world encoder's own of the picture."""
    found: dict[int, Tensor | str] = {}
    for i, sample in zip(indices, samples, strict=True):
        try:
            (frame,) = predictor("copy", 1)(dict(sample))
            picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
            found[i] = torch.cat([encoder.encode([[frame]])[0], predict(picture, i)[1:]])
        except BadSample as error:
            found[i] = str(error)
    return found


def predictor(name: str, count: int, supersample: int = 3) -> Frames:
    """Return the predictor `copy` or `scenes` of `count` frames. `supersample`: that of the scenes' pictures."""
    return (lambda sample: [_picture(sample)] * count) if name == "copy" else (lambda sample: _moved(sample, count, supersample))


def _picture(sample: Sample) -> Tensor:
    if not sample["images"]:
        raise BadSample("it has no picture to begin with")
    return images.decode(sample["images"][0])


def _moved(sample: Sample, count: int, supersample: int) -> list[Tensor]:
    """Return the frames of a scene, exact: those that the sample has, and further ones drawn as its picture is."""
    fields = sample["fields"]
    if not {"objects", "background", "size"} <= fields.keys():
        raise PlaitError("--with=scenes moves the objects of drawn scenes, and this data has none: its fields have no objects")
    shown = [images.decode(data) for data in (sample.get("frames") or sample["images"])[:count]]
    scene = scene_of(fields)
    for frame in range(len(shown), count):
        file = io.BytesIO()
        render(scene, frame, supersample=supersample).save(file, "PNG", compress_level=1)
        shown.append(images.decode(file.getvalue()))
    return shown
