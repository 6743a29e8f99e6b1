"""Machines made of namespaces on this one: each has a network, a host name, an /etc/hosts, a /tmp and process ids of its own.

They hang on one bridge, in a namespace too, so that nothing they send can leave it. All of them see the same files, as with shared storage.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PREFIX = "plaitc"  # of namespaces and interfaces, at most 15 characters with what follows
NETWORK = "10.213.77"


def call(*command: str, check: bool = True) -> str:
    """Run a command and return its output; raise RuntimeError with its error output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Machine:
    """One machine. `name`: its host name; `address`: its IP address; `hosts`: its own /etc/hosts."""

    def __init__(self, folder: Path, name: str, number: int) -> None:
        self.name, self.address, self.number = name, f"{NETWORK}.{number}", number
        self.namespace = f"{PREFIX}-{name}"
        self.folder = folder / name
        self.hosts = self.folder / "hosts"
        self.init: subprocess.Popen[bytes] | None = None
        (self.folder / "tmp").mkdir(parents=True)
        self.hosts.write_text("127.0.0.1 localhost\n")

    def boot(self) -> None:
        """Start the machine's first process, whose end ends every other one of it (a process-id namespace), as a power cut does."""
        script = (
            f"hostname {self.name} && mount --bind {self.hosts} /etc/hosts && mount --bind {self.folder / 'tmp'} /var/tmp && "
            f"touch {self.folder / 'up'} && exec sleep infinity"
        )
        (self.folder / "up").unlink(missing_ok=True)
        unshare = ("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script)
        self.init = subprocess.Popen(["nsenter", f"--net=/run/netns/{self.namespace}", *unshare], stdin=subprocess.DEVNULL)
        wait_for((self.folder / "up").exists, 20, f"{self.name} to start")

    def start(self, command: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command on the machine; its output is appended to `log`."""
        assert self.init is not None
        enter = ["nsenter", f"--target={self._pid()}", "--net", "--uts", "--mount", "--pid"]
        with log.open("ab") as out:
            return subprocess.Popen(
                [*enter, "env", f"TMPDIR={self.folder / 'tmp'}", *(f"{name}={value}" for name, value in environment.items()), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _pid(self) -> int:
        """Return the process id, outside, of the machine's first process: the child of unshare."""
        assert self.init is not None
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        return int(children[0])

    def fail(self) -> None:
        """Kill every process of the machine at once."""
        if self.init is not None:
            with contextlib.suppress(OSError, IndexError):
                os.kill(self._pid(), signal.SIGKILL)
            self.init.kill()
            self.init.wait()
            self.init = None


@contextlib.contextmanager
def network(folder: Path, names: Sequence[str]) -> Iterator[list[Machine]]:
    """Yield machines of these names, booted and on one bridge; at the end, whatever happened, all of it is gone."""
    bridge = f"{PREFIX}-net"
    machines = [Machine(folder, name, number) for number, name in enumerate(names, 1)]
    try:
        call("ip", "netns", "add", bridge)
        call("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        call("ip", "-n", bridge, "link", "set", "br0", "up")
        for machine in machines:
            call("ip", "netns", "add", machine.namespace)
            ours, theirs = f"{PREFIX}{machine.number}", "eth0"
            call("ip", "-n", bridge, "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", machine.namespace)
            call("ip", "-n", bridge, "link", "set", ours, "master", "br0", "up")
            call("ip", "-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", theirs)
            call("ip", "-n", machine.namespace, "link", "set", theirs, "up")
            call("ip", "-n", machine.namespace, "link", "set", "lo", "up")
            machine.boot()
        yield machines
    finally:
        for machine in machines:
            machine.fail()
        for machine in machines:
            call("ip", "netns", "del", machine.namespace, check=False)
        call("ip", "netns", "del", bridge, check=False)


def cable(machine: Machine, plugged: bool) -> None:
    """Pull the machine's network cable, or plug it in again: it goes on, but nobody reaches it."""
    call("ip", "-n", f"{PREFIX}-net", "link", "set", f"{PREFIX}{machine.number}", "up" if plugged else "down")


def wait_for(happened: Callable[[], bool], limit_s: float, what: str) -> float:
    """Wait until `happened()` is true; return the seconds that took. Raises RuntimeError at the limit."""
    began = time.monotonic()
    while not happened():
        if time.monotonic() - began > limit_s:
            raise RuntimeError(f"waited {limit_s:g} s for {what}")
        time.sleep(0.1)
    return time.monotonic() - began


def allowed() -> str | None:
    """Return why namespaces cannot be made here, or None where they can."""
    if os.geteuid():
        return "it needs root, to make namespaces"
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"it needs {', '.join(missing)} (iproute2, util-linux)"
    try:
        call("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "ip", "link", "add", "br0", "type", "bridge")
    except RuntimeError as error:
        return f"namespaces are not allowed here ({error})"
    return None
