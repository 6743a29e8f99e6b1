"""Find the address by which other machines reach this one, for ranks on several machines. Nothing is sent: routes and interfaces are read.

A machine's own name is no such address: Debian and Ubuntu give it 127.0.1.1 in /etc/hosts, and other machines may not know it at all.
"""

import fcntl
import ipaddress
import socket
import struct
import time

from plait.errors import PlaitError, Stopped

_SIOCGIFADDR = 0x8915  # netdevice(7): the IPv4 address of an interface
RESOLVED_WITHIN_S = 60.0
"""How long a name may take to become known: a cluster tells the names of pods some time after they start."""


def resolve(host: str, within_s: float = RESOLVED_WITHIN_S) -> str:
    """Return the first IP address of a host name, or an address itself. Raises Stopped, a PlaitError, if it is unknown for `within_s` s."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            if time.monotonic() >= deadline:
                raise Stopped(
                    f"the name {host!r} is not known on {socket.gethostname()} ({error.strerror}); "
                    "give the head's address, or add the name to DNS or to /etc/hosts"
                ) from error
            time.sleep(0.5)


def source_address(target: str) -> str:
    """Return the address from which this machine would send to the IP address `target`. Raises PlaitError where no route leads there."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as unsent:  # connecting a datagram socket looks up the route, and sends nothing
        try:
            unsent.connect((target, 9))
        except OSError as error:
            raise PlaitError(f"{socket.gethostname()} has no route to {target} ({error.strerror}); give another address") from error
        return str(unsent.getsockname()[0])


def is_own(address: str) -> bool:
    """Return whether the IP address belongs to this machine."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def is_loopback(address: str) -> bool:
    """Return whether the IP address is one that no other machine reaches, such as 127.0.1.1."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def interfaces() -> dict[str, str]:
    """Return the IPv4 address of every interface that has one, by the interface's name: {"lo": "127.0.0.1", "eth0": "10.0.0.1"}."""
    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
            except OSError:  # it has none
                continue
            addresses[name] = socket.inet_ntoa(answer[20:24])
    return addresses


def own_address(head: str, address: str) -> str:
    """Return this machine's address as other machines reach it. `head`: the host where ranks meet, as given; `address`: as resolved here.

    Raises PlaitError if the head's name is a loopback address here and this machine has not exactly one other address.
    """
    if not is_loopback(address) or head in (address, "localhost"):
        return source_address(address)
    others = [other for other in interfaces().values() if not is_loopback(other)]
    if len(others) == 1:
        return others[0]
    listed = ", ".join(others) or "none"
    raise PlaitError(
        f"the head {head} is {address} on {socket.gethostname()} (/etc/hosts), which other machines cannot reach; "
        f"give its address in place of its name, or --local-addr; addresses of this machine: {listed}"
    )
