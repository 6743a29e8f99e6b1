"""The command line: run the command that is typed, tell errors in one line, and return an exit code.

commands/command_line.py parses what is typed; each command (verb such as `train`) has a file in commands/.
"""

import os
import sys
from collections.abc import Sequence

from plait.commands import command_line
from plait.config import plugins, secrets
from plait.engine.monitoring import reporter
from plait.engine.monitoring.path_faults import path_fault
from plait.engine.monitoring.signals import INTERRUPTED
from plait.errors import PlaitError, printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (None: sys.argv) and return its exit code.

    The code is 0, the `exit_code` of a PlaitError, or 130 after Ctrl-C. A PlaitError's message goes to standard error. Output whose
    reader has gone (`| head`) or cannot encode a character changes no exit code. Output that cannot be written, as on a full disk or where
    it is closed (`>&-`), is told in one line on standard error, and makes the exit code 1 in place of 0, but for `plait train`.
    """
    given = sys.argv[1:] if arguments is None else arguments
    trains = [*given, ""][0] == "train"
    try:
        code = _run(given)
    except BaseException as error:
        lost = reporter.settle_output()
        if lost is None or not isinstance(error, SystemExit) or error.code:  # argparse exits after --help
            raise
        code, trains = 0, False
    else:
        lost = reporter.settle_output()
    if lost is None:
        return code
    note = "warning: lines of this run are missing in what it printed" if trains else "what was printed is not complete"
    reporter.write(sys.stderr, f"plait: standard output cannot be written to ({lost.strerror}): {note}")
    return code if code or trains else 1


def _run(arguments: Sequence[str]) -> int:
    """Parse and run a command line; return its exit code. Tells the errors that the user can mend in one line on standard error."""
    try:
        reporter.install(*plugins.packages())
        parsed = command_line.parse(arguments)
        with reporter.for_programs(getattr(parsed, "json", False)):
            parsed.command.run(parsed)
    except PlaitError as error:
        rank = os.environ.get("RANK", "0")
        reporter.write(sys.stderr, printable(secrets.shown(f"plait: {error}" if rank == "0" else f"plait: rank {rank}: {error}")))
        return error.exit_code
    except Exception as error:
        fault = path_fault(error)
        if fault is None:
            raise
        reporter.write(sys.stderr, printable(secrets.shown(f"plait: {fault}")))
        return PlaitError.exit_code
    except KeyboardInterrupt:
        reporter.write(sys.stderr, "plait: interrupted")
        return INTERRUPTED
    return 0
