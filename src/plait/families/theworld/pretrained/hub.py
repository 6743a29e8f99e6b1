"""Find a world encoder in a local directory or a Hub repository: its folder there, its configuration, its weights."""

import contextlib
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError, safe_open

from plait.config import hub_errors
from plait.errors import PlaitError, first_names
from plait.families.theworld.pretrained import classes, held, published
from plait.families.theworld.pretrained.encoder import WorldEncoder
from plait.nn.connectors import seeded
from plait.nn.pretrained import weights_hash

MAIN = "main"
"""The Hub's name of an unpinned revision."""
_CONFIG = "config.json"
_OF_TRANSFORMERS = {"dinov3_vit": "DINOv3ViTModel", "dinov3_convnext": "DINOv3ConvNextModel", "vjepa2": "VJEPA2Model"}
_SETTING = "model.world.source"


def settings(source: str, revision: str | None) -> dict[str, Any]:
    """Return the configuration of the encoder at `source`, as classes.py says; nothing is downloaded for published ones.

    Raises PlaitError for one that cannot be loaded, and for a class that is no encoder.
    """
    published.check_branch(source, revision, "model.world.source: ", "--model.world.revision=")
    return published.encoder(source) or _read(source, revision)


@lru_cache(maxsize=8)
def _read(source: str, revision: str | None) -> dict[str, Any]:
    """Return the configuration that stands beside the weights, also of published ones. Raises PlaitError as `settings` does."""
    inside, path = folder(source, revision), Path(source)
    with loading(_SETTING, source):
        path = path / (inside or "") / _CONFIG
        if not Path(source).is_dir():
            path = Path(hf_hub_download(source, _CONFIG, subfolder=inside, revision=revision))
        text = path.read_text(encoding="utf-8")
    try:
        described: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise PlaitError(f"model.world.source: {path} is no JSON ({error}): save or download it again") from error
    if described.get("model_type") == held.WHOLE:
        return held.encoder(described, source)
    described[classes.CLASS] = _class_of(described, source)
    if described[classes.CLASS] not in _OF_TRANSFORMERS.values():
        return described
    pixels = importlib.import_module("plait.families.theworld.pretrained.pixels")
    found: dict[str, Any] = pixels.published(source, _where(source, revision))
    return described | found


def load(source: str, revision: str | None, image_size: int) -> WorldEncoder:
    """Return the encoder at `source` with its weights, for pictures of `image_size` pixels.

    Raises PlaitError if it cannot be loaded, or its sizes are not those published under its name.
    """
    described, known = _read(source, revision), settings(source, revision)
    own, planned = (classes.grid(each, image_size, 0) for each in (described, known))
    if own != planned:
        raise PlaitError(f"model.world.source: {source} is not as published ({own}, not {planned}): save it to a directory, and name that")
    if held.is_whole(source):
        return _held(described, Path(source), image_size)
    with loading(_SETTING, source):
        model = classes.file_of(described).read(source, _where(source, revision), described, image_size)
    return classes.wrapped(model, described, image_size)


def _held(described: Mapping[str, Any], export: Path, image_size: int) -> WorldEncoder:
    """Return the encoder whose weights an export holds; those that nothing uses are random. Raises PlaitError where others are missing."""
    encoder, stored = seeded(0, lambda: random(described, image_size)), {}
    with loading(_SETTING, str(export)):
        for path in sorted(export.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                stored.update({name[len("world.") :]: file.get_tensor(name) for name in file.keys() if name.startswith("world.")})  # noqa: SIM118
    names = [name for name, _ in encoder.named_parameters() if not re.match(held.UNUSED, f"world.{name}")]
    if missing := [name for name in names if name not in stored]:
        raise PlaitError(f"model.world.source: {export} lacks {len(missing)} of its world encoder's weights: {first_names(missing)}")
    encoder.load_state_dict(stored, strict=False)
    return encoder.eval()


def random(described: Mapping[str, Any], image_size: int) -> WorldEncoder:
    """Return an encoder with random weights, or none on the meta device. `described`: as of `settings`."""
    return classes.wrapped(classes.file_of(described).make(described, image_size), described, image_size)


@lru_cache(maxsize=8)
def pin(source: str, revision: str | None) -> dict[str, Any]:
    """Return what identifies an encoder: {"source", "revision", "class", "xxh3" of a local folder's weights, else None}.

    Of an encoder that an export holds, that of where its run had it.
    """
    if (first := held.origin(source)) is not None:
        return first
    path, named = Path(source) / (folder(source, revision) or ""), settings(source, revision)[classes.CLASS]
    return {"source": source, "revision": revision, "class": named, "xxh3": weights_hash(path) if path.is_dir() else None}


def folder(source: str, revision: str | None) -> str | None:
    """Return "vae", the folder of a pipeline with its VAE; None where the encoder stands alone, as those of transformers do."""
    if (Path(source) / _CONFIG).is_file():
        return None
    if Path(source).is_dir():
        return "vae"
    known = published.encoder(source)
    if known is None:
        return _asked(source, revision)
    return None if known[classes.CLASS] in _OF_TRANSFORMERS.values() else "vae"


def _class_of(described: dict[str, Any], source: str) -> str:
    """Return the name of an encoder's class. Raises PlaitError where that of `source` is not known."""
    named = described.get(classes.CLASS) or _OF_TRANSFORMERS.get(str(described.get("model_type")))
    if named not in classes.FILES:
        kind = named or described.get("model_type")
        raise PlaitError(f"model.world.source: {source} holds a {kind}, which is no world encoder here; known: {', '.join(classes.FILES)}")
    return str(named)


def _where(source: str, revision: str | None) -> dict[str, str]:
    """Return the arguments of a library's `from_pretrained` that find the encoder."""
    return {"subfolder": folder(source, revision) or "", "revision": revision or MAIN}


@lru_cache(maxsize=8)
def _asked(source: str, revision: str | None) -> str | None:
    """Return the folder of a repository with a configuration, "vae" or None, the top; "vae" where the Hub does not say."""
    for inside in ("vae", None):
        try:
            hf_hub_download(source, _CONFIG, subfolder=inside, revision=revision)
        except EntryNotFoundError:
            continue
        except (OSError, HFValidationError):
            break  # what keeps it from being read is told where it is loaded
        return inside
    return "vae"


@contextlib.contextmanager
def loading(setting: str, value: str) -> Iterator[None]:
    """Turn the long errors of the Hub libraries into one line. Raises PlaitError, which names the `setting` and its `value`."""
    try:
        yield
    except (OSError, HFValidationError, SafetensorError) as error:  # absent, gated, torn; or no name at all
        reason = hub_errors.reason(error, value)
        raise PlaitError(f"{setting}: cannot load {value!r} as a Hub name or a local directory: {reason}") from error
