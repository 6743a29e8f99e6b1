"""The members of family theworld that plait calls; `families/contract.py` explains each. `assets` is the folder of the model's files."""

from collections.abc import Callable, Iterable
from pathlib import Path

from plait.families.limits import Limits, language_positions
from plait.families.theworld import towers
from plait.families.theworld.config import TINY, Config
from plait.families.theworld.features import frozen_features
from plait.families.theworld.generate import generate
from plait.families.theworld.inputs import Inputs
from plait.families.theworld.inspection import inspect, token_lengths
from plait.families.theworld.loss import Loss
from plait.families.theworld.model import NEVER_TRAINED, blocks, build, build_over, components
from plait.families.theworld.options import GenerateOptions
from plait.families.theworld.pretrained import hub
from plait.families.theworld.pretrained.recomputed import recomputed
from plait.families.theworld.tiny import write_tokenizer

__all__ = [
    "Config",
    "GenerateOptions",
    "Inputs",
    "Loss",
    "base",
    "blocks",
    "build",
    "build_over",
    "components",
    "frozen_features",
    "generate",
    "inspect",
    "limits",
    "never_trained",
    "prepare",
    "recomputed",
    "token_lengths",
]

never_trained = NEVER_TRAINED


def prepare(config: Config, assets: Path, texts: Callable[[], Iterable[str]]) -> None:
    """Train a tokenizer and write it to `assets`, if the model is `tiny` (small, random) and there is none yet.

    `texts`: a function that yields texts of training samples, called only to train.
    """
    folder = assets / towers.TOKENIZER
    if config.base == TINY and not folder.exists():
        write_tokenizer(folder, texts(), config.tiny.vocabulary)


def base(config: Config) -> list[dict[str, str | None]]:
    """Return the pretrained parts, gemma and world: [{'part': 'gemma', 'name': Hub name or path, 'revision': commit or None}, ...].

    The world encoder has a key 'folder' too: its folder in the repository of a whole pipeline, or None.
    """
    parts: list[dict[str, str | None]] = [{"part": "gemma", "name": config.base, "revision": config.base_revision}]
    if config.world is not None:
        world = config.world
        folder = None if world.tiny is not None else hub.folder(world.source, world.revision)
        parts.append({"part": "world", "name": world.source, "revision": world.revision, "folder": folder})
    return parts


def limits(config: Config) -> Limits:
    """Return what settings and data are checked against: Gemma's longest sequence, its images' side (px), and what needs images.

    Raises PlaitError for a part that cannot be found, and for a world encoder that the sizes in its section do not fit.
    """
    needs = {"vision": ["images"]}
    if config.world is not None:
        towers.encoder_grid(config, config.world)
        needs |= {"world": ["images", "frames"], "projector": ["images", "frames"]}
        needs |= {"model.world": ["images", "frames"]} | ({"model.world.steps": ["frames", "rollout"]} if config.world.steps else {})
    idle = {"model.world": "off", "model.world.steps": "0"}
    gemma = towers.gemma_config(config)
    return Limits(language_positions(gemma), towers.image_sizes(gemma)[0], needs, idle)
