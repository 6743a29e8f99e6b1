"""Run the command line, as `plait` and `python -m plait`; Ctrl-C ends it in one line also while it is being imported."""

import os
import signal
import sys


def _end(*_: object) -> None:
    os.write(2, b"plait: interrupted\n")
    os._exit(130)


_interactive = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in a job that was begun without it, by nohup
if _interactive:
    signal.signal(signal.SIGINT, _end)

from plait import cli  # noqa: E402  the handler is there before what takes long

if _interactive:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> int:
    """Run the command line and return its exit code. Signals that arrive once the command has ended do not change the code."""
    code = cli.main()
    for late in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGINT):
        signal.signal(late, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
