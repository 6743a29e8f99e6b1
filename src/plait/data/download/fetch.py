"""Fetch one link over HTTP, with limits of time and bytes. Redirects are followed one by one, and Retry-After is heeded.

Not here: which row is fetched when (engine.py), and what the body is (pictures.py).
"""

import asyncio
import errno
import os
import resource
import ssl
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait import __version__
from plait.data import web
from plait.data.download.hosts import Host, Hosts
from plait.data.download.limits import NetworkLimits
from plait.data.download.pictures import Refused
from plait.data.download.public_addresses import PrivateAddress, Resolver, checked_socket, may_reach
from plait.data.download.robots import AGENT, forbidden_by
from plait.errors import PlaitError

if TYPE_CHECKING:
    import aiohttp
    import yarl

_LOOKUPS = 64  # names of hosts that are looked up at once
_LARGE_BYTES = 1 << 20  # bodies over this are received a few at a time, so that memory is bounded
_LARGE_MOST = 16
_REDIRECTS = frozenset([301, 302, 303, 307, 308])
_BACKOFF_S = 1.0
_OTHER_FILES = 256  # open ones besides connections: journals, lists, look-ups
_OWN_LIMITS = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL])
_HEADERS = {
    "User-Agent": f"Mozilla/5.0 (compatible; {AGENT}/{__version__}; pictures for training)",
    "Accept": "image/*, */*;q=0.5",
    "Accept-Encoding": "identity",
}


class _Again(Refused):
    """Raised for a failure that may pass. `wait_s`: seconds that the server asks to wait; `counts`: whether it speaks against its host."""

    def __init__(self, status: str, detail: str = "", *, wait_s: float = 0.0, counts: bool = True) -> None:
        super().__init__(status, detail)
        self.wait_s, self.counts = wait_s, counts


