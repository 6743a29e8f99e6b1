"""Read files at addresses (s3://, https://, ...) by byte range: through fsspec, and http(s) through web.py.

With a cache folder, blocks of 4 MiB are fetched once and kept, each written whole or not at all. Without one, exactly the bytes requested
are fetched, and nothing is kept. A failed read is retried after growing waits, a bounded number of times, each for a bounded time.
"""

import errno
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from plait.config import secrets
from plait.data import addresses, web
from plait.data.addresses import shown
from plait.data.formats.open_file import check_size
from plait.data.web import Fault, Stored
from plait.errors import PlaitError
from plait.files import expanded, write_whole
from plait.keys import key

log = logging.getLogger(__name__)
T = TypeVar("T")

BLOCK_BYTES = 4 << 20
_WAITS_S = (0.5, 2.0, 8.0, 30.0)  # between attempts at one range
_WAIT_MAX_S = 60.0  # that a server may ask for
_SOON_S = 2.0  # without an answer, until it is said what is waited for
_AT_FIRST = 2  # attempts at a server that has answered nothing yet, and is silent
_WITHOUT_WAITS, _DOWN = 2, 8  # reads of one server that failed in a row: until the next is tried once only, until the run stops
_LOCKS = 16  # two threads never fetch one block at once
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_STAYS = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, TypeError)  # another attempt would meet these again
# s3fs makes EINVAL of 400, ENOSYS of 501, EMSGSIZE of a file that is too large
_WRONG = frozenset([errno.EINVAL, errno.ENAMETOOLONG, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS, errno.EMSGSIZE])
_KEYS = frozenset(["NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound", "ParamValidationError"])


class Unavailable(PlaitError):
    """Raised for a remote file that does not exist or that its server refuses to send. A retry would be of no use."""


class Unreachable(PlaitError):
    """Raised when 8 reads in a row from one server have failed. No sample is at fault, so the run stops, and can be continued later."""

    exit_code = 1
    of_one_sample = False


def connect(address: str) -> tuple[Any, str]:
    """Return (fsspec file system, path inside it) of an address such as s3://bucket/file.tar.

    Raises PlaitError for a protocol that fsspec does not know, or whose package is not installed.
    """
    try:
        system, inner = fsspec.core.url_to_fs(addresses.spelled_out(address))
        return system, str(inner)
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(address.partition("://")[0])
        cure = f"; pip install 'plait[{extra}]'" if extra and isinstance(error, ImportError) else ""
        raise PlaitError(f"cannot open {shown(address)}: {secrets.without_secrets(str(error))}{cure}") from None


class _Silent(Fault):
    """Raised where an attempt got no whole answer in its time."""


class _Web:
    """Reads a file at an http(s) address."""

    def __init__(self, address: str) -> None:
        self._url = addresses.spelled_out(address)

    def stored(self) -> Stored:
        return web.stored(self._url)

    def fetch(self, start: int, end: int) -> tuple[bytes, Stored | None]:
        return web.fetch(self._url, start, end)

    def whole(self, size: int) -> bytes:
        return web.fetch(self._url, 0, size)[0] if size else b""


class _Store:
    """Reads a file through fsspec, whose stores raise errors of their own."""

    def __init__(self, address: str) -> None:
        self._system, self._inner = connect(address)

    def stored(self) -> Stored:
        info = _translated(lambda: self._system.info(self._inner))
        return Stored(None if info.get("size") is None else int(info["size"]), _version(info))

    def fetch(self, start: int, end: int) -> tuple[bytes, Stored | None]:
        return _translated(lambda: self._system.cat_file(self._inner, start=start, end=end)), None

    def whole(self, size: int) -> bytes:
        body: bytes = _translated(lambda: self._system.cat_file(self._inner))
        return body


def _translated(action: Callable[[], T]) -> T:
    """Call `action` of a store; an error becomes FileNotFoundError or Fault."""
    try:
        return action()
    except FileNotFoundError:
        raise FileNotFoundError from None
    except Exception as error:  # noqa: BLE001  # each store has errors of its own
        lines = secrets.without_secrets(str(error)).splitlines() or [""]
        raise Fault(lines[0] or type(error).__name__, again=may_pass(error), server=True) from None


def may_pass(error: Exception) -> bool:
    """Return whether another attempt may succeed after an error of a store: its kind, errno or HTTP status says nothing else."""
    status = next((value for name in ("status", "code") if isinstance(value := getattr(error, name, None), int)), 0)
    refused = status >= HTTPStatus.BAD_REQUEST and status not in web.BUSY and status <= HTTPStatus.NOT_IMPLEMENTED
    no_keys = _KEYS.intersection(kind.__name__ for kind in type(error).__mro__)
    return not (isinstance(error, _STAYS) or getattr(error, "errno", None) in _WRONG or refused or no_keys)


