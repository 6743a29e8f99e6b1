"""Write a directory that diffusers loads as a pipeline, by the code in it: the network and its encoders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import diffusers

from plait import keys
from plait.data import cropping, resizing
from plait.data.pixels import rgb
from plait.data.sources.metadata import METADATA
from plait.engine.checkpoints.folders import new_folder
from plait.families.nanodit import flow, sampler
from plait.families.nanodit.config import Config
from plait.families.nanodit.export import pipeline_plait_nanodit, transformer_plait_nanodit
from plait.families.nanodit.export.code import one_file
from plait.families.nanodit.export.transformer_plait_nanodit import PlaitNanoDiTTransformer
from plait.families.nanodit.generate import sample_shape
from plait.families.nanodit.inputs import Inputs
from plait.families.nanodit.network import conditions, positions, shape, transformer
from plait.families.nanodit.network.transformer import NanoDiT
from plait.files import write_json, write_whole
from plait.nn import encoder_calls, encoders, tiny_encoders

PIPELINE, TRANSFORMER = "pipeline_plait_nanodit", "transformer_plait_nanodit"
_NETWORK = (shape, positions, transformer, transformer_plait_nanodit)
"""The code of the part `transformer`, in this order."""
_PICTURES = (keys, resizing, cropping, rgb, tiny_encoders, encoder_calls)
_DRAWING = (*_PICTURES, shape, conditions, flow, sampler, pipeline_plait_nanodit)
"""The code of the pipeline."""
_SHARD = "5GB"
_PLAIN: Mapping[str, Any] = {"train": {"precision": "fp32"}}
_SAMPLING = {"steps", "solver", "text_scale", "image_scale", "guidance", "interval", "grid", "shift"}


class _Model(Protocol):
    """What both libraries give a model."""

    def save_pretrained(self, folder: Path, /) -> Any:
        """Write its settings, and its weights if it has any."""


def write_diffusers(model: NanoDiT, config: Config, assets: Path, out: Path, *, run: Mapping[str, Any] = _PLAIN) -> list[str]:
    """Write the new directory `out`; return lines on how to load it.

    `config`: the `model:` section; `assets`: the run's folder with metadata.json of its shards; `run`: what plait.json tells of the run.
    The encoders are opened, and written in float32, in which they made the data. Raises PlaitError where one is missing or has changed.
    """
    inputs = Inputs(config, assets, max_tokens=run.get("data", {}).get("max_tokens"))
    opened = _encoders(inputs)
    parts = _parts(opened)
    settings = {**_settings(inputs, opened), "precision": run["train"]["precision"]}
    with new_folder(out) as folder:
        _transformer(model, config).save_pretrained(folder / "transformer", max_shard_size=_SHARD)
        write_whole(folder / "transformer" / f"{TRANSFORMER}.py", code(TRANSFORMER))
        write_whole(folder / f"{PIPELINE}.py", code(PIPELINE))
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        if inputs.metadata is not None:
            write_whole(folder / "assets" / METADATA, (assets / METADATA).read_bytes())
        write_json(folder / "model_index.json", _index(parts, settings))
    lines = ["DiffusionPipeline.from_pretrained(DIR, trust_remote_code=True) loads it, by the code in it: diffusers without plait"]
    if config.space == "latents" and inputs.metadata is None:
        lines.append("without metadata of the run's shards no encoder is known: it takes states of prompts, and returns latents")
    return lines


def code(name: str) -> str:
    """Return the code of an export's file, PIPELINE or TRANSFORMER."""
    modules = {PIPELINE: _DRAWING, TRANSFORMER: _NETWORK}[name]
    return one_file([Path(str(module.__file__)) for module in modules])


def _transformer(model: NanoDiT, config: Config) -> PlaitNanoDiTTransformer:
    """Return a model of diffusers that shares the weights of `model`."""
    same: PlaitNanoDiTTransformer = PlaitNanoDiTTransformer(vars(config.shape))
    same.load_state_dict(model.state_dict(), assign=True)
    same.eval()
    return same


def _settings(inputs: Inputs, opened: Mapping[encoders.Kind, Any]) -> dict[str, Any]:
    """Return the pipeline's settings, but for `precision`. `opened`: its encoders by kind, of which those without weights are named."""
    config, metadata = inputs.config, inputs.metadata
    size = None
    if config.space == "pixels" or (metadata or {}).get("buckets"):
        size = [side * inputs.downsample for side in reversed(sample_shape(inputs, None)[1:])]
    latents = None if config.space == "pixels" or metadata is None else {name: metadata["latents"][name] for name in ("mean", "std")}
    texts = opened["texts"].max_tokens if "texts" in opened else None
    return {
        "space": config.space,
        "size": size,
        "downsample": inputs.downsample,
        "latents": latents,
        "max_tokens": inputs.max_tokens if config.text == "words" else texts,
        "encoders": {kind: encoder.pin["name"] for kind, encoder in opened.items() if _is_tiny(encoder)},
        "sampling": config.sampling.model_dump(mode="json", include=_SAMPLING),
    }


def _encoders(inputs: Inputs) -> dict[encoders.Kind, Any]:
    """Return the opened encoders of the data, by kind, of those that the model needs and the run knows."""
    config = inputs.config
    wanted: dict[encoders.Kind, bool] = {
        "latents": config.space == "latents",
        "texts": config.text == "states",
        "images": config.image_dim > 0,
    }
    pins = {kind: inputs.encoder(kind) for kind, used in wanted.items() if used}
    return {kind: encoders.reopen(kind, pin, pin.get("max_tokens")) for kind, pin in pins.items() if pin is not None}


def _is_tiny(encoder: Any) -> bool:
    """Return whether an encoder is one without weights, whose formula is part of the pipeline's code."""
    return str(encoder.pin["name"]).partition(":")[0] == "tiny"


def parts_of(inputs: Inputs) -> dict[str, _Model]:
    """Return the encoders that are parts of the pipeline, opened, by their names in it."""
    return _parts(_encoders(inputs))


def settings_of(inputs: Inputs) -> dict[str, Any]:
    """Return the pipeline's settings, but for `precision`, as JSON has them."""
    settings: dict[str, Any] = json.loads(json.dumps(_settings(inputs, _encoders(inputs))))
    return settings


def _parts(opened: Mapping[encoders.Kind, Any]) -> dict[str, _Model]:
    """Return the pipeline's parts by name, which have weights or a vocabulary."""
    names: dict[encoders.Kind, str] = {"latents": "vae", "texts": "text_encoder", "images": "image_encoder"}
    pretrained = {kind: encoder for kind, encoder in opened.items() if not _is_tiny(encoder)}
    parts: dict[str, _Model] = {names[kind]: encoder.model for kind, encoder in pretrained.items()}
    return parts | ({"tokenizer": pretrained["texts"].tokenizer} if "texts" in pretrained else {})


def _index(parts: Mapping[str, _Model], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of model_index.json, which names the class of the pipeline and of each part."""
    optional = {name: [None, None] for name in ("vae", "text_encoder", "tokenizer", "image_encoder")}
    own = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    return {
        "_class_name": [PIPELINE, "PlaitNanoDiTPipeline"],
        "_diffusers_version": diffusers.__version__,
        "transformer": [TRANSFORMER, "PlaitNanoDiTTransformer"],
        **optional,
        **own,
        "settings": json.loads(json.dumps(settings)),
    }
