"""A copy of a run's checkpoints at an address (s3://, gs://, file://), from which another machine continues it.

    ADDRESS/identity   ADDRESS/averages/...
    ADDRESS/stage-1-one/step-00000500/{weights.safetensors, ..., records.tar.gz, records.json, manifest.json}

The manifest is written last, when all other files were read back and have the right hash: without it there is no checkpoint. records.tar.gz
is what else a start needs of the run's directory, as it was then, and records.json its size and hash. Sent by the process beside a run
(uploader.py).
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash
from fsspec.callbacks import Callback

from plait import files
from plait.commands.actions.publishing import outbox
from plait.config import secrets
from plait.data import addresses, remote
from plait.errors import PlaitError

MANIFEST, RECORDS, IDENTITY, AVERAGES = "manifest.json", "records.tar.gz", "identity", "averages"
RECORDS_HASH = "records.json"
"""Beside RECORDS: {"size", "xxh3"} of it."""
_LEFT_OUT = ("outbox", "heartbeat", "lock", "events", "eval", "spikes", "averages", "report.html", "wandb", "generated")
"""What a start needs nothing of, and what is copied by itself."""
_CHUNK_BYTES = 1 << 22


class _Moved(Callback):  # type: ignore[misc]  # fsspec has no types
    """Calls a function whenever a part of a file was taken."""

    def __init__(self, moved: Callable[[], None]) -> None:
        super().__init__()
        self._moved = moved

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Note that a part was taken."""
        self._moved()


class Torn(Exception):
    """A file that was written is not what is read back."""


class Store:
    """The folder of a run at `address`. What its file system raises is passed on; paths are below the folder.

    `moved`: called whenever bytes were taken or came.
    """

    def __init__(self, address: str, moved: Callable[[], None] = lambda: None) -> None:
        self.address, self.moved = address, moved
        self.system, root = remote.connect(address)
        self.root = root.rstrip("/")

    def list(self) -> list[str]:
        """Return the paths of all files."""
        self.system.invalidate_cache()
        found = self.system.find(self.root)
        self.moved()
        return sorted(str(path).removeprefix(self.root).lstrip("/") for path in found)

    def read(self, path: str) -> bytes:
        """Return the content of a small file."""
        return bytes(self.system.cat_file(f"{self.root}/{path}"))

    def write(self, path: str, body: bytes) -> None:
        """Write a small file."""
        self._make_folder(path)
        self.system.pipe_file(f"{self.root}/{path}", body)

    def put(self, path: str, source: Path) -> None:
        """Copy a file there, and read it back. Raises Torn where it has another content."""
        self._make_folder(path)
        self.system.put_file(str(source), f"{self.root}/{path}", callback=_Moved(self.moved))
        if self.xxh3(path) != files.xxh3(source):
            raise Torn(f"{self.shown(path)} is not what was written there")

    def _make_folder(self, path: str) -> None:
        """Make the folder of a file on a disk; object stores have none."""
        if "file" in self.system.protocol:
            self.system.makedirs(f"{self.root}/{path}".rpartition("/")[0], exist_ok=True)

    def get(self, path: str, target: Path) -> None:
        """Copy a file from there."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self.system.get_file(f"{self.root}/{path}", str(target))

    def xxh3(self, path: str) -> str:
        """Return the hash of a file's content as it is read from there."""
        digest = xxhash.xxh3_64()
        with self.system.open(f"{self.root}/{path}", "rb", block_size=_CHUNK_BYTES, cache_type="readahead") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                self.moved()
        return digest.hexdigest()

    def remove(self, path: str) -> None:
        """Delete a file."""
        self.system.rm_file(f"{self.root}/{path}")

    def remove_folder(self, path: str) -> None:
        """Remove a folder without files, which a disk has and an object store has not."""
        if "file" in self.system.protocol and self.system.isdir(f"{self.root}/{path}"):
            self.system.rm(f"{self.root}/{path}", recursive=True)

    def is_made(self) -> bool:
        """Return whether the folder of the store is there. In an object store folders are not made."""
        return "file" not in self.system.protocol or bool(self.system.isdir(self.root))

    def shown(self, path: str = "") -> str:
        """Return the address of a path, for people: without anything secret."""
        return self.shown_of(self.address) + (f"/{path}" if path else "")

    @staticmethod
    def shown_of(address: str) -> str:
        """Return the address of a store, for people."""
        return addresses.shown(address).rstrip("/")


