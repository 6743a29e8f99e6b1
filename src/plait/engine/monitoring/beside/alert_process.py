"""The program that sends alerts: one process beside a run, which `Alerts` (alerts.py) starts and writes a line to for each event.

Each event goes to a command, with the event in its environment and as JSON on its standard input, and to addresses by the package apprise.
Addresses are filled in from the environment here, and no message holds one.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import gethostname
from typing import Any

from plait.engine.monitoring.beside.process import Inbox

_COMMAND_S = 60.0  # for the hook, before it is killed
_LATE = 124  # exit code of a hook that was killed
_BOUNDED = f"""
import os, subprocess, sys
hook = subprocess.Popen(sys.argv[2], shell=True, start_new_session=True)
try:
    code = hook.wait(float(sys.argv[1]))
except subprocess.TimeoutExpired:
    os.killpg(hook.pid, 9)
    code = {_LATE}
sys.exit(code if code >= 0 else 128 - code)
"""
"""A program that runs the hook and ends it in time: one in a session of its own, as the run may be over and this process killed."""
_LOOK_EVERY_S = 60.0  # at the disk
_QUIET_S = 600.0  # between two alerts of an event that comes in bursts
_BURSTS = ("spike", "warning")
_ENOUGH_AGAIN = 1.5  # times the limit: a disk that goes to and fro around it is told of once
_LEAST_FREE_BYTES = 1e9
_KINDS = {"finish": "success", "failure": "failure", "stop": "info"}  # apprise's; others are warnings
_REASON = 300  # characters


class Sender:
    """Sends an event to the addresses and the command of `settings`, the section `alert` as JSON with `run` and `name`, its folder."""

    def __init__(self, settings: Mapping[str, Any], inbox: Inbox) -> None:
        self.settings, self.inbox = settings, inbox
        self.held: dict[str, int] = {}
        """How many events of a kind that comes in bursts were not sent since the last one that was."""
        self._sent_s: dict[str, float] = {}

    def deliver(self, event: str, text: str, step: int | None) -> None:
        """Send an event. One that comes in bursts is sent every ten minutes at most, and the others are counted in the next alert."""
        now = time.monotonic()
        if event in _BURSTS and now - self._sent_s.get(event, -_QUIET_S) < _QUIET_S:
            self.held[event] = self.held.get(event, 0) + 1
            return
        self._sent_s[event] = now
        more = ", ".join(f"{count} more of {name}" for name, count in self.held.items())
        self.held = {}
        text += f" ({more} since the last alert)" if more else ""
        message = {"event": event, "run": self.settings["run"], "step": step, "text": text, "host": gethostname(), "time": time.time()}
        if self.settings["command"]:
            self._call(self.settings["command"], message)
        if self.settings["urls"]:
            self._notify(self.settings["urls"], message)

    def _call(self, command: str, message: Mapping[str, Any]) -> None:
        """Run the command hook by the shell, for a minute at most, even if this process ends before; where it fails, say its last line."""
        told = {f"PLAIT_{name.upper()}": str(message[name]) for name in ("event", "run", "step", "text")}
        began_s = time.monotonic()
        with tempfile.TemporaryFile() as output:
            words = [sys.executable, "-I", "-S", "-c", _BOUNDED, str(_COMMAND_S), command]
            done = subprocess.run(
                words,
                input=json.dumps(message).encode() + b"\n",
                stdout=output,
                stderr=output,
                env={**os.environ, **told},
                start_new_session=True,
                check=False,
            )
            output.seek(0)
            last = output.read().decode(errors="replace").strip().rpartition("\n")[2][:_REASON]
        code, late = done.returncode, done.returncode == _LATE and time.monotonic() - began_s >= _COMMAND_S
        fault = f"did not end within {_COMMAND_S:g} s and was killed" if late else f"ended with exit code {code}" if code else ""
        if fault:
            reason = f": {last}" if last else ""
            self.inbox.say(f"alert of {message['event']}: alert.command {fault}{reason}", warning=True)

    def _notify(self, urls: Sequence[str], message: Mapping[str, Any]) -> None:
        """Send a message to each address, with apprise's own limits of time; one that cannot be reached is told by its variable."""
        import apprise

        reasons = _Reasons()
        logger = logging.getLogger("apprise")
        logger.handlers, logger.propagate = [reasons], False
        for written in urls:
            address = os.path.expandvars(written)
            service = apprise.Apprise()
            kind = _KINDS.get(message["event"], "warning")
            title = f"plait {self.settings['name']}: {message['event'].replace('_', ' ')}"
            body = f"{message['text']}\n{message['run']} on {message['host']}"
            if not (service.add(address) and service.notify(body=body, title=title, notify_type=apprise.NotifyType(kind))):
                reason = without_address(reasons.last, address, written) if reasons.last else "the service did not take it"
                self.inbox.say(f"alert of {message['event']} not sent to {written}: {reason}", warning=True)
            reasons.last = ""


