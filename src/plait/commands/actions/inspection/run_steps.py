"""Find the stage (part of the run), the global batch and the number of ranks of any step of a run.

The order of samples is a function of seed and step, so that a run directory stores none. What is not a function of the configuration (where
a stage ended early, a global batch that changed, how many ranks there were) is read from the manifests of its checkpoints.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plait import files
from plait.commands.actions.stages import manifests_by_stage
from plait.config.resolved import Resolved, StageView
from plait.data.order import BatchChanges, SampleId, segment_of, segments
from plait.engine.checkpoints import checkpoint
from plait.engine.micro_batch import MicroBatchSize
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import with_batch
from plait.errors import PlaitError
from plait.training.stage_plan import steps_of


@dataclass(frozen=True)
class StepPlace:
    """Where a step is. `step`: its number in the run, from 1, as in metrics.jsonl; `stage_step`: in its stage, from 0.

    `batches`: the global batches of the stage, as (step of the stage, samples per step from it on). `manifest`: of the stage's newest
    checkpoint, None without one. `ranks`: over how many the step was divided, and `ranks_from`: what says so. `row`: of metrics.jsonl.
    """

    view: StageView
    step: int
    stage_step: int
    batches: BatchChanges
    manifest: Mapping[str, Any] | None
    ranks: int
    ranks_from: str
    row: Mapping[str, Any] | None

    @property
    def global_batch(self) -> int:
        """Return the number of samples of the step."""
        (_, first), *changes = self.batches
        return segment_of(segments(first, changes), self.stage_step).batch


def place_of(resolved: Resolved, run: Path | None, step: int, *, stage: str | None = None, ranks: int | None = None) -> StepPlace:
    """Return the place of a step. `run`: the run directory, None before there is one. `stage`: name of a stage, in which `step` counts.

    `ranks`: divide it over so many, whatever the run had. Raises PlaitError for an unknown stage and for a step that the run does not have.
    """
    names = [view.name for view in resolved.stages]
    if stage is not None and stage not in names:
        raise PlaitError(f"--stage={stage}: there is no such stage; the stages are {', '.join(names)}")
    folders = checkpoint.published(run) if run is not None else []
    manifests = manifests_by_stage(folders)
    rows = files.read_rows(run / "metrics.jsonl", files.STEP_KINDS) if run is not None else []
    start = end = 0
    for view in resolved.stages:
        manifest = manifests.get(view.index)
        start = end if manifest is None else int(manifest["state"]["stage_start"])
        batches = _batches(view, manifest)
        end = _end(view, batches, start, manifests, rows)
        if stage is not None and stage != view.name:
            continue
        wanted = step + start if stage is not None else step
        if wanted <= end:
            row = next((row for row in reversed(rows) if row["step"] == wanted and row.get("stage") == view.index and "ids" in row), None)
            count, said = (ranks, "as --ranks says") if ranks is not None else _ranks(folders, wanted)
            return StepPlace(view, wanted, wanted - start - 1, batches, manifest=manifest, ranks=count, ranks_from=said, row=row)
        if stage is not None:
            raise PlaitError(f"stage {stage} has {end - start:,} steps: there is no step {step:,} of it")
    raise PlaitError(f"the run has {end:,} steps: there is no step {step:,}")


def _batches(view: StageView, manifest: Mapping[str, Any] | None) -> list[list[int]]:
    """Return a stage's global batches as a start of the run would have them now, as (step of the stage, samples per step)."""
    if manifest is None:
        return [[0, view.config.train.global_batch]]
    state = manifest["state"]
    return with_batch(state.get("batches", []), state["step"] - state["stage_start"], view.config.train.global_batch)


def _end(
    view: StageView, batches: BatchChanges, start: int, manifests: Mapping[int, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> int:
    """Return the run's last step in a stage that began after step `start`: where it ended, else where it will."""
    own, following = manifests.get(view.index), manifests.get(view.index + 1)
    if following is not None:
        return int(following["state"]["stage_start"])
    if own is not None and own["state"]["stage_done"]:
        return int(own["state"]["step"])
    later = any(index > view.index for index in manifests) or any(row.get("stage", 0) > view.index for row in rows)
    recorded = [row["step"] for row in rows if row.get("stage") == view.index]
    return max(recorded) if later and recorded else start + steps_of(view, batches)


def _ranks(folders: Sequence[Path], step: int) -> tuple[int, str]:
    """Return over how many ranks a step was divided, and what says so: the oldest checkpoint that holds it. `folders`: newest first."""
    after = [folder for folder in folders if checkpoint.step_of(folder) >= step]
    told = after[-1] if after else folders[0] if folders else None
    if told is None:
        return 1, "as there is no checkpoint"
    return int(checkpoint.read(told).manifest["ranks"]), f"as at {told.name}, the {'first' if after else 'newest'} checkpoint that is left"


def micro_batch_of(place: StepPlace, run: Path | None) -> int:
    """Return how many samples a rank takes per forward pass: as configured, or as few as were found to fit in memory."""
    train = place.view.config.train
    configured = train.micro_batch or math.ceil(train.global_batch / place.ranks)
    ranks = Ranks(0, place.ranks, torch.device("cpu"))
    return configured if run is None else MicroBatchSize(run, place.view.name, ranks, configured).samples


def replacements(run: Path | None, step: int) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return the rows of quarantine.jsonl of a step, by (source, index) of the sample that could not be used.

    Rows of one sample are in the order of the step's ids; those of replacements that were tried in vain are left out.
    """
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in files.read_rows(run / "quarantine.jsonl", files.STEP_KINDS) if run is not None else []:
        if row["step"] == step and row.get("attempt") == 0:
            found.setdefault((row["source"], row["index"]), []).append(row)
    return found


def consumed(ids: Sequence[SampleId], replaced: Mapping[tuple[int, int], Sequence[Mapping[str, Any]]]) -> list[SampleId]:
    """Return the ids that a step trained on: `ids`, with those that could not be used replaced as `replaced` says."""
    left = {place: list(rows) for place, rows in replaced.items()}
    used = []
    for identity in ids:
        rows = left.get(identity[:2])
        used.append(identity._replace(index=int(rows.pop(0)["replaced_by"])) if rows else identity)
    return used
