"""Run the command line, as `plait` and `python -m plait`. Ctrl-C and SIGTERM end it in one line also while it is imported."""

import gc
import os
import signal
import sys


def _end(*_: object) -> None:
    os.write(2, b"plait: interrupted\n")
    os._exit(130)


def _stop(number: int, _: object) -> None:
    """Say that a signal has ended the process, and let it do so."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"plait: stopped by SIGTERM\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


_interactive = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in a job that was begun without it, by nohup
if _interactive:
    signal.signal(signal.SIGINT, _end)
_ends = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
if _ends:
    signal.signal(signal.SIGTERM, _stop)

gc.set_threshold(*gc.get_threshold()[:2], 200)  # imports are kept: going through all of them as they grow was a quarter of a start

from plait import cli  # noqa: E402  the handler is there before what takes long
from plait.engine.monitoring.signals import INTERRUPTED  # noqa: E402

if _interactive:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if _ends:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # for processes that import this and run no command


def main() -> int:
    """Run the command line and return its exit code. Signals that arrive once the command has ended do not change the code."""
    if _ends and [*sys.argv[1:], ""][0] == "train":  # until training itself takes note of signals
        signal.signal(signal.SIGTERM, _stop)
    ranks = "RANK" in os.environ
    try:
        code = cli.main()
    except Exception:
        if not ranks:
            raise
        sys.excepthook(*sys.exc_info())
        code = 1
    if code == INTERRUPTED or (code and ranks):
        os._exit(code)  # neither threads that read from a silent server nor ranks that are gone are waited for; all output is written
    for late in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGINT):
        signal.signal(late, signal.SIG_IGN)
    gc.freeze()  # memory ends with the process: what is reachable to the last is not looked through for cycles
    return code


if __name__ == "__main__":
    sys.exit(main())
