"""Download data files that are read whole, such as tables, from their addresses into the cache folder.

One process of a machine, or of those that share the cache, downloads a file; the others wait for it.
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from plait.data import addresses
from plait.data.formats import index
from plait.data.remote import BLOCK_BYTES, RemoteFile
from plait.errors import PlaitError
from plait.files import remove, sync_folder
from plait.keys import key

log = logging.getLogger(__name__)

_POLL_S = 0.2  # between looks at a lock
_REPORT_S = 60.0  # between lines about one download
_LARGE_BYTES = 100 << 20  # a download that is told when it begins


def fetched(address: str, cache: str | Path | None) -> Path:
    """Return the path of a local copy of the file at `address`.

    It is downloaded unless the cache has it in the server's present version, by one process at a time. `cache`: the folder for it; None:
    the user's. Raises PlaitError if there is no such file, or it cannot be read or written.
    """
    remote = RemoteFile(address, None)
    ending = PurePosixPath(addresses.name_of(addresses.spelled_out(address))).suffix  # an address may be the name of a variable alone
    name = addresses.name_of(address).removesuffix(ending) + ending
    folder = f"{key(addresses.identity(address), remote.size, remote.stamp['version']):016x}"
    path = index.cache_folder(cache) / "files" / folder / name
    if _is_whole(path, remote):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"{addresses.shown(address)}: another process is downloading it, which is waited for"
        with one_at_a_time(path, waiting) as locked:
            if not _is_whole(path, remote):
                _download(remote, path, sweep=locked)
    except OSError as error:
        cure = "free space there, or set data.cache to a folder that can be written"
        raise PlaitError(f"cannot write {path}, a copy of {addresses.shown(address)}: {error.strerror}; {cure}") from error
    return path


def _is_whole(path: Path, remote: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == remote.size


@contextlib.contextmanager
def one_at_a_time(path: Path, waiting: str) -> Iterator[bool]:
    """Hold the lock on what makes `path`, waiting for it; yield False where the disk has no locks. `waiting`: logged if others hold it."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    told = False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    log.info(waiting)
                told = True
                time.sleep(_POLL_S)
                continue
            except OSError:
                yield False
                return
            yield True
            return
    finally:
        os.close(descriptor)


def _download(remote: RemoteFile, path: Path, *, sweep: bool) -> None:
    """Write the file at an address to `path`, whole or not at all. `sweep`: first delete what killed downloads left beside it."""
    for left in path.parent.glob(".*.tmp") if sweep else ():
        remove(left)
    shown, megabytes = addresses.shown(remote.address), f"{remote.size / 1e6:,.0f} MB"
    if remote.size >= _LARGE_BYTES:
        log.info(f"{shown}: {megabytes} are downloaded to {path.parent}")
    beside, told = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp"), time.monotonic()
    try:
        with beside.open("wb") as file:
            for start in range(0, remote.size, BLOCK_BYTES):
                file.write(remote.read(start, min(BLOCK_BYTES, remote.size - start)))
                if time.monotonic() - told >= _REPORT_S:
                    told = time.monotonic()
                    log.info(f"{shown}: {start / 1e6:,.0f} of {megabytes} are downloaded")
            file.flush()
            os.fsync(file.fileno())
        if not _is_whole(path, remote):  # else one without a lock was faster, and the time of its file is in an index
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)
