"""The errors that plait raises on purpose. Everything else that escapes is a defect of plait, and keeps its traceback."""


class PlaitError(Exception):
    """Something the user can mend: one line that says what happened, the values, and what to do next.

    The command line prints it and exits with `exit_code`: 2 for bad input, 1 for a run that stopped itself.
    """

    exit_code = 2


class BadSample(PlaitError):
    """One sample cannot be used (broken image, missing field). The loader replaces it, counts it and lists the reason."""


class Stopped(PlaitError):
    """A run stopped itself to protect what it has; the message says why, and what to do before continuing."""

    exit_code = 1
