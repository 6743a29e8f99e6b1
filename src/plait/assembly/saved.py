"""Open a run's checkpoint: its configuration, and its trained model; keep the model's settings beside weights outside of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait import files
from plait.assembly import checkpoint_specs, overwritten
from plait.assembly.model import ModelBundle, build_model
from plait.assembly.run_configuration import open_run_config
from plait.config.schema import RunConfig
from plait.engine.checkpoints import checkpoint, post_hoc_ema
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import load_weights
from plait.errors import PlaitError

MODEL_SETTINGS = "plait.json"
"""File of an exported or consolidated folder: {"family": name, "model": `model:` section}, to compare with a run that starts from it."""


def settings(spec: str | Path) -> tuple[Checkpoint, RunConfig]:
    """Return the checkpoint that `spec` names (RUN, RUN@STEP, RUN/STAGE@best, a step folder), and the settings of the stage that wrote it.

    No model is built. Raises PlaitError if there is no such checkpoint.
    """
    located = checkpoint_specs.locate(str(spec))
    resolved = open_run_config(checkpoint.run_of(located.folder))
    return located, resolved.stages[located.manifest["state"]["stage"] - 1].config


def open_checkpoint(
    spec: str | Path, ranks: Ranks, *, averaged: bool = True, length: float | None = None
) -> tuple[ModelBundle, Checkpoint, RunConfig]:
    """Return the trained model of the checkpoint that `spec` names (in evaluation mode), the checkpoint, and its stage's configuration.

    `averaged`: load its EMA weights, of parameters that have them. `length`: load instead the post-hoc EMA of this relative length, such as
    0.05 (`post_hoc_ema.py`). Raises PlaitError if there is no such checkpoint, or the run kept nothing to make that average from.
    """
    located, config = settings(spec)
    run = checkpoint.run_of(located.folder)
    bundle = build_model(open_run_config(run).config, run, ranks, lambda: overwritten.shapes_of(located))
    load_weights(bundle.model, located.tensors("weights"))
    if length is not None:
        load_weights(bundle.model, post_hoc_ema.of_length(run, length, located.step).tensors)
    elif averaged:
        load_weights(bundle.model, located.tensors("ema"))
    bundle.model.to(ranks.device).eval()
    return bundle, located, config


def write_model_settings(folder: Path, family: str, model: Mapping[str, Any]) -> None:
    """Write `family` and `model`, the `model:` section, to plait.json in a folder of weights outside of a run."""
    files.write_json(folder / MODEL_SETTINGS, {"family": family, "model": model})


def model_settings(folder: Path) -> tuple[str, Mapping[str, Any]] | None:
    """Return (family, `model:` section) from the config.yaml of a checkpoint's run, or a folder's plait.json; None if there is neither.

    Raises PlaitError for a file that cannot be read.
    """
    run, path = checkpoint.run_of(folder), folder / MODEL_SETTINGS
    if (run / "config.yaml").is_file():
        config = open_run_config(run).config
        return config.family, config.model
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_bytes())
        return str(told["family"]), dict(told["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise PlaitError(f"{path} is damaged: {error}") from error
