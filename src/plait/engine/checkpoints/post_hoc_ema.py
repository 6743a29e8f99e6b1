"""Post-hoc EMA: build the averaged weights of any length after training, from averages saved in a run's checkpoints and RUN/averages.

An average's length says how far back it reaches. The averages of deleted checkpoints are kept in RUN/averages/step-N (`checkpoint.py`): the
more steps there are, the better the fit. The maths is in `averages.py`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from plait.engine import averages
from plait.engine.averages import Profile, SavedAverage
from plait.engine.checkpoints import checkpoint, integrity, stored_files
from plait.errors import PlaitError


@dataclass(frozen=True)
class Average:
    """Averaged weights by name (float32) at `step` of the run. `misfit`: |fitted - wanted| / |wanted| of the weighting over updates."""

    tensors: dict[str, Tensor]
    step: int
    saves: int
    """The number of steps at which averages had been saved."""
    misfit: float


def of_length(run: Path, length: float, step: int) -> Average:
    """Reconstruct the average of a run's weights of a `length` chosen after training, at `step` of the run directory `run`.

    `length`: standard deviation of the average's weighting over updates, as a fraction of the run so far, such as 0.05. Raises PlaitError
    when no average was saved up to `step`, or one is damaged.
    """
    wanted = Profile(step, averages.exponent(length))
    folders = [folder for folder in _folders(run) if checkpoint.step_of(folder) <= step]
    for folder in folders:
        if faults := integrity.verify(folder):
            raise PlaitError(f"{faults[0]}; remove {folder} to go on without it")
    saved = [average for folder in folders for average in _saved(folder)]
    if not saved:
        raise PlaitError(f"{run} kept no averages up to step {step}: train with optim.ema.post_hoc=true")
    tensors = averages.reconstruct(saved, length, step)
    return Average(tensors, step, len(folders), averages.misfit([average.profile for average in saved], wanted))


def forget(run: Path, after: int) -> None:
    """Remove RUN/averages of steps beyond `after`: called on resume, because the run is about to repeat them."""
    for folder in (run / checkpoint.AVERAGES).glob("step-*"):
        if checkpoint.step_of(folder) > after:
            shutil.rmtree(folder)


def _folders(run: Path) -> list[Path]:
    """Return the folders with averages, sorted by step; where both have a step, the checkpoint's."""
    kept = {folder.name: folder for folder in (run / checkpoint.AVERAGES).glob("step-*")}
    return sorted((kept | {folder.name: folder for folder in checkpoint.published(run)}).values(), key=checkpoint.step_of)


def _saved(folder: Path) -> list[SavedAverage]:
    """Return the averages of one folder; none where it has no file of them."""
    located = checkpoint.read(folder)
    listed = list(located.manifest["files"])

    def average(group: str, length: float) -> SavedAverage:
        names = frozenset(stored_files.sizes(folder, group, listed))
        return SavedAverage(Profile(located.step, averages.exponent(length)), names, lambda: located.tensors(group))

    found = [average(group, length) for group, length in averages.KEPT.items()]
    return [average for average in found if average.names]
