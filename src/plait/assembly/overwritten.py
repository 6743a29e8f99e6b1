"""Find the pretrained parts of a model whose weights a start overwrites, all of them. They need not be downloaded and read.

Shapes are {name of a parameter: shape}. A part, such as "language", is a module with pretrained weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plait.assembly import checkpoint_specs, hub_start, weight_files
from plait.config.schema import RunConfig
from plait.engine.checkpoints import checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.families import registry
from plait.families.contract import Family

Shapes = Mapping[str, torch.Size]


def shapes_of_start(config: RunConfig, run: Path, ranks: Ranks) -> Shapes:
    """Return the shapes, by parameter, of the weights that a run's start loads; {} if it begins from the pretrained parts alone.

    A new run loads the weights of `from:`; one that continues (`run`, its directory, has checkpoints), what all of its checkpoints hold.
    All ranks call this: a Hub repository is downloaded. Raises PlaitError for a `from:` that cannot be read.
    """
    family = registry.load(config.family)
    if config.from_ is None or family.build_over is None:
        return {}
    if folders := checkpoint.published(run):
        return _common([_of_checkpoint(folder) for folder in folders])
    spec = str(config.from_)
    downloaded = hub_start.fetch(spec, ranks)
    path, _ = checkpoint_specs.split(spec if downloaded is None else str(downloaded))
    if path.exists() and not checkpoint.is_step(path) and not checkpoint.published(checkpoint.run_of(path)):
        if not (path / "manifest.json").is_file():
            return _of_folder(path, config, family)
        return _of_checkpoint(path)
    return _of_checkpoint(checkpoint_specs.locate(str(path) if downloaded is not None else spec).folder)


def parts(family: Family, section: Any, assets: Path, loaded: Shapes) -> frozenset[str]:
    """Return the pretrained parts whose weights are all among `loaded`; none if a parameter outside of the parts is not loaded too.

    `section`: the `model:` section; `assets`: folder of the run's tokenizer and such. A part's parameters begin with its name, as in
    "language.". New parameters may be drawn at the scale of a part's weights, so one that is not loaded, and is of no part, needs them all.
    """
    if not loaded or family.build_over is None:
        return frozenset()
    left = {name for name, value in _on_meta(family, section, assets).named_parameters() if loaded.get(name) != value.shape}
    names = {str(part["part"]) for part in family.base(section)}
    touched = {name.partition(".")[0] for name in left}
    return frozenset(names - touched) if touched <= names else frozenset()


def _on_meta(family: Family, section: Any, assets: Path) -> nn.Module:
    with torch.device("meta"):
        return family.build(section, assets, seed=0)


def _of_folder(folder: Path, config: RunConfig, family: Family) -> Shapes:
    """Return the shapes of weights in another layout, under this model's names."""
    publisher = registry.publisher(config.family)
    weights = weight_files.empty(folder)
    if publisher is not None:
        section = family.Config.model_validate(config.model)
        weights = publisher.imported(weights, _on_meta(family, section, Path(str(config.run)) / "assets"))
    return {name: value.shape for name, value in weights.items()}


def _of_checkpoint(folder: Path) -> Shapes:
    """Return the shapes of a checkpoint's weights; {} for one that cannot be read, of which the start says more."""
    try:
        return {name: torch.Size(value.shape) for name, value in checkpoint.read(folder).stored("weights").items()}
    except (PlaitError, OSError):
        return {}


def _common(several: list[Shapes]) -> Shapes:
    """Return what is the same in all."""
    return {name: shape for name, shape in several[0].items() if all(other.get(name) == shape for other in several[1:])}
