"""An average of any length after training, from the two that were saved on the way: in a run's checkpoints, and in RUN/averages.

Checkpoints that are deleted leave theirs behind in RUN/averages/step-N (checkpoint.py): the more moments there are, the better the fit.
The maths is that of power_ema.py.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from plait.engine import power_ema
from plait.engine.checkpoints import checkpoint, sharded_files
from plait.engine.power_ema import Profile, Saved
from plait.errors import PlaitError


@dataclass(frozen=True)
class Average:
    """Averaged weights by name (float32). `misfit`: distance of the profile that was reached from the wanted one, over its norm."""

    tensors: dict[str, Tensor]
    step: int
    moments: int
    """At how many steps averages had been saved."""
    misfit: float


def of_length(run: Path, length: float, step: int) -> Average:
    """The average of relative `length` at `step` of a run. Raises PlaitError when nothing was kept for it, or what was is damaged."""
    wanted = Profile(step, power_ema.exponent(length))
    folders = [folder for folder in _folders(run) if checkpoint.step_of(folder) <= step]
    found = [one for folder in folders for one in _saved(folder)]
    if not found:
        raise PlaitError(f"{run} kept no averages up to step {step}: train with optim.ema.post_hoc=true")
    for folder in folders:
        if faults := checkpoint.verify(folder):
            raise PlaitError(f"{faults[0]}; remove {folder} to go on without it")
    tensors = power_ema.reconstruct(found, length, step)
    return Average(tensors, step, len(folders), power_ema.misfit([one.profile for one in found], wanted))


def forget(run: Path, after: int) -> None:
    """Remove what was kept of steps beyond `after`, which the run is about to take again."""
    for folder in (run / checkpoint.AVERAGES).glob("step-*"):
        if checkpoint.step_of(folder) > after:
            shutil.rmtree(folder)


def _folders(run: Path) -> list[Path]:
    """Whatever holds averages, by step; of a step that is kept twice, the checkpoint."""
    kept = {folder.name: folder for folder in (run / checkpoint.AVERAGES).glob("step-*")}
    return sorted((kept | {folder.name: folder for folder in checkpoint.published(run)}).values(), key=checkpoint.step_of)


def _saved(folder: Path) -> list[Saved]:
    found = checkpoint.read(folder)
    listed = list(found.manifest["files"])

    def one(group: str, length: float) -> Saved:
        names = frozenset(sharded_files.sizes(folder, group, listed))
        return Saved(Profile(found.step, power_ema.exponent(length)), names, lambda: found.tensors(group))

    return [saved for group, length in power_ema.KEPT.items() if (saved := one(group, length)).names]
