"""Bring the newest checkpoint of a run from its mirror, where this machine has none or an older one."""

import contextlib
import io
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.commands.actions.publishing import mirror
from plait.commands.actions.publishing.mirror import Store
from plait.config.resolved import Resolved
from plait.engine.checkpoints import checkpoint, integrity, rundir
from plait.errors import PlaitError

log = logging.getLogger(__name__)


def from_mirror(resolved: Resolved, *, restart: bool, fresh: bool) -> None:
    """Bring what the mirror of a run has and this machine has not, into its directory. On the first rank alone; others wait for it.

    `restart`: a run begins anew, and nothing is brought. `fresh`: a mirror with a run is refused. Raises PlaitError for that, where the
    mirror cannot be read or is another run's, and where none of its checkpoints is intact.
    """
    address = resolved.config.checkpoint.mirror
    if address is None or restart or os.environ.get("RANK", "0") != "0":
        return
    run, store = Path(str(resolved.config.run)), Store(address)
    with _told(store):
        listed = store.list()
        folders = mirror.complete(listed)
        theirs = store.read(mirror.IDENTITY).decode(errors="replace").strip() if folders else ""
    if not folders:
        return
    if fresh:
        raise PlaitError(f"{store.shown()} holds a run already, and a fresh one was asked for: give another checkpoint.mirror")
    own = (run / mirror.IDENTITY).read_text(encoding="utf-8").strip() if (run / mirror.IDENTITY).is_file() else None
    if own is not None and own != theirs and rundir.check(run):
        raise PlaitError(f"{store.shown()} holds run {theirs}, and {run} is run {own}: give another checkpoint.mirror, or another --run")
    newest = next((str(folder.relative_to(run)) for folder in checkpoint.published(run) if not integrity.verify(folder)), None)
    newer = folders[: folders.index(newest)] if newest in folders else [one for one in folders if newest is None or _is_newer(one, newest)]
    if newer:
        with contextlib.closing(rundir.lock(run)), _told(store):
            _bring(store, run, newer, listed)


def _is_newer(folder: str, than: str) -> bool:
    return folder.rpartition("-")[2] > than.rpartition("-")[2]


@contextlib.contextmanager
def _told(store: Store) -> Iterator[None]:
    """Tell in one line what a store raises. Raises PlaitError."""
    try:
        yield
    except PlaitError:
        raise
    except Exception as error:
        cure = "mend that, or start with --checkpoint.mirror=null"
        raise PlaitError(f"checkpoint.mirror {store.shown()} cannot be read: {mirror.reason(error)}; {cure}") from error


def _bring(store: Store, run: Path, folders: list[str], listed: list[str]) -> None:
    """Bring the first of the checkpoints that is intact, with the records beside it. Raises PlaitError without one."""
    faults = []
    for folder in folders:
        fault = _bring_one(store, run, folder, listed)
        if fault is None:
            log.info(f"brought from {store.shown(folder)}")
            return
        log.warning(f"passed over: {store.shown(folder)}: {fault}")
        faults.append(fault)
    if not checkpoint.published(run):
        raise PlaitError(f"{store.shown()} has no intact checkpoint: {faults[0]}; give another checkpoint.mirror, or null to begin anew")


def _bring_one(store: Store, run: Path, folder: str, listed: list[str]) -> str | None:
    """Bring a checkpoint; return what is wrong with it, None where it is in place."""
    target = run / folder
    work = target.with_name(f"{checkpoint.UNFINISHED}{target.name}")
    shutil.rmtree(work, ignore_errors=True)
    manifest: Any = mirror.manifest_of(store, folder)
    names = [path.removeprefix(f"{folder}/") for path in listed if path.startswith(f"{folder}/")]
    if not isinstance(manifest, dict) or mirror.RECORDS not in names:
        return "its manifest is damaged, or its records are missing"
    for name in names:
        store.get(f"{folder}/{name}", work / name)
    records = (work / mirror.RECORDS).read_bytes()
    (work / mirror.RECORDS).unlink()
    faults = integrity.verify(work)
    if faults:
        shutil.rmtree(work, ignore_errors=True)
        return faults[0]
    for path in [path for path in listed if path.startswith(f"{mirror.AVERAGES}/")]:
        if not (run / path).exists():
            store.get(path, run / path)
    with tarfile.open(fileobj=io.BytesIO(records), mode="r:gz") as archive:
        archive.extractall(run, filter="data")
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)
    return None
