"""What `plait export` writes of a model, by layout, and what it reads back."""

from collections.abc import Callable
from pathlib import Path

from plait.families.theworld.config import Config
from plait.families.theworld.export.checks import checks
from plait.families.theworld.export.gemma import imported, write_hf
from plait.families.theworld.export.whole import as_transformers, check_encoder, save, write_whole, write_with_encoder
from plait.families.theworld.model import TheWorld

__all__ = ["as_transformers", "check_encoder", "checks", "exports", "imported", "save", "write_hf", "write_whole"]

exports: dict[str, Callable[[TheWorld, Config, Path, Path], list[str]]] = {
    "hf": write_hf,
    "theworld": write_whole,
    "theworld-with-encoder": write_with_encoder,
}
"""Writers by layout, as in `--to hf`: functions from (model, `model:` section, run's assets, new folder) to lines to print."""