class _Reasons(logging.Handler):
    """Keeps apprise's last warning, which says why an address could not be reached."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.last = record.getMessage()


def without_address(text: str, address: str, written: str) -> str:
    """Return a text in one line without the address and the parts of it that may be secret; at most 300 characters."""
    parts = [address, *(part for part in address.replace("?", "/").replace("@", "/").replace(":", "/").split("/") if len(part) > 3)]
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, written if part == address else "***")
    return " ".join(text.split())[:_REASON]


class DiskWatch:
    """Tells once when a run's disk has less room than `limit_gb` (1e9 bytes), or, where that is None, than two checkpoints take."""

    def __init__(self, run: Path, limit_gb: float | None) -> None:
        self.run, self.limit_gb, self.low = run, limit_gb, False

    def look(self) -> str | None:
        """Return a text if there is too little room and there was enough before, else None."""
        try:
            free = shutil.disk_usage(self.run).free
            limit = self.limit_gb * 1e9 if self.limit_gb is not None else max(_LEAST_FREE_BYTES, 2 * _newest_checkpoint_bytes(self.run))
        except OSError:  # the run ends itself where its folder has gone
            return None
        before, self.low = self.low, free < limit * (_ENOUGH_AGAIN if self.low else 1.0)
        if before or not self.low:
            return None
        room = f"{free / 1e9:.1f} GB are free on the disk of {self.run}, less than {limit / 1e9:.1f} GB"
        return f"{room}: free space, or lower checkpoint.keep"


def _newest_checkpoint_bytes(run: Path) -> int:
    manifests = sorted(run.glob("stage-*/step-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return sum(path.stat().st_size for path in manifests[-1].parent.rglob("*") if path.is_file()) if manifests else 0


def unknown(urls: Sequence[str]) -> list[str]:
    """Return those of `urls`, as they are written in a configuration, whose address apprise does not know. Nothing is sent."""
    import apprise

    logging.getLogger("apprise").disabled = True  # its lines may hold the address
    return [written for written in urls if not apprise.Apprise().add(os.path.expandvars(written))]


def main() -> None:
    """Send the alerts that come as lines on standard input, and watch the disk, until it is closed."""
    inbox = Inbox()
    settings = inbox.settings
    sender = Sender(settings, inbox)
    disk = DiskWatch(Path(settings["run"]), settings["disk_low_gb"]) if "disk_low" in settings["on"] else None
    step, told_end, looked_s = None, False, -_LOOK_EVERY_S
    while True:
        if disk is not None and time.monotonic() - looked_s >= _LOOK_EVERY_S:
            looked_s = time.monotonic()
            if text := disk.look():
                sender.deliver("disk_low", text, step)
        try:
            line = inbox.next(_LOOK_EVERY_S if disk is not None else None)
        except TimeoutError:
            continue
        if line is None:
            break
        told_end |= "end" in line
        if "event" in line:
            step = line["step"]
            sender.deliver(line["event"], line["text"], step)
    if not told_end and "failure" in settings["on"]:
        sender.deliver("failure", "the run ended without a word: it was killed, out of memory, or ended by its watchdog", step)


if __name__ == "__main__":
    if sys.argv[1:2] == ["unknown"]:
        sys.stdout.write(", ".join(unknown(sys.argv[2:])))
    else:
        main()
