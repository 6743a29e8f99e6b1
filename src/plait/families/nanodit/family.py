"""The members of family nanodit that plait calls; `families/contract.py` explains each. `assets` is the folder of the model's files."""

from collections.abc import Callable, Iterable
from pathlib import Path

from plait.data.sources.metadata import METADATA
from plait.errors import PlaitError
from plait.families.limits import Limits
from plait.families.nanodit.config import Config
from plait.families.nanodit.generate import generate
from plait.families.nanodit.inputs import Inputs
from plait.families.nanodit.loss import Loss
from plait.families.nanodit.model import blocks, build, components
from plait.families.nanodit.monitors import monitors
from plait.families.nanodit.options import GenerateOptions
from plait.families.nanodit.pictures import inspect
from plait.files import expanded, write_whole

__all__ = [
    "Config",
    "GenerateOptions",
    "Inputs",
    "Loss",
    "base",
    "blocks",
    "build",
    "components",
    "generate",
    "inspect",
    "legend",
    "limits",
    "monitors",
    "never_trained",
    "prepare",
]

never_trained: frozenset[str] = frozenset()
legend = "The model learns to draw the picture out of noise, of which t is the share, given the caption and the image where a note says so."


def prepare(config: Config, assets: Path, texts: Callable[[], Iterable[str]]) -> None:
    """Copy metadata.json of the shards (files of precomputed latents) into `assets`, unless it is there. `texts` is not used.

    With it, prompts can be encoded and latents decoded without the shards. Raises PlaitError if `config` names a file that is missing.
    """
    path = assets / METADATA
    if config.metadata is None or path.exists():
        return
    source = expanded(config.metadata)
    source = source / METADATA if source.is_dir() else source
    if not source.is_file():
        raise PlaitError(
            f"model.metadata: no file {source.absolute()}; `plait data shard` writes metadata.json beside the buckets; a path of `model` "
            "is relative to the working directory"
        )
    write_whole(path, source.read_bytes())


def base(config: Config) -> list[dict[str, str | None]]:
    """Return [], because this family has no pretrained parts."""
    return []


def limits(config: Config) -> Limits:
    """Return what settings and data are checked against: in pixel space the exact side (px) that pictures get, for latents nothing."""
    return Limits(image_side=config.image_size if config.space == "pixels" else None)
