"""End a rank, from a process beside it, when its own threads cannot. That is when Python's lock is held and none of them runs.

`python watchdog_process.py PID SIGNAL NAME`, started by watchdog.py. The rank's thread writes a line to its standard input at every look:
how long it may be silent, and how long until it looks again (s). Without a line for too long it sends SIGNAL, at which faulthandler writes
the rank's stacks without the lock, and kills the rank. Time in which the rank is stopped (SIGSTOP) does not count. It ends with the rank,
whose end closes the pipe. Imports nothing of plait: it starts in milliseconds.
"""

import os
import select
import signal
import sys
import time
from pathlib import Path

_STACKS_S = 1.0  # in which faulthandler writes


def watch(rank: int) -> float | None:
    """Read a rank's signs of life on standard input until they end, or none came for too long. Time in which it is stopped does not count.

    Each is a line, "ALLOWED LOOK": how many seconds the rank may be silent, and until its next line. `rank`: its process id. Returns None
    at their end, else ALLOWED of the last line.
    """
    allowed_s, look_s, silent_s = float("inf"), 5.0, 0.0
    while True:
        began = time.monotonic()
        if select.select([0], [], [], look_s)[0]:
            body = os.read(0, 1 << 16)
            if not body:
                return None
            words = body.split(b"\n")[-2].split()
            allowed_s, look_s, silent_s = float(words[0]), float(words[1]), 0.0
        elif not is_stopped(rank):
            silent_s += min(time.monotonic() - began, 2 * look_s)  # this process may have been stopped as well
        if silent_s > allowed_s + look_s:
            return allowed_s


def is_stopped(process: int) -> bool:
    """Return whether a process is stopped by a signal or a debugger, as /proc says; False where there is no /proc."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def main() -> None:
    """Watch the process of the command line, and end it if it hangs.

    The arguments are PID SIGNAL NAME. It sends SIGNAL, at which the process writes its stacks, then SIGKILL. NAME: the rank's, for the
    message on standard error.
    """
    rank, number, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(asked, signal.SIG_IGN)  # a stop asked of the whole group is the rank's to answer
    allowed_s = watch(rank)
    if allowed_s is not None:
        what = f"{name} is late: it holds Python's lock, with nothing done for {allowed_s:g} s (guard.hang_timeout_s)"
        sys.stderr.write(f"plait: {what}; what it does is in its .stacks beside its heartbeat; the same command continues\n")
        os.kill(rank, number)
        time.sleep(_STACKS_S)
        os.kill(rank, signal.SIGKILL)


if __name__ == "__main__":
    main()
