"""Hold connections to each host within limits, leave hosts alone that ask to wait, and know those that keep failing."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_WITHOUT_RETRIES = 8  # failures in a row after which a host's links are tried once each
_REMEMBERED = 50_000  # hosts; then those that nothing is asked of are forgotten


class Host:
    """One host. `failed`: requests that failed in a row, and pauses that it asked for; `users`: tasks that hold this object."""

    def __init__(self, connections: int) -> None:
        self.free = asyncio.Semaphore(connections)
        self.resume_s, self.failed, self.users = 0.0, 0, 0

    @property
    def failing(self) -> bool:
        """Whether further attempts at a link of this host are of no use."""
        return self.failed >= _WITHOUT_RETRIES

    @property
    def left_s(self) -> float:
        """Seconds until this host may be asked again; 0 for one that keeps failing, whose links are asked for once."""
        return 0.0 if self.failing else max(0.0, self.resume_s - time.monotonic())

    def pause(self, wait_s: float) -> bool:
        """Ask nothing of this host for `wait_s` seconds, as it told. Returns whether it is a new pause, not the present one."""
        new = self.resume_s <= time.monotonic()
        self.resume_s = max(self.resume_s, time.monotonic() + wait_s)
        return new


class Hosts:
    """The hosts that are asked now, and those that fail or pause; others are forgotten, as a list may name millions.

    `connections`: at once, `per_host` of them to one host.
    """

    def __init__(self, connections: int, per_host: int) -> None:
        self.per_host, self._free = per_host, asyncio.Semaphore(connections)
        self._known: dict[str, Host] = {}

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Host]:
        """Wait until a host may be asked and a connection is free, and hold both. Tasks that wait for a host hold no connection."""
        host = self._known.setdefault(name, Host(self.per_host))
        if len(self._known) > _REMEMBERED:
            self._known = {name: known for name, known in self._known.items() if known.users or known is host}
        host.users += 1
        try:
            async with host.free:
                while True:
                    await asyncio.sleep(host.left_s)
                    await self._free.acquire()
                    if not host.left_s:
                        break
                    self._free.release()
                try:
                    yield host
                finally:
                    self._free.release()
        finally:
            host.users -= 1
            if not (host.users or host.failed or host.resume_s > time.monotonic()):
                self._known.pop(name, None)

    def failing(self, name: str) -> bool:
        """Return whether a host has failed many times in a row."""
        return name in self._known and self._known[name].failing

    def forgive(self) -> None:
        """Forget failures of all hosts."""
        for host in self._known.values():
            host.failed = 0
