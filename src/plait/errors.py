"""The errors that plait raises on purpose. Any other exception that reaches the user is a defect of plait, and keeps its traceback."""

import errno
import re
import shlex
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_NAMES_SHOWN = 5
_REASON_LENGTH = 1000  # characters
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")

_PATH_FAULTS = {
    errno.EEXIST: "is in the way: it is no folder",
    errno.ENOTDIR: "is, or lies below, what is no folder",
    errno.EISDIR: "is a folder, where a file was to be",
    errno.ENOENT: "cannot be made or read: there is no such place",
    errno.EACCES: "may not be read or written by this user",
    errno.EPERM: "may not be changed by this user",
    errno.EROFS: "lies on a disk that is read only",
    errno.ELOOP: "is a link that leads to itself",
    errno.ENOSPC: "has no room: the disk is full",
    errno.EDQUOT: "has no room: the quota is used up",
    errno.EIO: "cannot be read or written: the disk fails",
}
"""What is told of a path by the number of its error: a mistake of the user or a failing disk, not a defect of plait."""


def printable(text: str) -> str:
    r"""Return the text with control and bidi characters, which a terminal or browser would act on, as escapes such as \x1b."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def command(*words: object) -> str:
    """Return `plait WORDS` as it is typed in a shell. A word with blanks or other characters that a shell reads is quoted."""
    return shlex.join(["plait", *map(str, words)])


def path_fault(error: OSError) -> str | None:
    """Return one line about the path of an OSError that the user can mend; None for any other error."""
    path = str(error.filename or "")
    if error.errno == errno.ENAMETOOLONG:
        name = max(path.split("/"), key=len)
        return f"the name {name[:40]}... is too long for this disk: {len(name)} characters"
    if not path or error.errno not in _PATH_FAULTS:
        return None
    return f"{path} {_PATH_FAULTS[error.errno]}: give another path, or mend this one"


class PlaitError(Exception):
    """An error that the user can fix: one line that says what happened, the values, and what to do next.

    The command line prints it and exits with `exit_code`: 2 for bad input, 1 for a run that stopped itself.
    """

    exit_code = 2
    of_one_sample = True
    """Whether, when it is raised while a sample is read, that sample is at fault and is replaced; False: the error ends the run."""


class BadSample(PlaitError):
    """A sample that cannot be used (broken image, missing field). The loader replaces it, counts it and lists the reason."""


class _SampleErrors:
    """A context that turns whatever goes wrong with one sample into a BadSample: no single sample may end a run.

    The reason of an error that plait does not raise on purpose has its type and the line of code that raised it. Anything but Ctrl-C is
    such an error: code of others may even call `sys.exit`.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, KeyboardInterrupt) or (isinstance(error, PlaitError) and not error.of_one_sample):
            return
        if isinstance(error, PlaitError):
            reason = _bounded(str(error))
            if isinstance(error, BadSample) and reason == str(error):
                return
            raise BadSample(reason) from error
        frame = traceback.extract_tb(trace)[-1]
        try:
            text = str(error)
        except Exception:  # noqa: BLE001  an error whose own text cannot be made
            text = "its text cannot be made"
        reason = _bounded((text.splitlines() or [""])[0][:200])
        raise BadSample(f"{type(error).__name__}: {reason} ({Path(frame.filename).name}:{frame.lineno})") from error


def _bounded(reason: str) -> str:
    """Return a reason with its control characters escaped, and without its middle where it is very long."""
    shown = printable(reason)
    return shown if len(shown) <= _REASON_LENGTH else f"{shown[: _REASON_LENGTH // 2]} ... {shown[-_REASON_LENGTH // 2 :]}"


sample_errors = _SampleErrors()
"""Context for code that reads or prepares one sample: errors inside, but Ctrl-C and those of the whole data, are raised as BadSample."""


class Stopped(PlaitError):
    """A run stopped itself, as at a loss that is not finite; the message says why, and what to do before continuing."""

    exit_code = 1


def first_names(names: Sequence[str]) -> str:
    """Join the first five names, as "a, b, c, d, e and 2 more", for messages about many parameters; "none" for no name."""
    shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