class Fetcher:
    """Fetches links over connections that are kept and shared. Use it as an async context manager.

    `max_bytes`: of one body. `answered(url, began_s)`: called when a server has answered, whatever it said; when the request began,
    on time.monotonic, None for one over an older connection, which tells nothing of new ones. `calm()`: awaited before a link
    is asked for, and before a large body is received. Raises PlaitError where aiohttp, the
    extra `download`, is not installed.
    """

    def __init__(
        self, limits: NetworkLimits, max_bytes: int, *, answered: Callable[[str, float | None], None], calm: Callable[[], Awaitable[object]]
    ) -> None:
        self._aiohttp, self._yarl = _client()
        self.limits, self.max_bytes, self.answered, self.calm = limits, max_bytes, answered, calm

    async def __aenter__(self) -> "Fetcher":
        limits, aiohttp = self.limits, self._aiohttp
        _allow_files(limits.connections + _OTHER_FILES)
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="plait-lookup")
        resolver: Any = Resolver(self._lookups, limits.timeout_s, limits.allowed)
        connector = aiohttp.TCPConnector(
            limit=0,
            resolver=resolver,
            socket_factory=lambda info: checked_socket(info, limits.allowed),
        )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.timeout_s, sock_read=limits.timeout_s)
        traced = aiohttp.TraceConfig()
        traced.on_connection_reuseconn.append(_note_reuse)
        options: dict[str, Any] = {"timeout": timeout, "headers": _HEADERS, "auto_decompress": False}
        self._session = aiohttp.ClientSession(connector=connector, trace_configs=[traced], cookie_jar=aiohttp.DummyCookieJar(), **options)
        lone = aiohttp.TCPConnector(
            limit=0, force_close=True, resolver=resolver, socket_factory=lambda info: checked_socket(info, limits.allowed)
        )
        self._probes = aiohttp.ClientSession(connector=lone, cookie_jar=aiohttp.DummyCookieJar(), **options)
        self._hosts, self._large = Hosts(limits.connections, limits.per_host), asyncio.Semaphore(_LARGE_MOST)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()
        await self._probes.close()
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def fetch(self, address: str) -> bytes:
        """Return the body at an address, tried again where that may help. Raises Refused with the outcome of the last attempt."""
        for attempt in range(1, self.limits.attempts + 1):
            try:
                return await self._follow(address)
            except _Again as fault:
                wait_s = max(fault.wait_s, _BACKOFF_S * attempt)
                if attempt == self.limits.attempts or wait_s > self.limits.wait_s or self._hosts.failing(self._parsed(address).authority):
                    raise
            await asyncio.sleep(wait_s)
        raise AssertionError("unreachable")

    async def any_answers(self, addresses: Sequence[str]) -> bool:
        """Return whether the server of any of these addresses answers, over a new connection, whatever it says. No body is received."""
        asked = [asyncio.ensure_future(self._answers(address)) for address in addresses]
        try:
            for done in asyncio.as_completed(asked):
                if await done:
                    return True
            return False
        finally:
            for task in asked:
                task.cancel()

    async def _answers(self, address: str) -> bool:
        try:
            url = self._parsed(address)
            async with self._hosts.use(url.authority):
                began_s = time.monotonic()
                async with asyncio.timeout(self.limits.timeout_s), self._probes.get(url, allow_redirects=False):
                    self.answered(address, began_s)
                    return True
        except (Refused, TimeoutError, self._aiohttp.ClientError, ValueError):
            return False

    def forgive(self) -> None:
        """Forget which hosts failed, after the network did."""
        self._hosts.forgive()

    async def _follow(self, address: str) -> bytes:
        """Return the body at an address, its redirects followed. Raises Refused."""
        url, visited = self._parsed(address), set[str]()
        while True:
            if str(url) in visited or len(visited) > self.limits.redirects:
                raise Refused("redirects", "in a circle" if str(url) in visited else f"more than {self.limits.redirects}")
            visited.add(str(url))
            answer = await self._ask(url)
            if isinstance(answer, bytes):
                return answer
            url = answer

    def _parsed(self, address: str) -> "yarl.URL":
        """Return an address as a URL, whose escapes stay as they are. Raises Refused for none of http(s), or one in a private network."""
        text = address.strip()
        plain = _is_plain(text)
        try:
            url = self._yarl.URL(text, encoded=plain)
            host = url.host
        except ValueError:
            raise Refused("bad_url") from None
        if url.scheme not in ("http", "https") or not host:
            raise Refused("bad_url")
        digits = host.replace(".", "").isdecimal() or ":" in host  # aiohttp looks up no address in digits
        if digits and not may_reach(host, self.limits.allowed):
            raise Refused("private_address")
        parsed: yarl.URL = url.with_fragment(None)
        return parsed

    async def _ask(self, url: "yarl.URL") -> "bytes | yarl.URL":
        """Ask for one URL: return its body, or where it redirects to. Raises Refused."""
        aiohttp = self._aiohttp
        async with self._hosts.use(url.authority) as host:
            await self.calm()
            began_s, reused = time.monotonic(), list[bool]()
            asked = self._session.get(url, allow_redirects=False, trace_request_ctx=reused)
            try:
                async with asyncio.timeout(self.limits.whole_s) as clock, asked as answer:
                    self.answered(str(url), None if reused else began_s)
                    if answer.status in _REDIRECTS and "Location" in answer.headers:
                        return self._target(url, answer.headers["Location"])
                    body = await self._body(answer, host, clock)
            except Refused as fault:
                host.failed = host.failed + fault.counts if isinstance(fault, _Again) else 0
                raise
            except TimeoutError:
                host.failed += 1
                raise _Again("timeout") from None
            except aiohttp.ClientError as error:
                host.failed += 1
                raise self._fault(error) from None
            except (ValueError, UnicodeError) as error:  # a host that is no name, a header that is none
                raise Refused("bad_url", type(error).__name__) from None
            host.failed = 0
            return body

    def _target(self, url: "yarl.URL", location: str) -> "yarl.URL":
        """Return where a redirect leads. Raises Refused as `_parsed` does."""
        try:
            location = location.strip()
            joined = str(url.join(self._yarl.URL(location, encoded=_is_plain(location))))
        except ValueError:
            raise Refused("bad_url", "of a redirect") from None
        return self._parsed(joined)

    async def _body(self, answer: "aiohttp.ClientResponse", host: Host, clock: asyncio.Timeout) -> bytes:
        """Return the body of an answer, decompressed. Raises Refused for a status that is no success, and for one over the limits."""
        if answer.status in web.BUSY:
            wait_s = web.retry_after_s(answer.headers.get("Retry-After", ""))
            counts = host.pause(wait_s) if 0 < wait_s <= self.limits.wait_s else True  # of one pause many requests may learn
            raise _Again(f"http_{answer.status}", wait_s=wait_s, counts=counts)
        if answer.status != 200:
            raise Refused(f"http_{answer.status}")
        if (directive := forbidden_by(answer.headers.getall("X-Robots-Tag", ()))) is not None:
            raise Refused("opt_out", directive)
        encoding = answer.headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise Refused("encoding", encoding[:40])
        length = answer.content_length
        if length is not None and length > self.max_bytes:
            raise Refused("too_large", f"{length} bytes")
        if length is not None and length > _LARGE_BYTES:
            async with self._one_of_few(clock):
                body = await self._received(answer, bytearray())
        else:
            body = await self._received(answer, bytearray(), _LARGE_BYTES)
            if len(body) >= _LARGE_BYTES:
                async with self._one_of_few(clock):
                    body = await self._received(answer, body)
        return bytes(body) if encoding in ("identity", "") else _decompressed(body, self.max_bytes)

    def _one_of_few(self, clock: asyncio.Timeout) -> "_Turn":
        return _Turn(self._large, clock, self.calm)

    async def _received(self, answer: "aiohttp.ClientResponse", body: bytearray, pause_at: int | None = None) -> bytearray:
        """Receive the rest of a body after its beginning `body`, or as much of it as `pause_at` bytes. Raises Refused over `max_bytes`."""
        while piece := await answer.content.readany():
            body += piece
            if len(body) > self.max_bytes:
                raise Refused("too_large", f"over {self.max_bytes} bytes")
            if pause_at is not None and len(body) >= pause_at:
                break
        return body

    def _fault(self, error: Exception) -> Refused:
        """Return the outcome of an error of aiohttp. Raises PlaitError for one of this machine, for which no link is to blame."""
        aiohttp = self._aiohttp
        causes = [error, *filter(None, [error.__cause__, getattr(error, "os_error", None)])]
        if any(isinstance(cause, PrivateAddress) for cause in causes):
            return Refused("private_address")
        if isinstance(error, aiohttp.ServerTimeoutError):
            return _Again("timeout")
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return Refused("dns")
        if isinstance(error, aiohttp.ClientSSLError) or any(isinstance(cause, ssl.SSLError) for cause in causes):
            if _no_authorities():
                raise PlaitError("no host can be trusted: this machine has no certificates of authorities; install ca-certificates")
            return Refused("tls", type(error).__name__)
        if isinstance(error, OSError) and error.errno in _OWN_LIMITS:
            raise PlaitError(f"this machine opens no more connections ({os.strerror(error.errno)}): give fewer --connections")
        if isinstance(error, aiohttp.ClientConnectorError):
            return Refused("connect", str(error.os_error.strerror or "") if error.os_error else "")
        if isinstance(error, aiohttp.ClientPayloadError):
            return _Again("truncated")
        if isinstance(error, aiohttp.InvalidURL):
            return Refused("bad_url")
        return _Again("broken_answer", type(error).__name__)


