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

from plait.cli import main  # noqa: E402  the handler is there before what takes long

if _interactive:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    sys.exit(main())
