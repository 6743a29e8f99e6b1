"""The errors that plait raises on purpose. Any other exception that reaches the user is a defect of plait, and keeps its traceback."""

import re
import shlex
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_NAMES_SHOWN, _REASONS_SHOWN = 5, 8
_REASON_LENGTH = 1000  # characters
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: str) -> str:
    r"""Return the text with control and bidi characters, which a terminal or browser would act on, as escapes such as \x1b."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def command(*words: object) -> str:
    """Return a command line, `plait` and then `words`, as typed in a shell: words with blanks or other special characters are quoted."""
    return shlex.join(["plait", *map(str, words)])


class PlaitError(Exception):
    """An error that the user can fix: one line that says what happened, the values, and what to do next.

    The command line prints it and exits with `exit_code`: 2 for what would come again, such as bad input; 1 for a run that may go on later.
    `of_one_sample`: whether one that is raised while a sample is read is that sample's fault, which is replaced; False: it ends the run.
    """

    exit_code = 2
    of_one_sample = True


class BadSample(PlaitError):
    """A sample that cannot be used (broken image, missing field). The data loader replaces it and lists it in the run's quarantine file."""

    sample: str | None = None
    """The name that the sample's source gives it, such as "a.csv:7"; None where it is not known."""


class _SampleErrors:
    """A context that turns whatever goes wrong with one sample into a BadSample: no single sample may end a run.

    The reason of an unforeseen error has its type and line of code; even `sys.exit` is one. Ctrl-C and errors of the whole data pass.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and (bad := bad_sample(error)) is not error:
            raise bad from error


def bad_sample(error: BaseException) -> BaseException:
    """Return what `sample_errors` raises where `error` is raised inside it: a BadSample, or `error` itself where that is to pass."""
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, PlaitError) and not error.of_one_sample):
        return error
    if isinstance(error, PlaitError):
        reason = _bounded(str(error))
        return error if isinstance(error, BadSample) and reason == str(error) else BadSample(reason)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  an error whose own text cannot be made
        text = "its text cannot be made"
    where, reason = f"{Path(frame.filename).name}:{frame.lineno}", _bounded((text.splitlines() or [""])[0][:200])
    return BadSample(f"{type(error).__name__}: {reason} ({where})")


def _bounded(reason: str) -> str:
    """Return a reason with its control characters escaped, and without its middle where it is very long."""
    shown = printable(reason)
    return shown if len(shown) <= _REASON_LENGTH else f"{shown[: _REASON_LENGTH // 2]} ... {shown[-_REASON_LENGTH // 2 :]}"


sample_errors = _SampleErrors()
"""Context for code that reads or prepares one sample: errors inside, but Ctrl-C and those of the whole data, are raised as BadSample."""


class Stopped(PlaitError):
    """A run stopped itself, as at a loss that is not finite; the message says why, and what to do before continuing."""

    exit_code = 1


class Recurring(Stopped):
    """A run stopped itself for what the same command would meet again, such as too many bad samples. No launcher starts it again."""

    exit_code = PlaitError.exit_code


def counted_reasons(reasons: Counter[str]) -> str:
    """Return reasons with their counts, the most frequent first: "3 x no text; 1 x no image"."""
    shown = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(_REASONS_SHOWN))
    return shown + (f"; and {len(reasons) - _REASONS_SHOWN} more reasons" if len(reasons) > _REASONS_SHOWN else "")


def first_names(names: Sequence[str]) -> str:
    """Join the first five names, for messages about many parameters: "a, b, c, d, e and 2 more". An empty list gives "none"."""
    shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
