"""The world encoder of a whole export: named by a pin, as a frozen part, or held in its files. Which of its weights are used at all.

A pin is {"source", "revision", "class", "xxh3"}: a Hub name with its commit, or a folder; its class; a hash of the weights used.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from plait.errors import PlaitError
from plait.families.theworld import towers
from plait.families.theworld.config import Config, WorldEncoderConfig
from plait.families.theworld.pretrained import held, hub
from plait.families.theworld.pretrained.encoder import WorldEncoder

ENCODER = r"^world\."
"""Pattern of the names of its weights in an export; of those that nothing uses there is `held.UNUSED`."""


def used(name: str) -> bool:
    """Return whether the weight of this name in an export is one that the model uses."""
    return re.match(held.UNUSED, name) is None


def elsewhere(name: str) -> bool:
    """Return whether the weight of this name in an export is of another part than the world encoder."""
    return re.match(ENCODER, name) is None


def pin_of(encoder: WorldEncoder, section: Config, known: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the pin of a model's world encoder, or None where no other place has its weights.

    That is so of one that is random or was trained. Reads the source's weights, to compare, unless the pin that is `known` fits. `section`:
    the `model:` section. Raises PlaitError for a source that cannot be loaded.
    """
    world = section.world
    assert world is not None
    if known is not None and fits(encoder, known):
        return known
    if world.tiny is not None:
        return None
    mark = weights_hash(encoder)
    if weights_hash(towers.load_encoder(section, world, 0)) != mark:
        return None
    return {"source": world.source, "revision": _commit(world) or world.revision, "class": encoder.grid.name, "xxh3": mark}


def fits(encoder: WorldEncoder, pin: dict[str, Any]) -> bool:
    """Return whether an encoder has the weights that `pin` was made of."""
    return bool(weights_hash(encoder) == pin["xxh3"])


def load(encoder: WorldEncoder, section: Config, pin: dict[str, Any]) -> None:
    """Fill a model's world encoder with the weights that `pin` names. Raises PlaitError where they cannot be loaded or are others."""
    assert section.world is not None
    world = section.world.model_copy(update={"source": pin["source"], "revision": pin["revision"]})
    loaded = towers.load_encoder(section, world, 0)
    if (mark := weights_hash(loaded)) != pin["xxh3"]:
        at = f" at {pin['revision']}" if pin["revision"] else ""
        raise PlaitError(
            f"the world encoder at {pin['source']}{at} is another than the model was trained with: its weights have the hash {mark}, not "
            f"{pin['xxh3']}; put the right one there, or export the run again as theworld-with-encoder, which holds it"
        )
    values = dict(loaded.named_parameters())
    for name, parameter in encoder.named_parameters():
        parameter.data = values[name].data.to(parameter.device)


def weights_hash(encoder: WorldEncoder) -> str:
    """Return a hash (xxh3) of the weights that are used, of names and float32 values; the encoder may be on any device."""
    state = xxhash.xxh3_64()
    for name, value in sorted(_used(encoder)):
        state.update(name.encode())
        state.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return state.hexdigest()


def _used(encoder: WorldEncoder) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in encoder.named_parameters() if used(f"world.{name}"))


def _commit(world: WorldEncoderConfig) -> str | None:
    """Return the commit of a Hub source, as the local cache knows it; None for a folder."""
    if Path(world.source).is_dir():
        return None
    file = "/".join(filter(None, (hub.folder(world.source, world.revision), "config.json")))
    path = try_to_load_from_cache(world.source, file, revision=world.revision)
    return Path(path).relative_to(Path(path).parents[len(Path(file).parts)]).parts[0] if isinstance(path, str) else None
