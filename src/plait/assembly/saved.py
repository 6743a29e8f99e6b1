"""Open a run's checkpoint: its configuration, and its trained model; keep the model's settings beside weights outside of a run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait import files
from plait.assembly import checkpoint_specs, overwritten
from plait.assembly.model import NO_NAMES, ModelBundle, build_model
from plait.assembly.run_configuration import open_of_checkpoint
from plait.config import signed
from plait.config.resolved import Resolved
from plait.config.schema import RunConfig
from plait.engine import blocks
from plait.engine.checkpoints import chain, checkpoint, post_hoc_ema, renames
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.placing import load_weights
from plait.errors import PlaitError

MODEL_SETTINGS = "plait.json"
"""File of an exported or consolidated folder: {"family": name, "model": `model:` section, ...}, as `settings` returns them."""
LEFT_OUT = "left_out"
"""Key in it of an exported folder: the components of which it lacks weights that its run trained."""


@dataclass(frozen=True)
class SavedModel:
    """A checkpoint, not opened yet, and the configuration of its run."""

    checkpoint: Checkpoint
    resolved: Resolved

    @property
    def config(self) -> RunConfig:
        """The settings of the stage that wrote the checkpoint."""
        stage: int = self.checkpoint.manifest["state"]["stage"]
        return self.resolved.stages[stage - 1].config


def locate(spec: str | Path) -> SavedModel:
    """Return the checkpoint that `spec` names (RUN, RUN@STEP, RUN/STAGE@best, a step folder), with its settings. No model is built.

    Raises PlaitError if there is no such checkpoint.
    """
    located = checkpoint_specs.locate(str(spec))
    return SavedModel(located, open_of_checkpoint(checkpoint.run_of(located.folder), located.folder))


def open_checkpoint(saved: SavedModel, ranks: Ranks, *, averaged: bool = True, length: float | None = None) -> ModelBundle:
    """Return the trained model of a checkpoint, in evaluation mode on the rank's device.

    `averaged`: load its EMA weights, of parameters that have them. `length`: load instead the post-hoc EMA (`post_hoc_ema.py`) that reaches
    back this fraction of the run, such as 0.05. Raises PlaitError if the run kept nothing to make that average from, and if its tokenizer
    or the frozen weights are not those that the checkpoint was trained with.
    """
    located, run = saved.checkpoint, checkpoint.run_of(saved.checkpoint.folder)
    if changed := chain.changed_asset(located):
        raise PlaitError(changed)
    bundle = build_model(saved.resolved.config, run, ranks, lambda: overwritten.shapes_of(located))
    former = renames.of_checkpoint(bundle.section.renames, located.manifest, bundle.base_hashes)
    check_frozen(located, bundle, saved.resolved.config.seed, former)
    groups = {"weights": located.tensors("weights")}
    if length is not None:
        groups["averages"] = post_hoc_ema.of_length(run, length, located.step).tensors
    elif averaged:
        groups["averages"] = located.tensors("ema")
    for tensors in renames.mapped(groups, former).values():
        load_weights(bundle.model, tensors)
    if bundle.adapters is not None:
        bundle.adapters.begin({former.get(name, name) for name in located.manifest["state"]["trained"]})
    bundle.model.to(ranks.device).eval()
    blocks.cast_inputs(bundle.blocks, saved.config.train.residual_dtype)
    return bundle


def check_frozen(saved: Checkpoint, bundle: ModelBundle, seed: int, former: Mapping[str, str] = NO_NAMES) -> None:
    """Raise PlaitError if the model's frozen weights, as built with `seed`, are not those that the checkpoint was trained with.

    `former`: {name of a parameter in the checkpoint: its name now}, of those that were renamed.
    """
    trained = {former.get(name, name) for name in saved.manifest["state"]["trained"]}
    if bundle.frozen_xxh3(trained, {now: then for then, now in former.items()}) != saved.manifest["frozen_xxh3"]:
        seeded = f"{saved.manifest['base']}, or another seed than {seed}, from which random ones are drawn"
        raise PlaitError(f"the frozen weights are not those that {saved.folder} was trained against: {seeded}")


def settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide what a model is and how it is asked, as a configuration has them, for `write_model_settings`."""
    more: dict[str, Any] = {} if config.data.max_tokens is None else {"data": {"max_tokens": config.data.max_tokens}}
    more |= {"adapters": {name: one.model_dump() for name, one in config.adapters.items()}} if config.adapters else {}
    own = {"family": config.family, "model": config.model, "seed": config.seed, "train": {"precision": config.train.precision}}
    return {**own, **more}


def write_model_settings(folder: Path, told: Mapping[str, Any]) -> None:
    """Write what `settings` returns, and what exported.py adds to it, to plait.json in a folder of weights outside of a run."""
    files.write_json(folder / MODEL_SETTINGS, told)


def run_settings(folder: Path) -> Resolved | None:
    """Return the settings of the run of a checkpoint's folder; None without its configuration. Raises PlaitError if it cannot be read."""
    run = checkpoint.run_of(folder)
    told = (run / signed.NAME).is_file() or (folder / signed.COPY).is_file()
    return open_of_checkpoint(run, folder) if told else None


def model_settings(folder: Path) -> tuple[str, Mapping[str, Any]] | None:
    """Return (family, `model:` section) of a checkpoint's run, or from a folder's plait.json; None if there is neither.

    Raises PlaitError for a file that cannot be read.
    """
    path = folder / MODEL_SETTINGS
    try:
        run = run_settings(folder)
        told = settings(run.config) if run is not None else json.loads(path.read_bytes()) if path.is_file() else None
        return None if told is None else (str(told["family"]), dict(told["model"]))
    except (ValueError, KeyError, TypeError) as error:
        raise PlaitError(f"{path} is damaged: {error}") from error


def left_out(folder: Path) -> list[str]:
    """Return the components of which an exported folder lacks weights that its run trained. Raises PlaitError for a damaged plait.json."""
    path = folder / MODEL_SETTINGS
    try:
        return [str(name) for name in json.loads(path.read_bytes()).get(LEFT_OUT, [])] if path.is_file() else []
    except (ValueError, AttributeError, TypeError) as error:
        raise PlaitError(f"{path} is damaged: {error}") from error
