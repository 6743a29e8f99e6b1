"""Find the pretrained parts of a model whose weights a start overwrites, all of them. They need not be downloaded and read.

Shapes are {name of a parameter: shape}. A part, such as "language", is a module with pretrained weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from plait.assembly import checkpoint_specs, hub_start, weight_files
from plait.config.schema import RunConfig
from plait.engine.checkpoints import checkpoint
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.families import offers, registry
from plait.families.contract import Family

Shapes = Mapping[str, torch.Size]
"""{name of a parameter: its shape}."""


def shapes_of_start(config: RunConfig, run: Path, ranks: Ranks) -> Shapes:
    """Return the shapes, by parameter, of the weights that a run's start loads; {} if it begins from the pretrained parts alone.

    A new run loads the weights of `from:`; one that continues (`run`, its directory, has checkpoints), what all of its checkpoints hold.
    Only headers of files are read. All ranks call this, once `run`/assets is written: a Hub repository is downloaded. Raises PlaitError on
    all of them for a `from:` that cannot be read.
    """
    family = registry.load(config.family)
    if config.from_ is None or family.build_over is None:
        return {}
    continues = ranks.agree(bool(checkpoint.published(run)))
    downloaded = None if continues else hub_start.fetch(str(config.from_), ranks)
    shapes: Shapes = {}
    fault: str | None = None
    if ranks.first:
        try:
            shapes = _common(checkpoint.published(run)) if continues else _of_from(str(downloaded or config.from_), config, run / "assets")
        except PlaitError as error:
            fault = str(error)
    shapes, fault = ranks.agree((shapes, fault))
    if fault is not None:
        raise PlaitError(fault)
    return shapes


def shapes_of(saved: Checkpoint) -> Shapes:
    """Return the shapes, by parameter, of a checkpoint's weights."""
    return {name: torch.Size(value.shape) for name, value in saved.stored("weights").items()}


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


def _of_from(spec: str, config: RunConfig, assets: Path) -> Shapes:
    """Return the shapes of the weights that `spec`, a `from:`, names here: a run, one of its checkpoints, or a folder."""
    path, mark = checkpoint_specs.split(spec)
    if not path.exists():
        checkpoint_specs.locate(spec, checkpoint_specs.START)  # says what is not there, and what is
    of_run = [folder for folder in checkpoint.published(checkpoint.run_of(path)) if path in folder.parents]
    if mark:
        return _common([checkpoint_specs.marked(path, mark)])
    if of_run:
        return _common(of_run)
    if checkpoint.is_step(path) or (path / "manifest.json").is_file():
        return _common([path])
    return _of_folder(path, config, assets)


def _of_folder(folder: Path, config: RunConfig, assets: Path) -> Shapes:
    """Return the shapes of weights in another layout, under this model's names."""
    publisher = offers.publisher(config.family)
    weights = weight_files.empty(folder)
    if publisher is not None:
        family = registry.load(config.family)
        weights = publisher.imported(weights, _on_meta(family, family.Config.model_validate(config.model), assets))
    return {name: value.shape for name, value in weights.items()}


def _common(folders: Sequence[Path]) -> Shapes:
    """Return what the weights of these checkpoints have in common, as a start may pass over the newest; damaged ones do not count.

    {} where none is intact, of which the start says more, or where the disk fails, as a later look may find the file.
    """
    several = []
    for folder in folders:
        try:
            several.append(shapes_of(checkpoint.read(folder)))
        except OSError:
            return {}
        except (PlaitError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error.__cause__, OSError):
                return {}
    first, *others = several or [{}]
    return {name: shape for name, shape in first.items() if all(other.get(name) == shape for other in others)}
