"""What `plait fork` does: make a run that continues from a checkpoint of another run, with some settings changed.

The new run records its origin in lineage.json.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plait import files
from plait.assembly import checkpoint_specs, overwritten
from plait.assembly.model import build_model
from plait.assembly.run_configuration import file_of_checkpoint, open_file
from plait.assembly.saved import check_frozen
from plait.config import signed
from plait.config.resolved import Resolved, difference
from plait.config.sections.continued import within
from plait.engine.checkpoints import checkpoint, migrate, renames, rundir
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.checkpoints.folders import new_folder
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import GROUPS
from plait.errors import PlaitError, command
from plait.training import changes, start
from plait.training.figures import forgetting, kept_answers
from plait.training.monitor.learning import LEARNING
from plait.training.stage_plan import plan_stage, wanted_figures

log = logging.getLogger(__name__)

_PLANNED = (
    *("seed", "family", "preset", "model", "adapters", "trainable", "data", "evaluate"),
    *("optim.components", "optim.schedule", "stages"),
)
"""Settings that have to fit the model, the data or the checkpoint. Rates, lengths and intervals fit any."""
_HERE = Ranks(0, 1, torch.device("cpu"))


def fork(spec: str, new: Path, overrides: Sequence[str]) -> Path:
    """Make the run directory `new` from a checkpoint of another run (the parent), with the parent's settings changed by `overrides`.

    `spec` names the checkpoint: RUN, RUN@STEP, RUN/STAGE@best. `overrides`: such as "optim.lr=1e-5". The parent's logged rows up to that
    step are copied; the parent is not changed. `plait train NEW` continues the new run. Returns `new`. Raises PlaitError if it exists,
    or if training could not continue it with these overrides.
    """
    if new.exists():
        raise PlaitError(f"{new} exists already; a fork makes its own folder")
    if any(item.partition("=")[0] == "run" for item in overrides):
        raise PlaitError(f"a fork is the run {new}: leave out --run")
    saved = checkpoint_specs.locate(spec)
    parent = checkpoint.run_of(saved.folder)
    settings = file_of_checkpoint(parent, saved.folder)
    before = open_file(settings)
    after = open_file(settings, [*overrides, f"run={new}"])
    differences = [item for item in difference(before, after) if item[0] != "run"]
    with new_folder(new) as folder:
        _fill(folder, saved, after, _lineage(spec, saved, parent, differences))
        lost = _losses(folder, saved, after, differences)
        described = changes.describe_changes(before, after, differences, saved.folder)
    log.info(f"{new} goes on from {saved.folder}: step {saved.step}, stage {saved.manifest['stage']}")
    for line in [*([described] if described else []), *(f"  inexact: {line}" for line in lost)]:
        log.info(line)
    log.info(f"continue it: {command('train', new)}{' --allow-inexact' if lost else ''}")
    return new


def _lineage(spec: str, saved: Checkpoint, parent: Path, differences: Sequence[tuple[str, Any, Any]]) -> dict[str, Any]:
    """Return the record of where a fork comes from, with that of its parent in it."""
    grandparents = parent / changes.LINEAGE
    return {
        "kind": "fork",
        "from": spec,
        "folder": str(saved.folder.resolve()),
        "parent": rundir.identity(parent),
        "step": saved.step,
        "manifest_xxh3": saved.manifest["xxh3"],
        "differences": [list(item) for item in differences],
        "before": json.loads(grandparents.read_bytes()) if grandparents.is_file() else None,
    }


def _fill(folder: Path, saved: Checkpoint, after: Resolved, lineage: dict[str, Any]) -> None:
    """Write the new run into `folder`: checkpoint, the stage's best one, assets, ledger, rows up to the step, lineage, configuration."""
    parent, best = checkpoint.run_of(saved.folder), saved.manifest["state"]["best"]
    for step in {saved.folder, saved.folder.with_name(f"step-{best['step']:08d}") if best else saved.folder}:
        if step.is_dir():
            without_parents_config = shutil.ignore_patterns(signed.COPY)
            shutil.copytree(step, folder / step.relative_to(parent), ignore=without_parents_config)
    if (parent / "assets").is_dir():
        shutil.copytree(parent / "assets", folder / "assets")
    for name in ("metrics.jsonl", "quarantine.jsonl", kept_answers.NAME):
        rows = files.read_rows(parent / name, files.STEP_KINDS)
        files.append_rows(folder / name, [row for row in rows if row["step"] <= saved.step])
    for path in (parent / forgetting.FOLDER).glob("*.json"):
        boundary, state = forgetting.read(path), saved.manifest["state"]
        if boundary is not None and boundary["stage"] < state["stage"] + (state["stage_done"] is not None):
            files.write_whole(folder / forgetting.FOLDER / path.name, path.read_bytes())
    for path in sorted((parent / LEARNING).glob("*.safetensors")):
        if int(path.name.split("-")[1]) <= saved.manifest["state"]["stage"]:
            files.write_whole(folder / LEARNING / path.name, path.read_bytes())
    files.write_json(folder / changes.LINEAGE, lineage)
    files.write_whole(folder / signed.NAME, signed.sign(after.yaml))
    rundir.identity(folder)


def _losses(folder: Path, saved: Checkpoint, after: Resolved, differences: Sequence[tuple[str, Any, Any]]) -> list[str]:
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
    former = renames.of_checkpoint(bundle.section.renames, saved.manifest, bundle.base_hashes)
    check_frozen(saved, bundle, after.config.seed, former)
    for view in ahead:
        plan_stage(view, bundle)
    tensors = renames.mapped({group: saved.stored(group) for group in GROUPS}, former)
    return migrate.inexact(start.migration_table(tensors, set(state["trained"]), ahead[0].config, bundle))
