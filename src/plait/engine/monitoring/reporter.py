"""The one handler through which plait's log lines reach a person: it knows which rank this is, and leaves the progress bar alone.

Modules say `log = logging.getLogger(__name__)` and log there; nothing prints. INFO goes to standard output as it is, WARNING and above to
standard error; both from rank 0 only, unless a record carries `extra=EVERY_RANK`. Installed by the command line, not by importing plait.
"""

import logging
import os
import sys

from plait.errors import printable

EVERY_RANK = {"every_rank": True}
"""`log.info(text, extra=EVERY_RANK)`: a line that each rank says for itself."""


class Reporter(logging.Handler):
    """Logging handler that looks up `sys.stdout` and `sys.stderr` for every line, so that redirections of them hold."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this rank shows the record: rank 0, or every rank where the record says so."""
        return os.environ.get("RANK", "0") == "0" or "every_rank" in record.__dict__

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line and flush it, so that a kill loses none. Control characters are written as text, not sent as they are."""
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        stream.write(f"{prefix}{printable(record.getMessage())}\n")
        stream.flush()


def install(*packages: str) -> None:
    """Show the log lines of plait, and of other `packages` (names of loggers), from INFO up; a second call changes nothing."""
    for package in ("plait", *packages):
        logger = logging.getLogger(package)
        if not any(isinstance(handler, Reporter) for handler in logger.handlers):
            logger.addHandler(Reporter())
        logger.setLevel(logging.INFO)
        logger.propagate = False
