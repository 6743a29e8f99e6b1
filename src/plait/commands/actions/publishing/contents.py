"""What is pushed of a checkpoint: its weights and their averages, the settings and files of its run; no optimizer state.

    manifest.json  run-config.yaml  weights.safetensors  ema.safetensors  assets/...
    plait-run.json  passport.json (passports.py)  README.md (card.py)

Of an export its files are pushed, with the last three. A run can begin with either (`from: owner/name`)).
"""

from pathlib import Path
from typing import Any

from plait import files
from plait.commands.actions.passport import seal
from plait.commands.actions.publishing import outbox
from plait.commands.actions.publishing.outbox import Job
from plait.config import signed
from plait.config.resolved import Resolved
from plait.engine.checkpoints import checkpoint, rundir
from plait.engine.checkpoints.checkpoint import Checkpoint

MANIFEST, RUN = "manifest.json", "plait-run.json"
"""Files of a push: the checkpoint's manifest, and {"run": identity, "step", "stage", "files": their names}, by which the next push of the
run knows the repository, and what to take out of it."""
KIND = "pushed"
"""`kind` in the manifest of a checkpoint without optimizer state."""
_GROUPS = ("weights", "ema")


def job_of(found: Checkpoint, resolved: Resolved, repo: str, *, private: bool, replace: bool, layout: str | None = None) -> Job:
    """Return what to send of a checkpoint: to `repo`, in a branch of its stage too where its run has several."""
    run, state = checkpoint.run_of(found.folder), found.manifest["state"]
    return Job(
        repo=repo,
        private=private,
        replace=replace,
        step=found.step,
        stage=str(found.manifest["stage"]),
        done=state["stage_done"] is not None,
        branch=found.folder.parent.name if len(resolved.stages) > 1 else None,
        identity=rundir.identity(run),
        checkpoint=str(found.folder.relative_to(run)),
        xxh3=str(found.manifest["xxh3"]),
        layout=layout,
    )


def add(found: Checkpoint, job: Job) -> None:
    """Put a checkpoint into the queue of its run. Raises OSError where a file is gone or cannot be written."""
    run = checkpoint.run_of(found.folder)
    with outbox.adding(run, job) as folder:
        for name in _pushed(found.manifest):
            outbox.link(found.folder / name, folder / name)
        files.write_whole(folder / MANIFEST, files.json_text(manifest(found.manifest)))
        settings = next(path for path in (found.folder / signed.COPY, run / signed.NAME) if path.is_file())
        files.write_whole(folder / signed.COPY, settings.read_bytes())
        for asset in sorted((run / "assets").rglob("*")):
            if asset.is_file():
                outbox.link(asset, folder / "assets" / asset.relative_to(run / "assets"))
        _write_run(folder, job)


def add_export(run: Path, export: Path, job: Job) -> None:
    """Put the folder of an export into the queue of `run`."""
    with outbox.adding(run, job) as folder:
        for path in sorted(export.rglob("*")):
            if path.is_file():
                outbox.link(path, folder / path.relative_to(export))
        _write_run(folder, job)


def _write_run(folder: Path, job: Job) -> None:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} | {RUN, seal.NAME}
    files.write_json(folder / RUN, {"run": job.identity, "step": job.step, "stage": job.stage, "files": sorted(names)})


def manifest(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a checkpoint without its optimizer state."""
    body = {**whole, "kind": KIND, "files": _pushed(whole)}
    body.pop("xxh3")
    return body | {"xxh3": checkpoint.manifest_hash(body)}


def _pushed(whole: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in whole["files"].items() if name.partition("/")[0].removesuffix(".safetensors") in _GROUPS}
