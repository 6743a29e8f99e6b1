"""The members of family molmo that plait calls; `families/contract.py` explains each. `assets` is the folder of the model's files."""

from collections.abc import Callable, Iterable
from pathlib import Path

from plait.families.limits import Limits, language_positions
from plait.families.molmo import towers
from plait.families.molmo.config import DEBUG, SOURCES, Config
from plait.families.molmo.features.crops import frozen_features
from plait.families.molmo.generate import generate
from plait.families.molmo.inputs import Inputs
from plait.families.molmo.inspection import inspect
from plait.families.molmo.lengths import token_lengths
from plait.families.molmo.loss import Loss
from plait.families.molmo.model import blocks, build, components
from plait.families.molmo.options import GenerateOptions
from plait.families.molmo.published import build_over
from plait.families.molmo.tiny import write_tokenizer

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
    "token_lengths",
]

never_trained: frozenset[str] = frozenset()


def prepare(config: Config, assets: Path, texts: Callable[[], Iterable[str]]) -> None:
    """Train a tokenizer on `texts()` and write it to `assets`, if the model is `debug` (small, random) and there is none yet."""
    folder = assets / towers.TOKENIZER
    if config.language == DEBUG and not folder.exists():
        write_tokenizer(folder, texts())


def base(config: Config) -> list[dict[str, str | None]]:
    """Return the pretrained parts, language and vision: [{'part': 'language', 'name': Hub name or path, 'revision': or None}, ...]."""
    language = SOURCES.get(config.language, config.language)
    vision = config.vision_source or config.tower.source
    return [
        {"part": "language", "name": language, "revision": config.language_revision},
        {"part": "vision", "name": vision, "revision": config.vision_revision},
    ]


def limits(config: Config) -> Limits:
    """Return what settings and data are checked against: longest sequence, side of a crop (px); vision and connector need `images`."""
    return Limits(language_positions(towers.language_config(config)), config.tower.image, {"vision": ["images"], "connector": ["images"]})
