"""Find the untrained base of a run: the model from which the first run of its chain began, through each run's `from:`."""

from collections.abc import Mapping
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
    told = str(lineage["folder"]) if lineage is not None and "folder" in lineage else spec
    for base in (Path.cwd(), *run.resolve().parents):  # records of older versions may be relative to where the run was started
        folder = checkpoint_specs.split(str(base / told))[0]
        if folder.is_dir() and _is_parent(folder, lineage):
            return folder
    return None


def _is_parent(folder: Path, lineage: Mapping[str, Any] | None) -> bool:
    """Return whether a folder may be what a run began from: its run has the identity that the record names, or the record names none."""
    path, named = checkpoint.run_of(folder) / "identity", None if lineage is None else lineage.get("parent")
    return named is None or not path.is_file() or path.read_bytes().strip() == str(named).encode()
