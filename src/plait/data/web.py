"""Read one byte range of a file at an http(s) address: one request, whose answer is checked against the range asked for.

Retries are in remote.py.
"""

import atexit
import functools
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from plait.errors import PlaitError

if TYPE_CHECKING:
    import httpx

CONNECT_S, SILENCE_S = 5.0, 10.0  # for a connection, and between two pieces of an answer
_SLOWEST_BYTES_PER_S = 64 << 10  # an answer that takes longer than this, and SILENCE_S, is given up
_REDIRECTS_MAX = 10
BUSY = frozenset([408, 425, 429, 500, 502, 503, 504])
"""Statuses of requests that may succeed later."""
_RANGES = "use a server that answers Range requests, or copy the file to disk"
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")


class Fault(Exception):
    """Raised when an attempt to read a remote file has failed; its text says why, without any secret.

    `again`: another attempt may succeed, not before `wait_s` seconds. `server`: the server failed, not this file alone. `cure`: advice to
    the user for the case that every attempt fails.
    """

    def __init__(self, reason: str, *, again: bool = True, server: bool = False, wait_s: float = 0.0, cure: str = "") -> None:
        super().__init__(reason)
        self.again, self.server, self.wait_s, self.cure = again, server, wait_s, cure


class Stored(NamedTuple):
    """What a server reports of a file. `size` in bytes (None: unknown), and `version`, a hash or a time ("": unknown)."""

    size: int | None
    version: str


def allowed_s(length: int) -> float:
    """Return the time limit, in seconds, of one attempt to read `length` bytes."""
    return CONNECT_S + SILENCE_S + length / _SLOWEST_BYTES_PER_S


def stored(url: str) -> Stored:
    """Return the size and version of a file, by requesting its first byte; an empty file has size 0.

    A HEAD request would be refused where an address is signed for reading. Raises FileNotFoundError if it does not exist, PlaitError if
    httpx is not installed, Fault for any other failure.
    """
    return fetch(url, 0, 1)[1]


def fetch(url: str, start: int, end: int) -> tuple[bytes, Stored]:
    """Return the bytes [start, end) of a file, and its size and version.

    Raises FileNotFoundError if it does not exist, PlaitError if httpx (the extra `http`) is not installed, Fault for any other failure.
    """
    client = _client()
    import httpx

    began, length = time.monotonic(), end - start
    body = bytearray()
    try:
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with client.stream("GET", url, headers=headers) as answer:
            said = _check(answer, start, end)
            if said.size == 0:
                return b"", said
            for piece in answer.iter_raw():
                body += piece
                if len(body) > length:
                    raise Fault(f"more than the {length} bytes asked for came")
                if (took_s := time.monotonic() - began) > allowed_s(length):
                    raise Fault(f"only {len(body)} of {length} bytes came in {took_s:.0f} s", server=True)
    except httpx.TooManyRedirects:
        raise Fault(f"it redirects more than {_REDIRECTS_MAX} times", again=False, cure="name the address that holds the file") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise Fault("it is, or leads to, no http(s) address", again=False) from None
    except httpx.TimeoutException:
        raise Fault(f"nothing came for {SILENCE_S:g} s, or no connection in {CONNECT_S:g} s", server=True) from None
    except httpx.TransportError as error:  # its text may hold the address
        came = f" after {len(body)} of {length} bytes" if body else ""
        raise Fault(f"the connection failed{came} ({type(error).__name__})", server=not body) from None
    if len(body) < length:
        raise Fault(f"only {len(body)} of {length} bytes came")
    return bytes(body), said


@functools.cache
def _client() -> "httpx.Client":
    """Return this process's connections. Raises PlaitError where httpx is not installed."""
    try:
        import httpx
    except ImportError:
        raise PlaitError("http(s) addresses need httpx: pip install 'plait[http]'") from None
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    client = httpx.Client(timeout=timeout, follow_redirects=True, max_redirects=_REDIRECTS_MAX)
    atexit.register(client.close)
    return client


def _check(answer: "httpx.Response", start: int, end: int) -> Stored:
    """Return what an answer says of its file. Raises FileNotFoundError and Fault for any that is not exactly the bytes [start, end)."""
    status, headers = answer.status_code, answer.headers
    version = headers.get("ETag") or headers.get("Last-Modified") or ""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if status in (404, 410):
        raise FileNotFoundError
    if status == HTTPStatus.OK:
        raise Fault("the whole file came in place of a range", again=start > 0, cure=_RANGES)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start == 0 and match and match[3] == "0":
        return Stored(0, version)
    if status != HTTPStatus.PARTIAL_CONTENT:
        raise _refused(status, headers)
    if match is None or (match[1], match[2]) != (str(start), str(end - 1)):
        what = f"Content-Range is {headers.get('Content-Range', 'missing')[:60]!r}, not bytes {start}-{end - 1}"
        raise Fault(what, again=start > 0, cure=_RANGES)  # at the start of a file it is how this server answers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Fault(f"Content-Encoding is {headers['Content-Encoding'][:60]!r}, so offsets mean nothing", again=False)
    return Stored(None if match[3] == "*" else int(match[3]), version)


def _refused(status: int, headers: Mapping[str, str]) -> Fault:
    """Return the fault of a status that is no success."""
    phrase = next((known.phrase for known in HTTPStatus if known == status), "")
    name = f"status {status} {phrase}".rstrip()
    if status in (401, 403):
        return Fault(name, again=False, cure="its signature may have expired: renew it")
    return Fault(name, again=status in BUSY, server=status in BUSY, wait_s=retry_after_s(headers.get("Retry-After", "")))


def retry_after_s(text: str) -> float:
    """Return the seconds that a Retry-After header asks to wait: a number, or a date. 0 for anything else."""
    if text.strip().isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
