"""What a run directory or one of its checkpoints stands for, opened again: to judge it, ask it, compare it."""

from pathlib import Path

from plait.assembly import parts
from plait.assembly.configuration import open_run_config
from plait.assembly.parts import Parts
from plait.config.schema import RunConfig
from plait.engine.checkpoints import checkpoint, post_hoc_ema
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import load_weights
from plait.errors import PlaitError


def checkpoint_at(path: Path) -> Checkpoint:
    """The intact checkpoint of a step folder, stage folder or run. Raises PlaitError when there is nothing at `path`."""
    if not path.exists():
        raise PlaitError(f"{path} does not exist; give a run directory or one of its step folders")
    return checkpoint.locate(path)


def settings(path: Path) -> tuple[Checkpoint, RunConfig]:
    """The checkpoint at `path`, and the configuration of the stage it was written in, without building its model."""
    found = checkpoint_at(path)
    resolved = open_run_config(found.folder.parent.parent)
    return found, resolved.stages[found.manifest["state"]["stage"] - 1].config


def open_checkpoint(path: Path, ranks: Ranks, *, averaged: bool = True, length: float | None = None) -> tuple[Parts, Checkpoint, RunConfig]:
    """The trained model of a checkpoint (a step folder, stage folder or run) with its averaged weights when it has them, ready to judge.

    `length`: with the average of this relative length instead, made of what `optim.ema.post_hoc` kept.
    Also the checkpoint, and the configuration of the stage it was written in.
    """
    found = checkpoint_at(path)
    resolved = open_run_config(found.folder.parent.parent)
    built = parts.build(resolved.config, found.folder.parent.parent, ranks)
    load_weights(built.model, found.tensors("weights"))
    if length is not None:
        load_weights(built.model, post_hoc_ema.of_length(found.folder.parent.parent, length, found.step).tensors)
    elif averaged:
        load_weights(built.model, found.tensors("ema"))
    built.model.to(ranks.device).eval()
    return built, found, resolved.stages[found.manifest["state"]["stage"] - 1].config