class RemoteFile:
    """A remote file that is read by byte range; thread-safe and picklable.

    `cache`: the folder that keeps fetched blocks; None: none are kept. `size`: in bytes. `stamp`: {"size", "version"}, by which a change
    is noticed.
    Raises PlaitError for a file that does not exist, cannot be reached or has no known size.
    """

    def __init__(self, address: str, cache: str | Path | None) -> None:
        self.address = address
        self._connect()
        size, version = self._try(self._reader.stored, "read", 1)
        if size is None:
            raise PlaitError(f"{shown(address)} does not tell its size, so it cannot be read by range; copy it to disk first")
        self.size = size
        self.stamp: dict[str, Any] = {"size": self.size, "version": version}
        name = f"{addresses.name_of(address)}-{key(addresses.identity(address), self.size, version):016x}"
        self._blocks = expanded(cache) / "blocks" / name if cache else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_reader", "_locks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()

    def _connect(self) -> None:
        self._reader = (_Web if addresses.is_web(self.address) else _Store)(self.address)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on.

        Raises PlaitError past the end, if the file is gone, or after several failed attempts; BadSample for over MOST_BYTES (1 GiB).
        """
        check_size(shown(self.address), length)
        if offset + length > self.size:
            raise PlaitError(f"{shown(self.address)}: bytes {offset} to {offset + length} lie past its end at {self.size}")
        if self._blocks is None:
            return self._fetch(offset, offset + length)
        first, last = offset // BLOCK_BYTES, (offset + max(length, 1) - 1) // BLOCK_BYTES
        body = b"".join(self._block(number) for number in range(first, last + 1))
        return body[offset - first * BLOCK_BYTES :][:length]

    def whole(self) -> bytes:
        """Return the bytes of the whole file, without cached blocks. Raises PlaitError if it is gone, or after several failed attempts."""
        return self._try(lambda: _of_length(self._reader.whole(self.size), self.size), "read", self.size)

    def _block(self, number: int) -> bytes:
        """Return a block from the cache folder, fetched first if it is not there."""
        start, end = number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, self.size)
        assert self._blocks is not None
        cached = self._blocks / f"{number:08d}"
        with self._locks[number % _LOCKS]:
            if cached.is_file() and len(body := cached.read_bytes()) == end - start:
                return body
            body = self._fetch(start, end)
            write_whole(cached, body)
            return body

    def _fetch(self, start: int, end: int) -> bytes:
        def attempt() -> bytes:
            body, said = self._reader.fetch(start, end)
            if said is not None and not self._is_of(said):
                raise Fault("it is another file than at the start: it changed")
            return _of_length(body, end - start)

        return b"" if start == end else self._try(attempt, f"read bytes {start} to {end} of", end - start)

    def _is_of(self, said: Stored) -> bool:
        """Return whether size and version, as far as an answer tells them, are those of this file."""
        version = self.stamp["version"]
        return said.size in (None, self.size) and (said.version == version or "" in (said.version, version))

    def _try(self, action: Callable[[], T], what: str, length: int) -> T:
        """Call `action`, which reads `length` bytes, again after a wait when it fails. Raises PlaitError after the last attempt."""
        return _tried(self.address, action, what, length)


def listing(address: str, action: Callable[[Any, str], T]) -> T:
    """Return `action(file system, path)` of an address, a look at what a store holds.

    It is tried again and bounded in time as a read is. Raises PlaitError after the last attempt, and what `connect` raises.
    """
    system, inner = connect(address)
    return _tried(address, lambda: _translated(lambda: action(system, inner)), "list", 0)


def _tried(address: str, action: Callable[[], T], what: str, length: int) -> T:
    """Call `action`, which reads `length` bytes at an address, again after a wait when it fails. Raises PlaitError after the last attempt.

    Of a server that has not answered yet is said what is waited for, and for how long at most.
    """
    limit_s = web.allowed_s(length) + web.SILENCE_S
    for attempt in range(1, len(_WAITS_S) + 2):
        try:
            result = _within(limit_s, action, lambda: _servers.awaited(address, limit_s))
            _servers.answered(address)
            return result
        except FileNotFoundError:
            _servers.answered(address)
            raise Unavailable(f"there is no file {shown(address)}") from None
        except Fault as fault:
            wait_s = _servers.wait_s(address, fault, attempt)
            if wait_s is None:
                said = f"cannot {what} {shown(address)} ({attempt} attempt{'s' * (attempt > 1)}): {fault}"
                said += f"; {fault.cure}" if fault.cure else ""
                _servers.failed(address, fault, said)
                raise (PlaitError if fault.again else Unavailable)(said) from None
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def in_time(address: str, limit_s: float, action: Callable[[], T]) -> T:
    """Return what `action` does with a store at an address, tried once; after two seconds it is said what is waited for.

    Raises TimeoutError after `limit_s`, and what the action raises.
    """
    try:
        return _within(limit_s, action, lambda: log.info(f"waiting for an answer of {_server(address)}, {limit_s:.0f} s at most"))
    except _Silent as fault:
        raise TimeoutError(str(fault)) from None


class _Servers:
    """Per server that this process reads from: how many reads failed in a row, and whether a failure was logged."""

    def __init__(self) -> None:
        self._lock, self._failed, self._reported = threading.Lock(), Counter[str](), set[str]()
        self._answered, self._awaited = set[str](), set[str]()
        """Servers that have answered, and those of which was said that they are waited for."""

    def wait_s(self, address: str, fault: Fault, attempt: int) -> float | None:
        """Return the seconds to wait after failed attempt number `attempt` (from 1); None: give up. Logs a server's first wait."""
        server = _server(address)
        with self._lock:
            if isinstance(fault, _Silent) and server not in self._answered and attempt >= _AT_FIRST:
                return None
            if not fault.again or attempt > len(_WAITS_S) or fault.wait_s > _WAIT_MAX_S or self._failed[server] >= _WITHOUT_WAITS:
                return None
            first = server not in self._reported
            self._reported.add(server)
        if first:
            log.warning(f"{shown(address)}: {fault}; tried again, {len(_WAITS_S)} times at most; of {server} this is said once")
        wait_s: float = _WAITS_S[attempt - 1]
        return max(wait_s, fault.wait_s)

    def awaited(self, address: str, limit_s: float) -> None:
        """Log that a server is waited for, once, if it has not answered yet. `limit_s`: what one attempt may take."""
        server = _server(address)
        with self._lock:
            new = server not in self._answered | self._awaited
            self._awaited.add(server)
        if new:
            total_s = _AT_FIRST * limit_s + sum(_WAITS_S[: _AT_FIRST - 1])
            log.info(f"waiting for an answer of {server}, {total_s:.0f} s at most")

    def answered(self, address: str) -> None:
        """Note that a read succeeded."""
        with self._lock:
            self._answered.add(_server(address))
            self._failed.pop(_server(address), None)

    def failed(self, address: str, fault: Fault, said: str) -> None:
        """Note that a read failed for good. Raises Unreachable if many reads in a row have failed: then no sample is at fault."""
        if not fault.server:
            return
        with self._lock:
            self._failed[_server(address)] += 1
            in_a_row = self._failed[_server(address)]
        if in_a_row >= _DOWN:
            cure = "when it answers again, the same command continues"
            raise Unreachable(f"{_server(address)} is down: {in_a_row} reads in a row failed, the last: {said}; {cure}") from None


