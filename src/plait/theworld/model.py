"""A trained model with its processor, loaded by the name of a run, an export or a Hub repository, that answers questions."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from plait.assembly import checkpoint_specs, exported, hub_start, saved
from plait.assembly.model import ModelBundle, hashes
from plait.commands.actions.generate import checked_options
from plait.config import hub_errors
from plait.config.messages import PLACE, SWITCH, check_arguments, with_type
from plait.config.schema import RunConfig, Train
from plait.engine.checkpoints.folders import new_folder
from plait.engine.parallel.distributed import Ranks
from plait.engine.precision import autocast
from plait.errors import PlaitError
from plait.families import registry
from plait.families.idle_options import of_draw, refuse_idle
from plait.families.theworld import export, model
from plait.families.theworld.generate import answers, check_clip, idle
from plait.families.theworld.hf import processing
from plait.families.theworld.hf.configuration import TheWorldConfig
from plait.families.theworld.hf.modeling import TheWorldForConditionalGeneration
from plait.families.theworld.hf.processing import TheWorldProcessor
from plait.families.theworld.options import GenerateOptions
from plait.files import expanded
from plait.keys import key
from plait.nn import trust
from plait.nn.decoding import Sampling

log = logging.getLogger(__name__)

FAMILY = TheWorldConfig.model_type


class _NoExport(PlaitError):
    """Raised for a repository that has no configuration of a model, or not of this name: it may hold a run, and the name be of a step."""


class TheWorld:
    """A trained model that answers prompts about images and clips.

    `model`: a PreTrainedModel of transformers; `processor`: its TheWorldProcessor; `precision`: the `train.precision` of its run.
    """

    def __init__(self, model: TheWorldForConditionalGeneration, processor: TheWorldProcessor, *, precision: str = "fp32") -> None:
        self.model, self.processor, self.precision = model, processor, precision

    def __repr__(self) -> str:
        return f"TheWorld({sum(p.numel() for p in self.model.parameters()):,} parameters, on {self.model.device})"

    @classmethod
    def from_pretrained(cls, name: str | Path, *, averaged: bool = True, device: str | torch.device | None = None) -> "TheWorld":
        """Load an export of a run, a checkpoint of a run, or a Hub repository that holds either.

        `name`: a directory, RUN, RUN@STEP, RUN/STAGE@best, or owner/name[@revision], of a run also owner/name@STEP or @best. `averaged`:
        of a run, use the EMA weights, where it has any. `device`: by default the GPU where there is one. Raises PlaitError where there is
        no such model.
        """
        check_arguments("TheWorld.from_pretrained", name=(name, PLACE), averaged=(averaged, SWITCH))
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = expanded(name)
        if (folder / "config.json").is_file() and not (folder / "config.yaml").is_file():
            loaded = _exported(str(folder), None)
        elif folder.exists() or (run := checkpoint_specs.split(str(name))[0]).exists() or not checkpoint_specs.may_be_hub(run.as_posix()):
            loaded = _of_run(name, averaged, place)
        else:
            loaded = _of_hub(str(name), averaged, place)
        nn.Module.to(loaded.model, place).train(False)
        return loaded

    def generate(
        self,
        image: Any = None,
        prompt: str | Sequence[str] = "",
        *,
        frames: Any = None,
        world: bool = True,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Any:
        """Answer a prompt about a picture, or several prompts at once: a text for a text, a list for a list.

        `image`: of one prompt a picture, or a list of its pictures (a path, bytes, PIL image, uint8 array or address), which stand at the
        `<image>` marks, or first; of a list of prompts a list with one of these for each, or one picture for all. `frames`: in the same way
        a clip for the world encoder: a list of pictures, a folder of them, or a video; without, it sees the first picture. `world`: off:
        leave the world encoder's tokens out. The rest is as of `plait generate`. Raises PlaitError for what cannot be used.
        """
        _check_order(image, prompt)
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "world": world}
        given = checked_options(GenerateOptions, options)
        changed = {name for name, value in options.items() if value != GenerateOptions.model_fields[name].default}
        unused = (idle(self.processor.inputs, given) if frames is not None else {}) | of_draw(given)
        refuse_idle(changed | ({"frames"} if frames is not None else set()), unused, lambda name: f"`{name}`")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        images, clips = (_for_each(seen, prompt, name) for seen, name in ((image, "image"), (frames, "frames")))
        samples = [_sample(text, *seen, world=given.world) for text, *seen in zip(prompts, images, clips, strict=True)]
        inputs = self.processor.inputs
        for sample in samples:
            check_clip(inputs, sample, "`frames`", "world=False", wanted=given.world)
        sampling = Sampling(given.temperature, given.top_p, [key(given.seed, "generate")] * len(samples))
        examples = [inputs.prompt(sample) for sample in samples]
        limits = [given.max_new_tokens] * len(samples)
        with autocast(self.precision, self.model.device):
            texts = answers(self.model.model, inputs, examples, max_new_tokens=limits, sampling=sampling) if examples else []
        return texts[0] if isinstance(prompt, str) else texts

    def save_pretrained(self, folder: str | Path, *, encoder: bool = False) -> None:
        """Write what `plait export --to theworld` writes to the new directory `folder`; `encoder`: with the world encoder's weights.

        Raises PlaitError if it exists.
        """
        check_arguments("TheWorld.save_pretrained", folder=(folder, PLACE), encoder=(encoder, SWITCH))
        export.check_encoder(self.model.config.plait, encoder, "save_pretrained(encoder=True)", "leave `encoder` out")
        out = expanded(folder)
        if out.exists():
            raise PlaitError(f"{out} exists already: save to a new directory, or remove it")
        with new_folder(out) as written:
            lines = export.save(self.model, self.processor, written, encoder=encoder)
            saved.write_model_settings(written, self._settings(written))
        for line in lines:
            log.info(line)

    def _settings(self, folder: Path) -> dict[str, Any]:
        """Return the content of plait.json for what was just saved to `folder`."""
        whole = self.model.model
        bundle = ModelBundle(registry.load(FAMILY), self.model.config.plait, folder, whole, hashes(whole), None)
        config = RunConfig(family=FAMILY, model=self.model.config.section, train=Train.model_validate({"precision": self.precision}))
        return exported.settings(folder, bundle, config, set())


def _of_hub(name: str, averaged: bool, device: torch.device) -> TheWorld:
    """Load a repository of the Hub: an export, or where it is none the checkpoint that it holds. Raises PlaitError for anything else."""
    repository, _, revision = name.partition("@")
    try:
        return _exported(repository, revision or None)
    except PlaitError as error:
        if not isinstance(error, _NoExport):
            raise
        try:
            folder = hub_start.local_checkpoint(name)
        except PlaitError as reason:
            raise PlaitError(f"{name} cannot be loaded: {str(reason).removeprefix('from: ')}") from reason
        if folder is None and error.__cause__ is None:
            raise PlaitError(f"{name} holds neither what plait export --to theworld writes nor a run with a checkpoint") from error
        if folder is None:
            raise
        return _of_run(folder, averaged, device)


def _exported(name: str, revision: str | None) -> TheWorld:
    """Load a whole export from a directory or the Hub. Raises PlaitError for another model, or none."""
    at: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        settings, _ = PreTrainedConfig.get_config_dict(name, **at, **trust.CONFIG)
        if settings.get("model_type") != FAMILY:
            if revision is None and exported.find(name) is not None:
                return _of_run(name, True, torch.device("cpu"))
            kind = settings.get("model_type")
            refused = f"{name} holds a model of type {kind!r}, not all of a theworld model: export its run with --to theworld"
            raise (_NoExport if kind is None else PlaitError)(refused)
        whole = TheWorldForConditionalGeneration.from_pretrained(name, **at, **trust.WEIGHTS)
        processor = TheWorldProcessor.from_pretrained(name, **at, **trust.CONFIG)
        if not processor.sizes:
            raise PlaitError(f"{name} has no processor_config.json, which says how pictures become tokens: export its run again")
        told = cached_file(name, saved.MODEL_SETTINGS, **at, _raise_exceptions_for_missing_entries=False)
    except (OSError, SafetensorError, HFValidationError) as error:
        kind_of_error = _NoExport if isinstance(error.__cause__, RevisionNotFoundError) else PlaitError
        raise kind_of_error(f"{name} cannot be loaded: {hub_errors.reason(error, name)}") from error
    precision = json.loads(Path(told).read_bytes()).get("train", {}).get("precision") if told else None
    return TheWorld(whole, processor, precision=precision or "fp32")


def _of_run(name: str | Path, averaged: bool, device: torch.device) -> TheWorld:
    """Load a checkpoint of a run, or an export of another layout. Raises PlaitError if there is neither, or it is of another family."""
    found = exported.find(name)
    config = saved.locate(name).config if found is None else found.config
    if config.family != FAMILY:
        raise PlaitError(f"{name} is of family {config.family!r}, not of theworld: plait.open opens checkpoints of any family")
    bundle, _, _, _ = exported.open_named(name, Ranks(0, 1, device), averaged=averaged)
    bundle, _, _ = exported.merged(bundle, config, set())
    assert isinstance(bundle.model, model.TheWorld)
    return TheWorld(*export.as_transformers(bundle.model, bundle.section, bundle.assets), precision=config.train.precision)


def _check_order(image: Any, prompt: Any) -> None:
    """Raise PlaitError for a prompt that is no text, and for a picture and a prompt in each other's place."""
    texts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    order = "generate(image, prompt) takes the picture first"
    if wrong is not None:
        raise PlaitError(f"TheWorld.generate: `prompt` is to be a text, or a list of texts, and is {with_type(wrong)}: {order}")
    if isinstance(image, str) and isinstance(prompt, str) and _is_file(prompt) and not _is_file(image):
        raise PlaitError(f"TheWorld.generate: `prompt` names the file {prompt}, and `image` is {with_type(image)}, which is none: {order}")


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a path, with a zero, of an unknown home
        return False


def _for_each(given: Any, prompt: str | Sequence[str], name: str) -> list[Any]:
    """Return the pictures or the clip of each prompt. Raises PlaitError where there are not as many."""
    if isinstance(prompt, str):
        return [given]
    if not isinstance(given, list | tuple):
        return [given] * len(prompt)
    if len(given) != len(prompt):
        raise PlaitError(f"{len(given)} in `{name}` for {len(prompt)} prompts: give one for each, or one that is no list for all")
    return list(given)


def _sample(text: str, image: Any, clip: Any, *, world: bool) -> dict[str, Any]:
    if isinstance(clip, list | tuple) and not clip:
        raise PlaitError("TheWorld.generate: `frames` is an empty list: give a clip, or leave it out")
    images = [] if image is None else list(image) if isinstance(image, list | tuple) else [image]
    return processing.sample(images, clip, world=world, messages=[{"role": "user", "content": text}])
