"""Keep whole remote shards on the local disk, a bounded number of bytes, for all processes and runs of a machine.

    CACHE/streamed/NAME-HASH.tar      one shard; its time of access says when it was last wanted (.arrow: one row group of parquet)
    CACHE/streamed/.NAME-HASH.tar.tmp one that is being downloaded, and locked as long as that lasts
    CACHE/streamed/.room              locked while room is made

One process downloads a shard while the others wait for it. To make room the shards that were wanted longest ago go. One that somebody has
open stays readable until it is closed, and is downloaded again where it is wanted later: what is deleted changes no sample.
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from plait.data import addresses
from plait.data.formats import index
from plait.errors import PlaitError
from plait.keys import key

log = logging.getLogger(__name__)

_ENDINGS = (".tar", ".arrow")  # of what is kept
_PIECE_BYTES, _PIECES_AT_ONCE = 8 << 20, 4  # of one shard
_POLL_S = 0.05  # between looks at a shard that another process downloads


class CacheFull(PlaitError):
    """Raised where a shard cannot be written. No sample is at fault, so the run stops, and can be continued later."""

    exit_code = 1
    of_one_sample = False


class Abandoned(PlaitError):
    """Raised where a download is given up because nobody waits for it any more."""


class Downloadable(Protocol):
    """A file at an address, or a part of one, that is copied whole."""

    @property
    def address(self) -> str:
        """Where it is; a path on a disk, quoted."""

    @property
    def size(self) -> int:
        """Its bytes."""

    @property
    def stamp(self) -> dict[str, Any]:
        """What tells a changed file, `version` among it."""

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on. Raises PlaitError if they cannot be had."""


class ShardCache:
    """The folder of downloaded shards below `cache` (None: the user's), of at most `limit_bytes`, whose names have this `ending`.

    `at_once`: shards that readers need at a time. Where so many of them are larger than the limit, they are kept all the same, and a
    warning says so: with fewer the same shard would be downloaded again and again.
    """

    def __init__(self, cache: str | Path | None, limit_bytes: int, at_once: int, ending: str = _ENDINGS[0]) -> None:
        self.folder, self.limit_bytes, self.at_once = index.cache_folder(cache) / "streamed", limit_bytes, at_once
        self._ending, self._warned = ending, False

    def path_of(self, remote: Downloadable) -> Path:
        """Return where a shard is, or will be: a name for each address and version, however the address is signed."""
        version = key(addresses.identity(remote.address), remote.size, remote.stamp["version"])
        return self.folder / f"{Path(addresses.name_of(remote.address)).stem}-{version:016x}{self._ending}"

    def find(self, remote: Downloadable) -> Path | None:
        """Return the path of a shard that is here, which counts as wanted now; None for one that is not."""
        path = self.path_of(remote)
        with contextlib.suppress(OSError):
            status = path.stat()
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
            return path
        return None

    def obtain(self, remote: Downloadable, prepare: Callable[[Path], object], abandoned: Callable[[], bool]) -> Path:
        """Return the path of a shard, downloaded first if it is not here. `abandoned()`: True once nobody waits for it any more.

        `prepare(path)`: called once with the shard before others see it, to index it; where it raises, the shard is not kept.

        Raises PlaitError if it cannot be read, CacheFull if it cannot be written, Abandoned if it is given up.
        """
        path = self.path_of(remote)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while (here := self.find(remote)) is None:
                with _locked(path.with_name(f".{path.name}.tmp")) as (descriptor, beside):
                    if descriptor is None:
                        time.sleep(_POLL_S)
                    elif self.find(remote) is None:
                        try:
                            self._download(remote, descriptor, beside, abandoned)
                            prepare(beside)
                            beside.replace(path)
                        except BaseException:
                            beside.unlink(missing_ok=True)  # while it is locked: afterwards the name may be another's
                            raise
                if abandoned():
                    raise Abandoned(f"{addresses.shown(remote.address)} is wanted no more")
        except OSError as error:
            cure = "free space there, lower options.cache_gb of the source, or set data.cache to a folder that can be written"
            raise CacheFull(f"cannot write {path}, a copy of {addresses.shown(remote.address)}: {error.strerror}; {cure}") from error
        return here

    def _download(self, remote: Downloadable, descriptor: int, beside: Path, abandoned: Callable[[], bool]) -> None:
        """Write a shard to the locked file `beside`."""
        with _locked(self.folder / ".room", wait=True):
            self._make_room(remote, beside)
            os.ftruncate(descriptor, remote.size)  # the bytes that others count as taken

        def copy(start: int) -> None:
            if abandoned():
                raise Abandoned(f"{addresses.shown(remote.address)} is wanted no more")
            body = memoryview(remote.read(start, min(_PIECE_BYTES, remote.size - start)))
            while body:
                written = os.pwrite(descriptor, body, start)
                start, body = start + written, body[written:]

        _side_by_side(copy, range(0, remote.size, _PIECE_BYTES))
        os.fsync(descriptor)

    def _make_room(self, remote: Downloadable, beside: Path) -> None:
        """Delete shards, the longest unwanted first, until there is room for one more, and what killed downloads have left."""
        limit = max(self.limit_bytes, self.at_once * remote.size)
        if limit > self.limit_bytes and not self._warned:
            self._warned = True
            log.warning(
                f"{addresses.shown(remote.address)}: options.cache_gb is {self.limit_bytes / 1e9:g}, and the {self.at_once} shards "
                f"that are needed at a time take up to {limit / 1e9:.3g} GB, which they are given: a smaller options.block needs fewer"
            )
        whole, total = [], remote.size
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix in _ENDINGS:
                    whole.append((status.st_atime_ns, status.st_size, path))
                elif path.suffix != ".tmp" or path == beside:
                    continue
                elif _is_left(path):
                    path.unlink(missing_ok=True)
                    continue
                total += status.st_size
        for _, size, path in sorted(whole):
            if total <= limit:
                break
            path.unlink(missing_ok=True)
            total -= size


