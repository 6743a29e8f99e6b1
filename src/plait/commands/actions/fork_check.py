"""Check that `plait train` would continue a fork. What it refuses before its first step, the fork refuses before it makes a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plait.assembly import overwritten
from plait.assembly.model import build_model
from plait.config.resolved import Resolved
from plait.engine.checkpoints import migrate
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.checkpoints.rundir import within
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import GROUPS
from plait.errors import PlaitError
from plait.training import start
from plait.training.stage_plan import plan_stage, wanted_figures

_PLANNED = ("seed", "family", "preset", "model", "trainable", "data", "evaluate", "optim.components", "optim.schedule", "stages")
"""Settings that have to fit the model, the data or the checkpoint. Rates, lengths and intervals fit any."""
_HERE = Ranks(0, 1, torch.device("cpu"))


def check(folder: Path, saved: Checkpoint, after: Resolved, differences: Sequence[tuple[str, Any, Any]]) -> list[str]:
    """Raise PlaitError if the settings `after` cannot continue the checkpoint `saved`; return what of it would be lost, a line each.

    `folder`: the fork, which has the parent's assets. `differences`: (dotted key, value before, value after). The model is built and the
    data of the stages ahead opened only where a difference could matter to them.
    """
    state = saved.manifest["state"]
    start.check_stage(saved, after.stages)
    ahead = after.stages[state["stage"] - 1 :]
    for view in ahead:
        if not view.config.evaluate and (wanted := wanted_figures(view.config)):
            raise PlaitError(f"no bench of evaluate gives a figure {wanted[0]!r}; they give none")
    if not any(within(key, section) for key, _, _ in differences for section in _PLANNED):
        return []
    bundle = build_model(after.config, folder, _HERE, lambda: overwritten.shapes_of(saved))
    start.check_frozen(saved, bundle, after.config.seed)
    for view in ahead:
        plan_stage(view, bundle)
    tensors = {group: saved.stored(group) for group in GROUPS}
    return migrate.inexact(start.migration_table(tensors, set(state["trained"]), ahead[0].config, bundle))