def complete(listed: list[str]) -> list[str]:
    """Return the folders of the complete checkpoints among a store's files, newest first: those with a manifest."""
    folders = [path.rpartition("/")[0] for path in listed if path.startswith("stage-") and path.endswith(f"/{MANIFEST}")]
    return sorted((folder for folder in folders if _order(folder) is not None), key=lambda folder: _order(folder) or (0, 0), reverse=True)


def _order(folder: str) -> tuple[int, int] | None:
    """Return (step, stage) of a checkpoint's folder, stage-1-one/step-00000500; None for another."""
    stage, _, step = folder.partition("/")
    number = stage.removeprefix("stage-").partition("-")[0]
    return (int(step[5:]), int(number)) if step.startswith("step-") and step[5:].isdecimal() and number.isdecimal() else None


class Mirror:
    """Keeps the store of a run like the run. `keep`: how many checkpoints of each stage stay, by the name of its folder; 0: all.

    `moved`: called whenever bytes were taken or came.
    """

    def __init__(self, run: Path, address: str, keep: Mapping[str, int], moved: Callable[[], None] = lambda: None) -> None:
        self.run, self.keep, self.store = run, keep, Store(address, moved)
        self._manifests: dict[str, bytes] = {}
        """What was read or written of the store's manifests, by folder."""

    def update(self) -> str | None:
        """Copy the newest checkpoint that is not there, and delete what is no longer kept.

        Returns a line on the copy, None where there was nothing to copy.
        Raises PlaitError where the address holds another run or its bucket is not there, Torn where a file was damaged on its way, and what
        the file system raises.
        """
        self._check_owner()
        listed = self.store.list()
        there = {folder: self._manifest(folder) for folder in complete(listed)}
        for folder in self._local():
            body = (self.run / folder / MANIFEST).read_bytes()
            if there.get(folder) != body:
                self._copy(folder, body, listed)
                self._manifests[folder] = body
                self._prune(self.store.list())
                return f"step {int(folder.rpartition('-')[2])}: mirrored to {self.store.shown(folder)}"
        self._prune(listed)
        return None

    def _check_owner(self) -> None:
        """Write the run's identity to the store. Raises PlaitError where that of another run is there, or there is no bucket."""
        own = (self.run / IDENTITY).read_bytes()
        try:
            there = self.store.read(IDENTITY)
        except FileNotFoundError:
            try:
                self.store.write(IDENTITY, own)
            except FileNotFoundError as error:  # the bucket
                raise PlaitError(unwritable(self.store.shown(), error)) from error
            return
        if there.strip() != own.strip():
            theirs = there.decode(errors="replace").strip()
            raise PlaitError(
                f"{self.store.shown()} holds run {theirs}, and this is run {own.decode().strip()}: give another checkpoint.mirror"
            )

    def _manifest(self, folder: str) -> bytes:
        if folder not in self._manifests:
            self._manifests[folder] = self.store.read(f"{folder}/{MANIFEST}")
        return self._manifests[folder]

    def _local(self) -> list[str]:
        """Return the folders of the run's checkpoints, newest first."""
        return complete([str(path.relative_to(self.run)) for path in self.run.glob(f"stage-*/step-*/{MANIFEST}")])

    def _copy(self, folder: str, body: bytes, listed: list[str]) -> None:
        """Copy a checkpoint, its manifest last. Raises FileNotFoundError where the run has pruned it meanwhile."""
        if f"{folder}/{MANIFEST}" in listed:
            self._manifests.pop(folder, None)
            self.store.remove(f"{folder}/{MANIFEST}")  # what is there is of a checkpoint that was replaced
        work = self.run / outbox.FOLDER / "mirror"
        files.remove(work)
        try:
            for path in sorted((self.run / folder).rglob("*")):
                if path.is_file():
                    outbox.link(path, work / path.relative_to(self.run / folder))  # the run may prune it while it is sent
            packed = records(self.run)
            (work / RECORDS).write_bytes(packed)
            files.write_json(work / RECORDS_HASH, {"size": len(packed), "xxh3": xxhash.xxh3_64_hexdigest(packed)})
            for path in sorted(work.rglob("*")):
                if path.is_file() and path != work / MANIFEST:
                    self.store.put(f"{folder}/{path.relative_to(work)}", path)
            self._copy_averages(listed)
            self.store.put(f"{folder}/{MANIFEST}", work / MANIFEST)
        finally:
            files.remove(work)

    def _copy_averages(self, listed: list[str]) -> None:
        """Copy what was kept of pruned checkpoints for post-hoc averages, of each the manifest last."""
        for manifest in sorted((self.run / AVERAGES).glob(f"step-*/{MANIFEST}")):
            if str(manifest.relative_to(self.run)) not in listed:
                others = [path for path in sorted(manifest.parent.rglob("*")) if path.is_file() and path != manifest]
                for path in [*others, manifest]:
                    self.store.put(str(path.relative_to(self.run)), path)

    def _prune(self, listed: list[str]) -> None:
        """Delete the checkpoints that the run would not keep: all but the newest of each stage, the best, and those the run has."""
        found = complete(listed)
        local = set(self._local())
        spared = _best(self._manifest(found[0])) if found else None
        for stage in {folder.partition("/")[0] for folder in found}:
            of_stage = [folder for folder in found if folder.startswith(f"{stage}/")]
            for folder in of_stage[self.keep.get(stage, 0) or len(of_stage) :]:
                if folder not in local and int(folder.rpartition("-")[2]) != spared:
                    self._delete(folder, listed)
        whole = set(found)
        for folder in {path.rpartition("/")[0] for path in listed if path.startswith("stage-")}:
            top = "/".join(folder.split("/")[:2])
            if top not in whole and top not in local:  # what a kill left
                self._delete(top, listed)

    def _delete(self, folder: str, listed: list[str]) -> None:
        """Delete a checkpoint, its manifest first."""
        self._manifests.pop(folder, None)
        inside = [path for path in listed if path.startswith(f"{folder}/")]
        for path in sorted(inside, key=lambda path: path != f"{folder}/{MANIFEST}"):
            self.store.remove(path)
        self.store.remove_folder(folder)


