"""Link the manifest of a checkpoint to those before it, and to the records of its run, by their hashes.

Each manifest so holds for the whole history: one that is changed later, with its own hash made anew, no longer fits those after it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from plait import files
from plait.config import signed
from plait.engine.checkpoints.checkpoint import Checkpoint, published, read
from plait.errors import PlaitError

KEY = "chain"
LINEAGE = "lineage.json"
"""The record of where a run began, of which the chain has the hash."""


def link(folder: Path, resumed_from: Checkpoint | None, config: str) -> dict[str, Any]:
    """Return the links of the checkpoint that is saved next, as the folder `folder` of a run.

    `before`: the checkpoint saved before it; `stages`: the last one of each earlier stage; `continued_at`: the steps from which the run was
    continued, None where older manifests do not tell; `records`: hashes of lineage.json and of the settings `config`, as YAML.
    `resumed_from`: where this process continued the run.
    """
    run = folder.parent.parent
    lineage = run / LINEAGE
    records = {signed.COPY: xxhash.xxh3_64_hexdigest(signed.sign(config).encode())}
    records |= {LINEAGE: files.xxh3(lineage)} if lineage.is_file() else {}
    before = next(_readable(run, folder), None)
    if before is None:
        return {"before": None, "stages": {}, "continued_at": [], "records": records}
    told = before.manifest.get(KEY, {})
    continued: list[int] | None = told.get("continued_at")
    resumed = None if resumed_from is None else resumed_from.step
    if continued is not None and resumed is not None and resumed not in continued and resumed != _forked_at(lineage):
        continued = [*continued, resumed]
    stages = {**told.get("stages", {})}
    if before.folder.parent != folder.parent:
        stages[str(before.manifest["state"]["stage"])] = _entry(before)
    return {"before": _entry(before), "stages": stages, "continued_at": continued, "records": records}


def _readable(run: Path, besides: Path) -> Iterator[Checkpoint]:
    """Yield the run's checkpoints, newest first, but for one that is replaced and those whose manifest is damaged."""
    for folder in published(run):
        if folder != besides:
            try:
                yield read(folder)
            except PlaitError:
                continue


def _entry(found: Checkpoint) -> dict[str, str]:
    return {"folder": "/".join(found.folder.parts[-2:]), "xxh3": str(found.manifest["xxh3"])}


def _forked_at(lineage: Path) -> int | None:
    """Return the step at which a run was forked from another one; None if it was not."""
    try:
        told = json.loads(lineage.read_bytes())
        return int(told["step"]) if told["kind"] == "fork" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def faults(found: Checkpoint, others: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each link of a manifest that does not hold. `others`: {folder below the run: xxh3 of its manifest}."""
    told = found.manifest.get(KEY)
    if told is None:
        return
    run = found.folder.parent.parent
    links = [("the one before it", told["before"]), *((f"that of stage {stage}", entry) for stage, entry in told["stages"].items())]
    for what, entry in links:
        if entry is not None and (now := others.get(entry["folder"], entry["xxh3"])) != entry["xxh3"]:
            yield f"{found.folder}: the manifest of {what}, {entry['folder']}, had xxh3 {entry['xxh3']}, has {now}"
    forked = _forked_at(run / LINEAGE)
    if forked is not None and found.step <= forked:
        return  # its records are those of the run that it was copied from
    for name, hashed in told["records"].items():
        path = run / name if name == LINEAGE else found.folder / name
        if not path.is_file():
            yield f"{path} is missing: the manifest of step {found.step} lists it"
        elif (now := files.xxh3(path)) != hashed:
            yield f"{path} is changed: its xxh3 was {hashed}, is {now}"
