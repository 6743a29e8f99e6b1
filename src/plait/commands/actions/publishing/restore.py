"""Bring the newest checkpoint of a run from its mirror, where this machine has none or an older one."""

import contextlib
import gzip
import io
import json
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import xxhash

from plait.commands.actions.publishing import mirror
from plait.commands.actions.publishing.mirror import Store
from plait.config import signed
from plait.config.resolved import Resolved
from plait.data import remote
from plait.engine.checkpoints import chain, checkpoint, integrity, rundir
from plait.errors import PlaitError

log = logging.getLogger(__name__)

ANSWER_S = 60.0
"""Seconds that a mirror has to say what it holds: a store's own client waits for five minutes and more."""


def from_mirror(resolved: Resolved, *, restart: bool, fresh: bool) -> None:
    """Bring what the mirror of a run has and this machine has not, into its directory. On the first rank alone; others wait for it.

    `restart`: a run begins anew, and nothing is brought. `fresh`: a mirror with a run is refused. Raises PlaitError for that, where the
    mirror cannot be read or is another run's, and where none of its checkpoints is intact.
    """
    address = resolved.config.checkpoint.mirror
    if address is None or restart or os.environ.get("RANK", "0") != "0":
        return
    run = Path(str(resolved.config.run))
    with _told(address):
        store, listed, theirs = remote.in_time(address, ANSWER_S, lambda: _looked_at(address))
        folders = mirror.complete(listed)
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
        with contextlib.closing(rundir.lock(run)), _told(address):
            _bring(store, run, newer, listed, theirs)


def _looked_at(address: str) -> tuple[Store, list[str], str]:
    """Return a store, the paths of all its files, and the identity of the run that it holds, "" without a checkpoint."""
    store = Store(address)
    listed = store.list()
    return store, listed, store.read(mirror.IDENTITY).decode(errors="replace").strip() if mirror.complete(listed) else ""


def _is_newer(folder: str, than: str) -> bool:
    return folder.rpartition("-")[2] > than.rpartition("-")[2]


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """Tell in one line what the store at an address raises. Raises PlaitError."""
    try:
        yield
    except PlaitError:
        raise
    except Exception as error:
        cure = "mend that, or start with --checkpoint.mirror=null"
        raise PlaitError(f"checkpoint.mirror {Store.shown_of(address)} cannot be read: {mirror.reason(error)}; {cure}") from error


def _bring(store: Store, run: Path, folders: list[str], listed: list[str], identity: str) -> None:
    """Bring the first of the checkpoints that is intact, with the records beside it. Raises PlaitError without one."""
    faults = []
    for folder in folders:
        with _work_folders(run, folder) as (work, records):
            fault = _fetch(store, work, folder, listed) or _unpack(work, records, identity)
            if fault is None:
                _bring_averages(store, run, listed)
                _place(records, run)
                shutil.rmtree(run / folder, ignore_errors=True)
                work.rename(run / folder)
                log.info(f"brought from {store.shown(folder)}")
                return
        log.warning(f"passed over: {store.shown(folder)}: {fault}")
        faults.append(fault)
    if not checkpoint.published(run):
        raise PlaitError(f"{store.shown()} has no intact checkpoint: {faults[0]}; give another checkpoint.mirror, or null to begin anew")


