"""What the folder of an export holds of the pretrained parts, which need not be read from elsewhere then.

A whole export (`plait export --to theworld`) holds Gemma's configuration and tokenizer, and of the world encoder its configuration, and
its weights where no pin names another place. Imports no torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.errors import PlaitError

WHOLE, GEMMA = "theworld", "gemma3"
"""`model_type` in config.json of a whole export, and of one in Gemma's own layout."""
UNUSED = r"^world\.(vae\.(?!encoder\.|quant_conv\.)|model\.(predictor\.|embeddings\.mask_token$))"
"""Pattern of names of the encoder's weights that nothing uses, as of a VAE the decoder, which no export holds."""


def settings(folder: str | Path) -> dict[str, Any]:
    """Return config.json of a folder; {} where there is none, or no JSON object."""
    try:
        told = json.loads((Path(folder) / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def is_whole(folder: str | Path) -> bool:
    """Return whether a folder is a whole export."""
    return settings(folder).get("model_type") == WHOLE


def within(section: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a `model:` section with `folder` in place of the sources of parts that it holds; tiny ones have none."""
    told = settings(folder)
    kind, world = told.get("model_type"), section["world"]
    if kind in (WHOLE, GEMMA) and section["base"] != "tiny" and (folder / "tokenizer.json").is_file():
        section = {**section, "base": str(folder), "base_revision": None}
    if kind == WHOLE and world and told.get("encoder_pin") is None and world["source"].partition(":")[0] != "tiny":
        section = {**section, "world": {**world, "source": str(folder), "revision": None}}
    return section


def gemma(folder: str) -> dict[str, Any] | None:
    """Return the sizes of Gemma in a whole export, as transformers' class takes them; None of any other name or folder."""
    told = settings(folder)
    return dict(told["gemma_config"]) if told.get("model_type") == WHOLE else None


def encoder(told: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return the configuration of the world encoder from `told`, config.json of a whole export. Raises PlaitError if it has no weights."""
    pin, described = told.get("encoder_pin"), told.get("encoder_config")
    if described is None or pin is not None:
        where = f"it names {pin['source']}, so name that" if pin else "its model has none"
        raise PlaitError(
            f"model.world.source: {folder} is an export without a world encoder: {where}, or export with theworld-with-encoder"
        )
    return dict(described)


def origin(folder: str | Path) -> dict[str, Any] | None:
    """Return the pin (hub.pin) of where a whole export's encoder was first read from; None where that is not known."""
    found: dict[str, Any] | None = settings(folder).get("encoder_origin")
    return found
