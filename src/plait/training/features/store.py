"""Keep the features of a frozen encoder on disk: records by key, in memory-mapped files that appear whole.

A folder holds the records of one module as it is (its weights and all else that decides its outputs); `ROOT/NAME-HASH/*.safetensors`.
A file has `keys` (n, 16), `sums` (n,), a hash of each record, and `values` (n, ...). Files are written once and never changed, so processes
share a folder without asking each other: each lists it again when it has changed. A record whose hash does not fit is refused.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plait import files

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
KEY_BYTES = 16
_FILE_BYTES = 64 << 20  # of records that wait in memory until they are written; what a kill loses
_BY_NUMBER = "by-number"  # a file that tells all processes and later runs of it
_SETTLED_NS = 1_000_000_000  # a folder's time of change is coarse: what comes within the same tick does not change it again
_OLDEST_S = 60.0  # the longest that a record waits; the first files come sooner, so that small data is read from the second pass on


class FeatureStore:
    """The records of one folder below `root`. `about`: what made them, kept beside them as about.json. Picklable: a copy has no open files.

    `limit_bytes`: of all folders of `root` together; nothing is written beyond it. `pending`: records that are not yet in a file.
    """

    def __init__(self, root: Path, name: str, *, limit_bytes: int, about: Mapping[str, Any]) -> None:
        self.root, self.folder, self.limit_bytes, self.about = root, root / name, limit_bytes, dict(about)
        self.full: str | None = None
        """Why nothing more is written: the limit, or the error of the disk."""
        self.stopped = False
        """Whether the stage has found that it does not use this store."""
        self._begin()

    def _begin(self) -> None:
        """Begin without open files: at the start, and in a process that got a copy."""
        self.pending: dict[bytes, Tensor] = {}
        self._rows: dict[bytes, tuple[Path, int]] = {}
        self._files: dict[Path, tuple[Tensor, Tensor]] = {}
        self._listed_ns, self._bytes, self._written, self._since = -1, 0, 0, time.monotonic()
        self._guard = threading.RLock()
        self._by_number = False
        self._writer: ThreadPoolExecutor | None = None
        self._held: IO[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("root", "folder", "limit_bytes", "about", "full", "stopped")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def open(self) -> None:
        """Make the folder, mark it as used now, and remove what killed writers left in it. Raises OSError where it cannot be made."""
        self.root.mkdir(parents=True, exist_ok=True)
        with _locked(self.root / ".lock"):  # nobody writes or removes anything meanwhile
            self.folder.mkdir(exist_ok=True)
            self._held = (self.folder / ".lock").open("a+", encoding="utf-8")
            with contextlib.suppress(OSError):  # no locks here: then nobody removes a folder either
                fcntl.flock(self._held, fcntl.LOCK_SH)
            _sweep(self.folder)
            about = self.folder / "about.json"
            if not about.is_file():
                files.write_json(about, self.about)
            os.utime(about)

    def __len__(self) -> int:
        with self._guard:
            self._list()
            return len(self._rows.keys() | self.pending.keys())

    def is_by_number(self) -> bool:
        """Return whether records are kept by how many pictures were encoded at once, as their features round otherwise among others."""
        with self._guard:
            self._list()
            return self._by_number

    def keep_by_number(self) -> None:
        """Note that records are kept by that number from now on, also for other processes and later runs."""
        with contextlib.suppress(OSError):
            (self.folder / _BY_NUMBER).touch()
        with self._guard:
            self._by_number = True

    def read(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """Return a copy of the record of each key, None where there is none. A file with a damaged record is removed, with a warning."""
        with self._guard:
            self._list()
            places = [self.pending.get(key, self._rows.get(key)) for key in keys]
        return [place if isinstance(place, Tensor) else self._load(key, place) for key, place in zip(keys, places, strict=True)]

    def add(self, keys: Sequence[bytes], values: Sequence[Tensor]) -> None:
        """Store host tensors under their keys. Other processes read them once they are in a file, which is begun here when it is due."""
        with self._guard:
            for key, value in zip(keys, values, strict=True):
                if self.full is None and key not in self.pending and key not in self._rows:
                    self.pending[key] = value
                    self._bytes += value.numel() * value.element_size()
            age = time.monotonic() - self._since
            if self._bytes >= _FILE_BYTES or (self.pending and age > min(_OLDEST_S, 1.0 + self._written)):
                self.flush()

    def flush(self, *, wait: bool = False) -> None:
        """Have the pending records written in the background; with `wait`, return when they are."""
        with self._guard:
            self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="features")
            self._bytes, self._since = 0, time.monotonic()
            done = self._writer.submit(self._write, dict(self.pending))
        if wait:
            done.result()

    def drop_pages(self) -> None:
        """Ask the system to drop the files from its page cache, so that the next read is one from the disk."""
        with self._guard:
            paths = list(self._files)
        for path in paths:
            with contextlib.suppress(OSError), path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Write what is pending, and give the folder free to be removed by a later run that needs the room."""
        if self.pending:
            self.flush(wait=True)
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None
        if self._held is not None:
            self._held.close()
            self._held = None

    def _write(self, records: Mapping[bytes, Tensor]) -> None:
        """Write records to new files, one for each shape; where that fails, say so once, and write nothing from then on."""
        shapes: dict[Any, list[bytes]] = {}
        for key, value in records.items():
            if key not in self._rows:
                shapes.setdefault((value.shape, value.dtype), []).append(key)
        try:
            for keys in shapes.values():
                if self.full is None:
                    self._write_file(keys, torch.stack([records[key] for key in keys]))
        except OSError as error:
            self._stop(f"{error.strerror or error} in {self.folder}")
        with self._guard:
            if self.full is None:
                self._list()
            for key in records:
                self.pending.pop(key, None)

    def _write_file(self, keys: Sequence[bytes], values: Tensor) -> None:
        """Write one file if there is room for it; else remove the folders of modules that no run uses, the longest unused first."""
        sums = torch.tensor([_hash(key, value) for key, value in zip(keys, values, strict=True)], dtype=torch.int64)
        names = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY_BYTES)
        body = safetensors.torch.save({"keys": names, "sums": sums, "values": values})
        with _locked(self.root / ".lock"):  # processes share the limit
            if not self._make_room(len(body)):
                self._stop(f"{self.root} holds data.feature_cache_gb, {self.limit_bytes / 1e9:g} GB")
                return
            files.write_whole(self.folder / f"{secrets.token_hex(8)}{SUFFIX}", body)
        self._written += 1

    def _make_room(self, size: int) -> bool:
        """Return whether `size` more bytes are within the limit, after removing folders that are not in use where that is needed."""
        used = {folder: _bytes_in(folder) for folder in self.root.iterdir() if folder.is_dir()}
        free = self.limit_bytes - sum(used.values())
        for folder in sorted(used.keys() - {self.folder}, key=_last_used):
            if free >= size:
                break
            if size <= free + used[folder] + sum(used[other] for other in used if other != self.folder) and _removed(folder):
                free += used[folder]
        return free >= size

    def _stop(self, reason: str) -> None:
        self.full = reason
        log.info(f"  {self.folder.name}: no more features are stored ({reason}); pictures without are encoded each time")

    def _list(self) -> None:
        """Look for files that have come since, of this process or another."""
        try:
            changed_ns = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns == self._listed_ns:
            return
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path not in self._files:
                self._map(path)
        self._by_number = self._by_number or (self.folder / _BY_NUMBER).exists()
        self._listed_ns = changed_ns if time.time_ns() - changed_ns > _SETTLED_NS else -1

    def _map(self, path: Path) -> None:
        """Map one file into memory and list its keys. Its values are read from the disk when they are needed."""
        try:
            with safe_open(path, framework="pt") as opened:
                keys, sums, values = (opened.get_tensor(name) for name in ("keys", "sums", "values"))
            if keys.shape != (len(values), KEY_BYTES) or keys.dtype != torch.uint8 or sums.shape != (len(values),):
                raise SafetensorError(f"{tuple(keys.shape)} keys, {tuple(sums.shape)} sums, {len(values)} values")
        except FileNotFoundError:
            return  # another process has removed it meanwhile
        except (OSError, SafetensorError) as error:
            self._refuse(path, str(error))
            return
        self._files[path] = (sums, values)
        raw = keys.numpy().tobytes()
        for row in range(len(values)):
            self._rows[raw[row * KEY_BYTES : (row + 1) * KEY_BYTES]] = (path, row)

    def _load(self, key: bytes, place: tuple[Path, int] | None) -> Tensor | None:
        if place is None:
            return None
        path, row = place
        with self._guard:
            mapped = self._files.get(path)
        if mapped is None:
            return None  # removed meanwhile
        sums, values = mapped
        value = values[row].clone()
        if _hash(key, value) == int(sums[row]):
            return value
        self._refuse(path, f"record {row} has changed since it was written")
        return None

    def _refuse(self, path: Path, reason: str) -> None:
        """Remove a file that cannot be trusted, and forget its records: they are computed and written again."""
        with self._guard:
            known = self._files.pop(path, None)
            self._rows = {key: place for key, place in self._rows.items() if place[0] != path} if known else self._rows
            path.unlink(missing_ok=True)
        log.warning(f"{path} is damaged ({reason}): it is removed, and its features are computed again")


def _hash(key: bytes, value: Tensor) -> int:
    """Return the xxh3 hash of a record and its key, as a signed 64-bit number."""
    digest = xxhash.xxh3_64_digest(value.contiguous().view(-1).view(torch.uint8).numpy().data, seed=int.from_bytes(key[:8], "little"))
    return int.from_bytes(digest, "little", signed=True)


def _sweep(folder: Path) -> None:
    """Remove temporary files of writers that were killed. Call it with the root's lock, as a file is made before it is locked."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file while the block lasts; without locks on this disk, do not wait."""
    with path.open("a+", encoding="utf-8") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _last_used(folder: Path) -> float:
    about = folder / "about.json"
    return about.stat().st_mtime if about.is_file() else 0.0


def _removed(folder: Path) -> bool:
    """Remove a folder that no run holds; return whether it is gone."""
    try:
        with (folder / ".lock").open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.remove(folder)
    except OSError:
        return False
    log.info(f"  {folder.name}: removed, to make room: no run uses it")
    return True