def _best(manifest: bytes) -> int | None:
    best = json.loads(manifest)["state"].get("best")
    return None if best is None else int(best["step"])


def records(run: Path) -> bytes:
    """Return a packed archive of what a start needs of a run's directory besides its checkpoints."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz", compresslevel=1) as archive:
        for path in _recorded(run):
            content = path.read_bytes()
            entry = tarfile.TarInfo(str(path.relative_to(run)))
            entry.size = len(content)  # as it was read: a file of rows grows
            archive.addfile(entry, io.BytesIO(content))
    return body.getvalue()


def _recorded(run: Path) -> Iterator[Path]:
    for top in sorted(run.iterdir()):
        if not (top.name.startswith((".", "stage-")) or top.name in _LEFT_OUT or top.is_symlink()):
            yield from [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())


def manifest_of(store: Store, folder: str) -> Any:
    """Return the manifest of a checkpoint in a store; None where it cannot be read."""
    try:
        return json.loads(store.read(f"{folder}/{MANIFEST}"))
    except ValueError:
        return None


def reason(error: BaseException) -> str:
    """Return the first line of what a store raised, without secrets."""
    return secrets.shown((str(error).splitlines() or [""])[0] or type(error).__name__)


def unwritable(shown: str, error: BaseException) -> str:
    """Return a line on the store at an address, as `shown`, that cannot be written, also if it is tried again."""
    cure = "mend its rights" if isinstance(error, PermissionError) else "mend checkpoint.mirror, or the store's keys and settings"
    return f"the mirror {shown} cannot be written: {reason(error)}; {cure}"
