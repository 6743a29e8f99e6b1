"""The logging handler that shows plait's log lines: on rank 0 only, and above the progress bar, which it does not break.

Modules use `log = logging.getLogger(__name__)`; nothing prints. INFO goes to standard output as it is, WARNING and above to
standard error; both from rank 0 only, unless a record carries `extra=EVERY_RANK`. On a terminal lines are wrapped at words (wrapping.py).
Installed by the command line, not by importing plait.
"""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from plait.config.secrets import shown
from plait.engine.monitoring.wrapping import columns, wrapped
from plait.errors import printable

EVERY_RANK = {"every_rank": True}
"""`log.info(text, extra=EVERY_RANK)` shows the line of every rank, not of rank 0 only."""
WHOLE = {"whole": True}
"""`log.info(text, extra=WHOLE)` never wraps the lines: they are for programs, such as JSON (`for_programs`)."""

_lost: list[OSError] = []
"""Why lines could not be written to standard output."""


class Reporter(logging.Handler):
    """Logging handler that looks up `sys.stdout` and `sys.stderr` for every line, so that redirections of them hold."""

    only_whole = False
    """Whether standard output is for records with `extra=WHOLE` alone, as JSON is, and all others go to standard error."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this process shows the log record: on rank 0 always, elsewhere only a record with `extra=EVERY_RANK`."""
        return os.environ.get("RANK", "0") == "0" or "every_rank" in record.__dict__

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line and flush it, so that a kill loses none. Control characters are escaped."""
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        output = record.levelno < logging.WARNING and ("whole" in record.__dict__ or not Reporter.only_whole)
        stream = sys.stdout if output else sys.stderr
        if stream is None and output:  # what Python makes of a stream that was closed from the start
            _lost.append(OSError(errno.EBADF, "it is closed"))
        write(stream, f"{prefix}{printable(shown(record.getMessage()))}", whole="whole" in record.__dict__)


def write(stream: TextIO | None, line: str, *, whole: bool = False) -> None:
    """Write a line and flush it; never raises. A closed stream, or None, ignores it; characters that its encoding lacks are escaped.

    On a terminal the line is wrapped at words, unless `whole`.
    What standard output could not take, but for a pipe whose reader has gone, `settle_output` returns.
    """
    if stream is None:
        return
    line = line if whole else wrapped(line, columns(stream))
    try:
        try:
            stream.write(f"{line}\n")
        except UnicodeEncodeError:
            stream.write(line.encode(stream.encoding, "backslashreplace").decode(stream.encoding) + "\n")
        stream.flush()
    except OSError as error:
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            _lost.append(error)
    except ValueError:  # the stream was closed in this process
        return


def settle_output() -> OSError | None:
    """Flush standard output at the end of the process; discard what cannot be written, so that Python reports no error.

    Returns why it could not be written to, at any time in this process, such as a full disk; None if it could, or its reader has gone.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            _lost.append(error)
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    first = _lost[0] if _lost else None
    _lost.clear()
    return first


@contextlib.contextmanager
def for_programs(only_whole: bool) -> Iterator[None]:
    """Keep standard output for lines with `extra=WHOLE` while the block lasts, as a verb's `--json` wants it; False: change nothing."""
    Reporter.only_whole = only_whole
    try:
        yield
    finally:
        Reporter.only_whole = False


def install(*packages: str) -> None:
    """Show the log lines of plait, and of other `packages` (names of loggers), from INFO up; a second call changes nothing.

    The Hub client's warnings of each retry are hidden unless HF_HUB_VERBOSITY is set: the error that follows has the reason.
    """
    if "HF_HUB_VERBOSITY" not in os.environ:
        os.environ["HF_HUB_VERBOSITY"] = "error"  # read when the client is imported
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # where it has been
    for package in ("plait", *packages):
        logger = logging.getLogger(package)
        if not any(isinstance(handler, Reporter) for handler in logger.handlers):
            logger.addHandler(Reporter())
        logger.setLevel(logging.INFO)
        logger.propagate = False