def _is_left(path: Path) -> bool:
    """Return whether the process that downloaded a shard to `path` has ended without finishing it."""
    with _locked(path, create=False) as (descriptor, _):
        return descriptor is not None


def _side_by_side(work: Callable[[int], None], items: range) -> None:
    """Call `work` with each item, in a few threads, and wait for them. Raises what the first call that failed has raised.

    The threads are daemons: a server that is silent does not delay the end of the process.
    """
    left, lock, errors = iter(items), threading.Lock(), list[BaseException]()

    def run() -> None:
        while not errors:
            with lock:
                item = next(left, None)
            if item is None:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001  # raised by the caller
                errors.append(error)

    threads = [threading.Thread(target=run, name="plait-download", daemon=True) for _ in range(min(_PIECES_AT_ONCE, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _locked(path: Path, *, create: bool = True, wait: bool = False) -> Iterator[tuple[int | None, Path]]:
    """Open and lock a file; yield (descriptor, its path), with None where another has it. Without locks on the disk, an own file.

    `create`: make it if it is not there; `wait`: for another that has it.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | (os.O_CREAT if create else 0), 0o666)
    except FileNotFoundError:
        if create:
            raise
        yield None, path
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            own = os.path.samestat(os.fstat(descriptor), path.stat())  # else it was renamed meanwhile
        except (BlockingIOError, FileNotFoundError):
            own = False
        except OSError:  # no locks here
            own = create
            if create and not wait:
                os.close(descriptor)
                path = path.with_name(f"{path.stem}.{os.getpid()}-{threading.get_native_id()}.tmp")
                descriptor = os.open(path, flags | os.O_CREAT, 0o666)
        yield (descriptor if own else None), path
    finally:
        os.close(descriptor)