class _Turn:
    """Holds one of a few turns; the time until it is had does not count for the clock of the request."""

    def __init__(self, turns: asyncio.Semaphore, clock: asyncio.Timeout, calm: Callable[[], Awaitable[object]]) -> None:
        self.turns, self.clock, self.calm = turns, clock, calm

    async def __aenter__(self) -> None:
        loop, until = asyncio.get_running_loop(), self.clock.when()
        began = loop.time()
        self.clock.reschedule(None)
        await self.turns.acquire()
        await self.calm()
        self.clock.reschedule(None if until is None else until + loop.time() - began)

    async def __aexit__(self, *error: object) -> None:
        self.turns.release()


async def _note_reuse(session: object, context: Any, reused: object) -> None:
    context.trace_request_ctx.append(True)


def _decompressed(body: bytearray, most: int) -> bytes:
    """Return the content of a gzip or deflate body. Raises Refused if it is damaged, cut short or over `most` bytes."""
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # with a header of gzip or zlib; without one, as some servers send deflate
        unpacker = zlib.decompressobj(window)
        try:
            content = unpacker.decompress(body, most + 1)
        except zlib.error:
            continue
        if len(content) > most:
            raise Refused("too_large", f"over {most} bytes, unpacked")
        if not unpacker.eof:
            raise Refused("truncated", "its compression does not end")
        return content
    raise Refused("encoding", "damaged")


def _is_plain(text: str) -> bool:
    """Return whether an address has only letters that one may have, so that it is asked for as it is."""
    return text.isascii() and not any(letter <= " " or letter in '"<>\\^`{|}' for letter in text)


def _allow_files(needed: int) -> None:
    """Raise this process's limit of open files to `needed`. Raises PlaitError where the machine does not allow so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, max(hard, needed)):
        raise PlaitError(f"{needed} open files are needed, and this machine allows {hard}: fewer --connections, or a higher ulimit -n")
    if soft not in (resource.RLIM_INFINITY, max(soft, needed)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _no_authorities() -> bool:
    """Return whether this machine has no certificates of authorities, by which a host's own is known."""
    folder = ssl.get_default_verify_paths().capath
    single = folder is not None and any(Path(folder).iterdir())
    return not (single or ssl.create_default_context().cert_store_stats()["x509_ca"])


def _client() -> tuple[Any, Any]:
    """Return the modules aiohttp and yarl. Raises PlaitError where they are not installed."""
    try:
        import aiohttp
        import yarl
    except ImportError:
        raise PlaitError("plait data download needs aiohttp: pip install 'plait[download]'") from None
    return aiohttp, yarl
