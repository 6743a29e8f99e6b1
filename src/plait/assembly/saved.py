"""Open a run's checkpoint: its configuration, and its trained model."""

from pathlib import Path

from plait.assembly.configuration import open_run_config
from plait.assembly.model import ModelBundle, build_model
from plait.config.schema import RunConfig
from plait.engine.checkpoints import checkpoint, post_hoc_ema
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import load_weights
from plait.errors import PlaitError


def checkpoint_at(path: Path) -> Checkpoint:
    """Return the intact checkpoint of a step folder, or the newest of a stage folder or run. Raises PlaitError where there is none."""
    if not path.exists():
        raise PlaitError(f"{path} does not exist; give a run directory or one of its step folders")
    return checkpoint.locate(path)


def settings(path: Path) -> tuple[Checkpoint, RunConfig]:
    """Return the checkpoint at `path` (a step or stage folder, or run), and the settings of the stage that wrote it; builds no model."""
    located = checkpoint_at(path)
    resolved = open_run_config(checkpoint.run_of(located.folder))
    return located, resolved.stages[located.manifest["state"]["stage"] - 1].config


def open_checkpoint(
    path: Path, ranks: Ranks, *, averaged: bool = True, length: float | None = None
) -> tuple[ModelBundle, Checkpoint, RunConfig]:
    """Build the trained model of a checkpoint (a step folder, stage folder or run), in evaluation mode.

    `averaged`: with its EMA weights where it has them. `length`: instead, with the post-hoc average of this relative length, such as 0.05
    (`post_hoc_ema.py`). Also returns the checkpoint, and the configuration of the stage it was written in.
    """
    located, config = settings(path)
    run = checkpoint.run_of(located.folder)
    bundle = build_model(open_run_config(run).config, run, ranks)
    load_weights(bundle.model, located.tensors("weights"))
    if length is not None:
        load_weights(bundle.model, post_hoc_ema.of_length(run, length, located.step).tensors)
    elif averaged:
        load_weights(bundle.model, located.tensors("ema"))
    bundle.model.to(ranks.device).eval()
    return bundle, located, config
