"""How `plait export --check transformers` asks the layouts of this family: chats with pictures, and a clip where the world takes one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from plait.engine.parallel.distributed import to_device
from plait.families.module_contracts import Check
from plait.families.theworld.config import Config
from plait.families.theworld.export import gemma, whole
from plait.families.theworld.generate import answers
from plait.families.theworld.hf import encoder_weights
from plait.families.theworld.inputs import WORLD_OF, Inputs
from plait.families.theworld.model import TheWorld
from plait.families.theworld.pretrained import held

MAX_NEW_TOKENS = 16
_CLIP_FRAMES = 9


def _of_gemma(model: TheWorld, config: Config, assets: Path) -> dict[str, Tensor]:
    """Return Gemma's weights, converted in place to the dtype that the export has."""
    nn.Module.to(model.gemma, dtype=gemma.base_dtype(model))
    return dict(model.gemma.named_parameters())


def _of_whole(model: TheWorld, config: Config, assets: Path) -> dict[str, Tensor]:
    """Return all weights, Gemma's converted in place to the dtype that the export has."""
    nn.Module.to(model.gemma, dtype=gemma.base_dtype(model))
    named = whole.as_transformers(model, config, assets)[0].named_parameters()
    return {name: value for name, value in named if encoder_weights.used(name)}


def _asked(inputs: Inputs, files: Sequence[Path], *, world: bool) -> list[Any]:
    """Return chats: about one picture, about two, and about none; `world`: with a clip where the world encoder needs one."""
    chats = []
    for ask, paths in (("How many circles are there?", files[:1]), ("Which of the two is larger?", files[1:3]), ("Name a colour.", [])):
        parts: list[dict[str, Any]] = [{"type": "image", "path": str(path)} for path in paths]
        if world and paths and inputs.config.world is not None and inputs.config.world.steps:
            parts.append({"type": "video", "video": [str(files[frame % len(files)]) for frame in range(_CLIP_FRAMES)]})
        chats.append([{"role": "user", "content": [*parts, {"type": "text", "text": ask}]}])
    return chats


def _results(model: TheWorld, inputs: Inputs, chat: Sequence[Mapping[str, Any]], *, world: bool) -> dict[str, Any]:
    """Return ids, logits and the greedy answer of a chat; `world` False: as Gemma alone has them."""
    parts = chat[-1]["content"]
    sample: dict[str, Any] = {
        "id": "check",
        "images": [Path(part["path"]).read_bytes() for part in parts if part["type"] == "image"],
        "messages": [{"role": "user", "content": "".join(part.get("text", "") for part in parts)}],
        "fields": {},
        "frames": [Path(path).read_bytes() for part in parts for path in part.get("video", ())],
    }
    example = inputs.prompt(sample if world else {**sample, WORLD_OF: None})
    batch = to_device(inputs.collate([example], left=True), model.gemma.device)
    logits = model.logits(model.hidden(model.embed(batch), batch))
    answer = answers(model, inputs, [example], max_new_tokens=[MAX_NEW_TOKENS])[0]
    return {"ids": batch["ids"], "logits": logits, "answer": answer}


def _alone(inputs: Inputs, files: Sequence[Path]) -> list[Any]:
    """Return chats for Gemma's own processor: with the system text, and pictures of its size, as it resizes otherwise (within 2 of 255)."""
    for path in files:
        with Image.open(path) as picture:
            picture.resize((inputs.image_size, inputs.image_size)).save(path)
    system = [{"role": "system", "content": [{"type": "text", "text": inputs.config.system}]}] if inputs.config.system else []
    return [[*system, *chat] for chat in _asked(inputs, files, world=False)]


def _with_world(inputs: Inputs, files: Sequence[Path]) -> list[Any]:
    return _asked(inputs, files, world=True)


def _of_alone(model: TheWorld, inputs: Inputs, chat: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return _results(model, inputs, chat, world=False)


def _of_world(model: TheWorld, inputs: Inputs, chat: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return _results(model, inputs, chat, world=True)


def _stops(model: TheWorld, inputs: Inputs) -> dict[str, Any]:
    return {"eos_token_id": gemma.generation(model, inputs.chat.stops).eos_token_id}


_WHOLE = Check("transformers", _of_whole, _with_world, _of_world, _stops, register="plait.hf", unused=held.UNUSED)
checks = {"hf": Check("transformers", _of_gemma, _alone, _of_alone, _stops), "theworld": _WHOLE, "theworld-with-encoder": _WHOLE}
