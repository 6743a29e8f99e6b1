"""Collect what a passport claims of a checkpoint: its stages, data, base models, origin, the stops it survived, and its proof.

All of it is read from the manifests of the run, which have hashes of their own, and from what the run recorded of its starts.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plait import files
from plait.commands.actions.passport import proofs
from plait.config import signed
from plait.config.resolved import Resolved
from plait.engine.checkpoints import chain, checkpoint
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.monitoring.json_output import finite
from plait.errors import PlaitError
from plait.training.changes import LINEAGE
from plait.training.figures import forgetting

log = logging.getLogger(__name__)

ITSELF = frozenset({"kind", "layout", "weights", "files"})
"""Claims about the folder with the passport; all others are about the run."""
_FOLDERS = re.compile(r"(?<![\w/.:])~?/(?:[^\s/,;]+/)+([^\s/,;]+)")


class _Claim(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(_Claim):
    """A file beside the passport."""

    size: int
    sha256: str


class Stored(_Claim):
    """A file of the checkpoint in the run, as its manifest lists it."""

    size: int
    xxh3: str


class Origin(_Claim):
    """The checkpoint that it was made of. `folder`: below the run; `settings_xxh3`: of the file with the run's settings.

    `files`: its weights and averages, whose hashes the manifest has. Of a model in training, by `plait.hf.trainer`, which has no run,
    folder and hashes of manifest and settings are None.
    """

    folder: str | None
    step: int
    stage: str
    ended: str | None
    parameters: int
    manifest_xxh3: str | None
    frozen_xxh3: str
    settings_xxh3: str | None
    files: dict[str, Stored]


class Stage(_Claim):
    """A stage of the run. `trained`: values by component; `data`: fingerprint by source; None: nothing of it is in the run any more."""

    number: int
    name: str
    trained: dict[str, int] | None = None
    first_step: int | None = None
    last_step: int | None = None
    samples: int | None = None
    ended: str | None = None
    data: dict[str, str] | None = None
    folder: str | None = None
    manifest_xxh3: str | None = None


class Start(_Claim):
    """Where a run began: `kind`: from or fork; `origin`: what was named; `before`: where that began. None: not known."""

    kind: str
    origin: str
    run: str | None
    step: int | None
    manifest_xxh3: str | None
    passport: str | None
    before: "Start | None"


class Claims(_Claim):
    """All that a passport claims. `weights`: which ones; `continued_at`: steps from which the run went on after a stop or a kill."""

    kind: Literal["export", "weights", "checkpoint"]
    layout: str | None
    weights: str
    family: str
    run: str | None
    seed: int
    checkpoint: Origin
    stages: list[Stage]
    base: list[dict[str, str | None]]
    began_from: Start | None
    continued_at: list[int]
    proof: dict[str, Any] | None
    versions: dict[str, str]
    files: dict[str, File] = Field(default={})

    @field_validator("files")
    @classmethod
    def _within(cls, listed: dict[str, File]) -> dict[str, File]:
        """Raise ValueError for a name that leads out of the folder."""
        for name in listed:
            if name != os.path.normpath(name) or name.startswith(("/", "..")):
                raise ValueError(f"{name!r} is not inside the folder")
        return listed


def all_weights(found: Checkpoint) -> str:
    """Return in words what a checkpoint as it is has of the model."""
    averaged = any(name.partition("/")[0].removesuffix(".safetensors") == "ema" for name in found.manifest["files"])
    return "weights and their averages" if averaged else "weights"


def of_checkpoint(found: Checkpoint, folder: str, run: Path, resolved: Resolved, *, kind: str, layout: str | None, weights: str) -> Claims:
    """Return the claims of a checkpoint, without files.

    `folder`: its folder below the directory `run`, which need not be there any more; `resolved`: the settings of its run; `kind`, `layout`,
    `weights`: of the folder that gets the passport.
    """
    manifest, config = found.manifest, resolved.config
    lineage = forgetting.read_object(run / LINEAGE)
    told = {
        "kind": kind,
        "layout": layout,
        "weights": weights,
        "family": config.family,
        "run": _identity(run),
        "seed": config.seed,
        "checkpoint": _origin(found, folder, run),
        "stages": _stages(found, folder, run, resolved),
        "base": base_of(manifest),
        "began_from": None if lineage is None else of_lineage(lineage),
        "continued_at": _continued(found, run, lineage),
        "proof": proofs.newest(run),
        "versions": {name: str(version) for name, version in manifest.get("versions", {}).items()},
    }
    return Claims.model_validate(finite(told))


def base_of(manifest: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Return the pretrained parts that a manifest names, without folders of this machine."""
    return [{name: without_folders(value) for name, value in part.items()} for part in manifest["base"]]


def _identity(run: Path) -> str | None:
    """Return the name for life of a run, None of one of an older version; nothing is made."""
    path = run / "identity"
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None