_servers = _Servers()


def _server(address: str) -> str:
    """Return protocol and host (or bucket) of an address, as it may be printed."""
    parts = urlsplit(shown(address))
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme else shown(address)


def _within(limit_s: float, action: Callable[[], T], waits: Callable[[], None]) -> T:
    """Return what `action` returns. Raises Fault after `limit_s`: name look-ups, slow headers and stores have no limit of their own.

    `waits`: called when it takes longer than two seconds.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(action())
        except BaseException as error:  # noqa: BLE001  # given to the caller, which raises it
            done.set_exception(error)

    threading.Thread(target=run, name="plait-remote", daemon=True).start()
    soon_s = min(_SOON_S, limit_s)
    try:
        return done.result(soon_s)
    except TimeoutError:
        if done.done():  # the action's own
            raise
        waits()
    try:
        return done.result(limit_s - soon_s)
    except TimeoutError:
        raise _Silent(f"no whole answer in {limit_s:.0f} s", server=True) from None


def _of_length(body: bytes, length: int) -> bytes:
    """Return `body` if it has `length` bytes. Raises Fault otherwise."""
    if len(body) != length:
        raise Fault(f"{len(body)} bytes of {length} came: it changed, or was cut short")
    return body


def _version(info: dict[str, Any]) -> str:
    """Return a store's hash of a file's content, else its time, "" if it reports neither. It differs once the file has changed."""
    marks = (info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created"))
    return str(next((mark for mark in marks if mark is not None), ""))
