"""Find the untrained base of a run: the model from which the first run of its chain began, through each run's `from:`."""

from pathlib import Path
from typing import Any

from plait.assembly import checkpoint_specs
from plait.assembly.run_configuration import open_of_checkpoint
from plait.assembly.saved import SavedModel
from plait.commands.actions.evaluation.subject import Base
from plait.engine.checkpoints import checkpoint
from plait.errors import PlaitError
from plait.training.changes import LINEAGE
from plait.training.figures.forgetting import read_object


def base_of(saved: SavedModel) -> Base:
    """Return the model before the first step of the first run of a chain of `from:`. `saved`: a checkpoint of its last run.

    Raises PlaitError where a run of the chain began from what is no run on disk.
    """
    run, resolved = checkpoint.run_of(saved.checkpoint.folder), saved.resolved
    while (spec := resolved.stages[0].config.from_) is not None:
        origin = _origin(run, str(spec))
        if origin is None or not (checkpoint.run_of(origin) / "config.yaml").is_file():
            raise PlaitError(f"{run} began from {spec}, no run on disk, so that what it was before is not known; --against base needs none")
        run, resolved = checkpoint.run_of(origin), open_of_checkpoint(checkpoint.run_of(origin), origin)
    return Base(resolved, run)


def _origin(run: Path, spec: str) -> Path | None:
    """Return the folder that the weights of `run` were taken from, by its lineage, or by its `from:`; None where neither is there."""
    lineage: dict[str, Any] | None = read_object(run / LINEAGE)
    while lineage is not None and lineage.get("kind") != "from":
        lineage = lineage.get("before")  # a fork's parent
    folder = Path(str(lineage["folder"])) if lineage is not None and "folder" in lineage else checkpoint_specs.split(spec)[0]
    return folder if folder.is_dir() else None