def without_folders(value: Any) -> str | None:
    """Return a value as text, in which a path on this machine is its last part alone; None as it is."""
    return None if value is None else _FOLDERS.sub(r"\1", str(value))


def _origin(found: Checkpoint, folder: str, run: Path) -> dict[str, Any]:
    manifest, state = found.manifest, found.manifest["state"]
    settings = next((path for path in (found.folder / signed.COPY, run / folder / signed.COPY, run / signed.NAME) if path.is_file()), None)
    return {
        "folder": folder,
        "step": state["step"],
        "stage": manifest["stage"],
        "ended": state["stage_done"],
        "parameters": sum(one["values"] for one in manifest.get("components", {}).values()),
        "manifest_xxh3": manifest["xxh3"],
        "frozen_xxh3": manifest["frozen_xxh3"],
        "settings_xxh3": None if settings is None else files.xxh3(settings),
        "files": {name: {key: entry[key] for key in ("size", "xxh3")} for name, entry in manifest["files"].items() if _is_model(name)},
    }


def _is_model(name: str) -> bool:
    """Return whether a file of a checkpoint holds weights or their averages, rather than the optimizer's state."""
    return name.partition("/")[0].removesuffix(".safetensors") in ("weights", "ema")


def _stages(found: Checkpoint, folder: str, run: Path, resolved: Resolved) -> list[dict[str, Any]]:
    """Return the stages up to that of the checkpoint, each by its newest checkpoint that is not after it."""
    last = int(found.manifest["state"]["stage"])
    newest = {last: (folder, found.manifest)}
    for path in checkpoint.published(run):
        if checkpoint.step_of(path) > found.step:
            continue
        try:
            manifest = checkpoint.read(path).manifest
        except PlaitError as error:
            log.warning(f"passed over: {error}")
            continue
        newest.setdefault(int(manifest["state"]["stage"]), (str(path.relative_to(run)), manifest))
    told = list[dict[str, Any]]()
    for view in resolved.stages[:last]:
        one: dict[str, Any] = {"number": view.index, "name": view.name}
        if view.index in newest:
            place, manifest = newest[view.index]
            one |= of_stage(manifest) | {"folder": place}
        told.append(one)
    return told


def of_stage(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest tells of its stage, fields of `Stage` but for its number, name and folder."""
    state = manifest["state"]
    return {
        "trained": {name: one["trains"] for name, one in manifest.get("components", {}).items() if one["trains"]},
        "first_step": state["stage_start"],
        "last_step": state["step"],
        "samples": _samples(state.get("batches"), state["step"] - state["stage_start"]),
        "ended": state["stage_done"],
        "data": short_names(manifest["data"]),
        "manifest_xxh3": manifest.get("xxh3"),
    }


def short_names(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Return fingerprints by the names of sources without folders of this machine; equal ones are numbered."""
    told = dict[str, str]()
    for name, content in fingerprints.items():
        short = str(without_folders(name))
        number = sum(key == short or key.startswith(f"{short} (") for key in told)
        told[f"{short} ({number + 1})" if number else short] = str(content)
    return told


def _samples(batches: Sequence[Sequence[int]] | None, steps: int) -> int | None:
    """Return how many samples the steps of a stage took, by the global batch from each of its steps on; None where it is not recorded."""
    if not batches:
        return None
    ends = [begin for begin, _ in batches[1:]] + [steps]
    return sum(size * (end - begin) for (begin, size), end in zip(batches, ends, strict=True))


def of_lineage(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Start` that the record of a start, lineage.json, tells."""
    before = lineage.get("before")
    return {
        "kind": str(lineage.get("kind")),
        "origin": without_folders(lineage.get("from")) or "",
        "run": without_folders(lineage.get("parent")),
        "step": lineage.get("step") if type(lineage.get("step")) is int else None,
        "manifest_xxh3": without_folders(lineage.get("manifest_xxh3")),
        "passport": without_folders(lineage.get("passport")),
        "before": of_lineage(before) if isinstance(before, dict) else None,
    }


def _continued(found: Checkpoint, run: Path, lineage: Mapping[str, Any] | None) -> list[int]:
    """Return the steps from which the run went on after it was stopped or killed, up to this checkpoint.

    They are in the chain of its manifests; those of older versions do not tell, and the run's records of its starts are read.
    """
    told = found.manifest.get(chain.KEY, {}).get("continued_at")
    if told is not None:
        return list(told)
    starts = files.read_rows(run / "migrations.jsonl", {"from": str})
    if lineage is not None and lineage.get("kind") == "from":
        starts = starts[next((number for number, row in enumerate(starts) if row["from"] == lineage.get("from")), -1) + 1 :]
    steps = [checkpoint.step_of(Path(row["from"])) for row in starts if checkpoint.is_step(Path(row["from"]))]
    return [step for step in steps if step < found.step]
