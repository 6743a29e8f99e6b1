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
from plait.engine.checkpoints.checkpoint import Checkpoint, published, read, run_of
from plait.errors import PlaitError

KEY = "chain"
RECORDS = "records"
"""In the chain: {name below the run, or of the copy of the settings beside the manifest: xxh3}."""
LINEAGE, IDENTITY, ASSETS = "lineage.json", "identity", "assets"
"""What the chain has hashes of: the record of where a run began, its name for life, and the folder of its tokenizer."""


def link(folder: Path, resumed_from: Checkpoint | None, config: str) -> dict[str, Any]:
    """Return the links of the checkpoint that is saved next, as the folder `folder` of a run.

    `before`: the checkpoint saved before it; `stages`: the last one of each earlier stage; `continued_at`: the steps from which the run was
    continued, None where older manifests do not tell; `records`: hashes of lineage.json, identity, each file of assets/, and of the
    settings `config`, as YAML. `resumed_from`: where this process continued the run.
    """
    run = folder.parent.parent
    lineage = run / LINEAGE
    records = {signed.COPY: xxhash.xxh3_64_hexdigest(signed.sign(config).encode())}
    records |= {name: files.xxh3(run / name) for name in record_names(run)}
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


def record_names(run: Path) -> list[str]:
    """Return the names below a run of the records that a chain has hashes of, without the settings."""
    assets = [path.relative_to(run).as_posix() for path in sorted((run / ASSETS).rglob("*")) if path.is_file()]
    return [name for name in (LINEAGE, IDENTITY, *assets) if (run / name).is_file()]


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
    yield from _record_faults(found, told[RECORDS], run)


def _record_faults(found: Checkpoint, records: Mapping[str, str], run: Path) -> Iterator[str]:
    """Yield a line for each record that is not as a manifest says; up to where a run was forked they are those of another run."""
    forked = _forked_at(run / LINEAGE)
    copied = forked is not None and found.step <= forked
    for name, hashed in records.items():
        path = found.folder / name if name == signed.COPY else run / name
        if copied and not _is_asset(name):
            continue
        if not path.is_file():
            yield f"{path} is missing: the manifest of step {found.step} lists it"
        elif (now := files.xxh3(path)) != hashed:
            yield f"{path} is changed: its xxh3 was {hashed}, is {now}"


def _is_asset(name: str) -> bool:
    return name.startswith(f"{ASSETS}/")


def changed_asset(found: Checkpoint) -> str | None:
    """Return a line if a file of the run's assets/, as its tokenizer, was changed since the checkpoint was saved.

    None of a manifest of an older plait, which does not tell.
    """
    run = run_of(found.folder)
    assets = {name: hashed for name, hashed in found.manifest.get(KEY, {}).get(RECORDS, {}).items() if _is_asset(name)}
    fault = next(_record_faults(found, assets, run), None)
    return None if fault is None else f"{fault}; the weights were trained with what it was: put that back, as from a copy of the run"
