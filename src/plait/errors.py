"""The two errors that plait raises on purpose. Everything else that escapes is a defect of plait, and keeps its traceback."""


class PlaitError(Exception):
    """Something the user can mend: one line that says what happened, the values, and what to do next.

    The command line prints it and exits with code 2.
    """


class BadSample(PlaitError):
    """One sample cannot be used (broken image, missing field). The loader replaces it, counts it and lists the reason."""
