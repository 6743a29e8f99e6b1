"""Tell public network addresses from others, so that links cannot reach what is inside a network, as a cloud's metadata.

A host's name is looked up once per connection, and the connection goes to an address that was checked: another answer of the name server
afterwards changes nothing. Redirects are followed link by link, each checked likewise.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits


class PrivateAddress(OSError):
    """Raised for a host all of whose addresses are of this machine, a private network or no single host."""


def may_reach(address: str, allowed: Sequence[str] = ()) -> bool:
    """Return whether an IPv4 or IPv6 address, in digits, is public, or in a network of `allowed`, such as 10.0.0.0/8.

    Of an IPv6 address that holds an IPv4 one, that counts. Text that is no address is none that may be reached.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if any(parsed in ipaddress.ip_network(network) for network in allowed):
        return True
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return may_reach(str(inner), allowed)
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


class Resolver:
    """Looks up hosts for aiohttp, in threads, and returns only addresses that may be reached.

    `allowed`: networks that may be, besides public addresses.
    """

    def __init__(self, executor: Executor, timeout_s: float, allowed: Sequence[str]) -> None:
        self.executor, self.timeout_s, self.allowed = executor, timeout_s, allowed

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[dict[str, Any]]:
        """Return the addresses of a host as aiohttp wants them.

        Raises PrivateAddress if none may be reached, OSError if there are none or the name server is silent.
        """
        loop = asyncio.get_running_loop()
        lookup = loop.run_in_executor(self.executor, lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM))
        try:
            found = await asyncio.wait_for(lookup, self.timeout_s)
        except TimeoutError:
            raise OSError("the name server is silent") from None
        except UnicodeError as error:  # a label that is too long, or none
            raise OSError("no name of a host") from error
        kept = [row for row in found if may_reach(str(row[4][0]), self.allowed)]
        if found and not kept:
            raise PrivateAddress(f"{found[0][4][0]} is no public address")
        return [
            {"hostname": host, "host": row[4][0], "port": port, "family": row[0], "proto": row[2], "flags": socket.AI_NUMERICHOST}
            for row in kept
        ]

    async def close(self) -> None:
        """Do nothing: the executor is its owner's."""


def checked_socket(info: Any, allowed: Sequence[str]) -> socket.socket:
    """Return a new socket for the address that a connection goes to: the last check. Raises PrivateAddress for one that may not be reached.

    `allowed`: networks, besides public addresses. `info`: (family, type, protocol, name, address), as socket.getaddrinfo returns it.
    """
    family, kind, protocol, _, address = info
    if not may_reach(str(address[0]), allowed):
        raise PrivateAddress(f"{address[0]} is no public address")
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made