@contextlib.contextmanager
def _work_folders(run: Path, folder: str) -> Iterator[tuple[Path, Path]]:
    """Yield temporary folders of a run for a checkpoint and its records; nothing else of the run changes before both are verified."""
    target = run / folder
    folders = target.with_name(f"{checkpoint.UNFINISHED}{target.name}"), run / ".records.tmp"
    made = not target.parent.exists()
    try:
        for one in folders:
            shutil.rmtree(one, ignore_errors=True)
            one.mkdir(parents=True)
        yield folders
    finally:
        for one in folders:
            shutil.rmtree(one, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                target.parent.rmdir()


def _fetch(store: Store, work: Path, folder: str, listed: list[str]) -> str | None:
    """Copy a checkpoint with its packed records to `work`; return what is wrong with it, None where it is whole."""
    names = [path.removeprefix(f"{folder}/") for path in listed if path.startswith(f"{folder}/")]
    if not isinstance(mirror.manifest_of(store, folder), dict) or mirror.RECORDS not in names:
        return "its manifest is damaged, or its records are missing"
    for name in names:
        store.get(f"{folder}/{name}", work / name)
    return next(iter(integrity.verify(work)), None) or _settings_fault(work)


def _settings_fault(work: Path) -> str | None:
    """Return what is wrong with the copy of the settings beside a manifest, which has no entry among the manifest's files."""
    copy = work / signed.COPY
    if not copy.is_file():
        listed = signed.COPY in checkpoint.read(work).manifest.get(chain.KEY, {}).get(chain.RECORDS, {})
        return f"{signed.COPY} is missing" if listed else None
    return None if signed.is_as_written(copy) else f"{signed.COPY} is damaged: it is not what the hash in its last line is of"


def _unpack(work: Path, target: Path, identity: str) -> str | None:
    """Unpack the records among the files of a checkpoint to `target`, and remove what is packed; return what is wrong with them.

    Those of an older plait have no hash beside them: they are held to the checksum at the end of the archive.
    """
    packed, hashed = work / mirror.RECORDS, work / mirror.RECORDS_HASH
    body = packed.read_bytes()
    packed.unlink()
    if hashed.is_file():
        fault = _hash_fault(body, hashed.read_bytes())
        hashed.unlink()
        if fault is not None:
            return fault
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(body)), mode="r:") as archive:
            archive.extractall(target, filter="data")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        return f"{mirror.RECORDS} is damaged: {error}"
    named = target / mirror.IDENTITY
    theirs = named.read_text(encoding="utf-8", errors="replace").strip() if named.is_file() else None
    return None if theirs == identity else f"{mirror.RECORDS} is of run {theirs}, and {mirror.IDENTITY} beside it says {identity}"


def _hash_fault(body: bytes, told: bytes) -> str | None:
    """Return how packed records differ from the size and hash beside them."""
    try:
        entry = json.loads(told)
        size, xxh3 = entry["size"], entry["xxh3"]
    except (ValueError, KeyError, TypeError) as error:
        return f"{mirror.RECORDS_HASH} is damaged: {type(error).__name__}"
    if len(body) != size:
        return f"{mirror.RECORDS} is damaged: {len(body)} bytes, {mirror.RECORDS_HASH} says {size}"
    now = xxhash.xxh3_64_hexdigest(body)
    return None if now == xxh3 else f"{mirror.RECORDS} is damaged: xxh3 {now}, {mirror.RECORDS_HASH} says {xxh3}"


def _bring_averages(store: Store, run: Path, listed: list[str]) -> None:
    """Bring the averages that were kept of pruned checkpoints, of each all files or none: one that is damaged is left out, and told."""
    suffix = f"/{mirror.MANIFEST}"
    for folder in [path.removesuffix(suffix) for path in listed if path.startswith(f"{mirror.AVERAGES}/") and path.endswith(suffix)]:
        target = run / folder
        if target.exists():
            continue
        work = target.with_name(f"{checkpoint.UNFINISHED}{target.name}")
        shutil.rmtree(work, ignore_errors=True)
        for path in [path for path in listed if path.startswith(f"{folder}/")]:
            store.get(path, work / path.removeprefix(f"{folder}/"))
        if faults := integrity.verify(work):
            log.warning(f"left out: {store.shown(folder)}: {faults[0]}; averages of any length are made of fewer steps")
            shutil.rmtree(work, ignore_errors=True)
        else:
            work.rename(target)


def _place(records: Path, run: Path) -> None:
    """Move the files of unpacked records to their places in the run."""
    for path in sorted(path for path in records.rglob("*") if path.is_file()):
        target = run / path.relative_to(records)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
