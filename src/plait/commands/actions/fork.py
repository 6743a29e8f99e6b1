"""`plait fork`: a new run that goes on from a moment of another one, with some settings changed, and that says where it came from."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait import files
from plait.assembly import checkpoint_specs
from plait.assembly.configuration import open_run_config
from plait.config.resolved import Resolved, difference
from plait.engine.checkpoints import checkpoint, rundir
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.errors import PlaitError
from plait.training import start


def fork(spec: str, new: Path, overrides: Sequence[str]) -> Path:
    """Make the run directory `new`: the checkpoint that `spec` names, the parent's settings with `overrides`, its rows up to that step.

    `plait train NEW` continues it. Nothing of the parent changes. Raises PlaitError when `new` exists or an override is wrong.
    """
    if new.exists():
        raise PlaitError(f"{new} exists already; a fork makes its own folder")
    if any(item.partition("=")[0] == "run" for item in overrides):
        raise PlaitError(f"a fork is the run {new}: leave out --run")
    found = checkpoint_specs.locate(spec)
    parent = checkpoint.run_of(found.folder)
    before = open_run_config(parent)
    after = open_run_config(parent, [*overrides, f"run={new}"])
    differences = [item for item in difference(before, after) if item[0] != "run"]
    beside = new.with_name(f".forking-{new.name}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _fill(beside, found, after, _lineage(spec, found, parent, differences))
        beside.rename(new)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    files.sync_folder(new.parent)
    _say(new, found, before, after, differences)
    return new


def _lineage(spec: str, found: Checkpoint, parent: Path, differences: Sequence[tuple[str, Any, Any]]) -> dict[str, Any]:
    grandparents = parent / start.LINEAGE
    return {
        "kind": "fork",
        "from": spec,
        "folder": str(found.folder),
        "parent": rundir.identity(parent),
        "step": found.step,
        "differences": [list(item) for item in differences],
        "before": json.loads(grandparents.read_bytes()) if grandparents.is_file() else None,
    }


def _fill(beside: Path, found: Checkpoint, after: Resolved, lineage: dict[str, Any]) -> None:
    """Everything of the new run, in the folder that becomes it. The best checkpoint of the stage comes too, as `keep` would spare it."""
    parent, best = checkpoint.run_of(found.folder), found.manifest["state"]["best"]
    for folder in {found.folder, found.folder.with_name(f"step-{best['step']:08d}") if best else found.folder}:
        if folder.is_dir():
            shutil.copytree(folder, beside / folder.relative_to(parent))
    if (parent / "assets").is_dir():
        shutil.copytree(parent / "assets", beside / "assets")
    for name in ("metrics.jsonl", "quarantine.jsonl"):
        files.append_rows(beside / name, [row for row in files.read_rows(parent / name) if row["step"] <= found.step])
    files.write_json(beside / start.LINEAGE, lineage)
    files.write_whole(beside / "config.yaml", after.yaml)
    rundir.identity(beside)


def _say(new: Path, found: Checkpoint, before: Resolved, after: Resolved, differences: Sequence[tuple[str, Any, Any]]) -> None:
    print(f"{new} goes on from {found.folder}: step {found.step}, stage {found.manifest['stage']}")
    if differences:
        view = after.stages[min(found.manifest["state"]["stage"], len(after.stages)) - 1].config
        print(start.describe_changes(before.config, after.config, differences, view.train.steps or 1000))
    print(f"continue it: plait train {new}")
