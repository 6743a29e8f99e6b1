"""Build a configuration's model without weights, on the meta device, and find the files that its inputs need."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants

from plait.assembly.adapters import layers
from plait.assembly.model import ModelBundle, write_assets
from plait.config.resolved import Resolved
from plait.config.schema import RunConfig
from plait.errors import PlaitError
from plait.families import registry
from plait.training.planning.entries import on_hub, training_entries


def meta_bundle(config: RunConfig, assets: Path) -> ModelBundle:
    """Return the model of `config` on the meta device, which takes no memory, with its family. No weights are read.

    `assets`: the folder of the model's own files, such as a tokenizer, which need not be there. Raises PlaitError if the sizes of a
    pretrained part are not known, such as those of a Hub model that is not accessible.
    """
    family = registry.load(config.family)
    section = family.Config.model_validate(config.model)
    with torch.device("meta"):
        model = family.build(section, assets, seed=0)
    adapters = layers.add(family, model, config.adapters, config.seed) if config.adapters else None
    return ModelBundle(family, section, assets, model, {}, None, adapters=adapters)


@contextlib.contextmanager
def assets_of(resolved: Resolved) -> Iterator[Path]:
    """Yield the folder of the model's own files: the run's, or a temporary one with what its data gives.

    It is empty where there is no such data, or only data that would be downloaded.
    """
    own = Path(str(resolved.config.run)) / "assets"
    if own.is_dir():
        yield own
        return
    with tempfile.TemporaryDirectory() as folder:
        assets = Path(folder) / "assets"
        with contextlib.suppress(PlaitError), without_downloads():
            if not any(map(on_hub, training_entries(resolved.config))):
                write_assets(resolved.config, assets)
        yield assets


@contextlib.contextmanager
def without_downloads() -> Iterator[None]:
    """Have the Hub's client use its cache alone inside the block."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
