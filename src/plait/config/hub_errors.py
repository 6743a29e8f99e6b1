"""Say why the Hugging Face Hub did not deliver a repository, and how to fix it. It may take a licence, a token, a setting or a download.

The libraries above the Hub's client (transformers, diffusers, datasets) wrap its errors in their own, so the whole chain is looked at, by
the names of the classes: importing them would take longer than most commands do.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants

from plait.config import secrets
from plait.errors import printable

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LOGIN = "set HF_TOKEN to a token of that account (or `hf auth login`)"
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_REFUSED = re.compile(r"\b(401|403|404|407)\b")
_LATER = frozenset([408, 425, 429])  # statuses of requests that may succeed later, as those from 500 on
_NEVER = frozenset([501, 505])  # of those from 500 on, what the server would answer again
_CONFLICT = (409, 412)
_NO_HUB = frozenset([404, 405, 410]) | _NEVER  # answers to a push of an address that takes none
_CONTENT = frozenset([400, 413, 415, 422])  # answers on what was sent
_REQUEST = re.compile(r" ?\(Request ID: [^)]*\)")
_NO_NETWORK = frozenset(["ConnectError", "ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "TransportError"])
_UNREACHED = _NO_NETWORK | {"LocalEntryNotFoundError"}


def reason(error: BaseException, repository: str) -> str:
    """Return why loading `repository` (owner/name, with @revision, or a folder) failed, as the end of a sentence.

    It is the Hub's refusal with its fix, that no such folder exists, or the first line of any other error.
    """
    refused = refusal(error, repository)
    if refused is None and _is_no_name(error) and not Path(repository).expanduser().exists():
        return f"there is no folder {repository}, and it is no name of a repository, owner/name"
    return refused or _first_line(error)


def _is_no_name(error: BaseException) -> bool:
    """Return whether the Hub's client was given what cannot be the name of a repository."""
    return any("HFValidationError" in {kind.__name__ for kind in type(each).__mro__} for each in _chain(error))


def refusal(error: BaseException, repository: str, *, dataset: bool = False) -> str | None:
    """Return why the Hub did not deliver `repository` (owner/name, with @revision), and the fix; None for any other error.

    `error`: what the loading library raised. The text is the end of a sentence, such as "it is gated: accept its licence at ...".
    `dataset`: whether the repository is one, not a model.
    """
    name, _, revision = repository.partition("@")
    kinds = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    if not _NAME.fullmatch(name) or _is_no_name(error):
        return None
    endpoint = secrets.without_secrets(constants.ENDPOINT)
    page = f"{endpoint}/{'datasets/' if dataset else ''}{name}"
    download = f"hf download {name}{f' --revision {revision}' if revision else ''}"
    if dataset:  # which files are those of a split is not known from a download of all
        download = "plait data inspect CONFIG, with the same HF_HOME"
    unreached = bool(kinds & _UNREACHED)
    if "GatedRepoError" in kinds or ("DatasetNotFoundError" in kinds and "gated dataset" in str(error)):
        cure = "with the account of the token that is set" if _has_token() else f"and {_LOGIN}"
        return f"it is gated: accept its licence at {page}, {cure}"
    if _status(error) == _UNAUTHORIZED and _has_token():
        return "the Hub refuses the token (401): set HF_TOKEN to one that is valid, or run `hf auth login` again"
    if _status(error) == _FORBIDDEN:
        cure = "with the account of the token that is set" if _has_token() else f"and {_LOGIN}"
        return f"the Hub refuses access to it (403): ask for access at {page}, {cure}"
    if "RevisionNotFoundError" in kinds:
        return f"there is no such revision of it: {page} lists its branches and commits"
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:  # datasets drops what its own error came from
        return f"there is no {page}, or it is private: mend the name, or set HF_TOKEN to a token that may read it"
    if "OfflineModeIsEnabled" in kinds or (unreached and (constants.HF_HUB_OFFLINE or "OfflineModeIsEnabled" in str(error))):
        variable = "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "HF_DATASETS_OFFLINE"  # one of datasets' own, read when it is imported
        return f"it is not in the cache, and {variable} is set: unset it, or download it before: {download}"
    if unreached:
        return f"it is not in the cache, and {endpoint} cannot be reached (HF_ENDPOINT, proxies): download it elsewhere: {download}"
    return None


def not_sent(error: BaseException, repository: str) -> str:
    """Return why the Hub did not take what was sent to `repository` (owner/name), with the cure, as the end of a sentence."""
    kinds, status = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}, _status(error)
    endpoint = secrets.without_secrets(constants.ENDPOINT)
    if "LocalTokenNotFoundError" in kinds or (status == _UNAUTHORIZED and not _has_token()):
        return "there is no token: set HF_TOKEN to one that may write, or run `hf auth login`"
    if status == _UNAUTHORIZED:
        return "the Hub refuses the token (401): set HF_TOKEN to one that is valid and may write, or run `hf auth login` again"
    if status == _FORBIDDEN:
        return (
            f"the token may not write to {repository} (403): give it that right at {endpoint}/settings/tokens, or name another repository"
        )
    if "OfflineModeIsEnabled" in kinds or constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: unset it"
    if kinds & _NO_NETWORK:
        return f"{endpoint} cannot be reached (HF_ENDPOINT, proxies)"
    cause = [*_chain(error)][-1]  # the client puts a line of its own before that of a file
    line = _REQUEST.sub("", _first_line(cause))
    if status is None:
        return line
    return f"{endpoint} answers {status}: {line}{'' if may_pass(error) or conflicts(error) else f': {_cure(status)}'}"


def _cure(status: int) -> str:
    """Return what to do about a push that was refused with this status."""
    if status in _NO_HUB:
        return "see that HF_ENDPOINT is a Hub that takes pushes"
    return "mend what that names, or name another repository"


def refused_part(error: BaseException) -> str:
    """Return what a refused push says of others: "all" are refused, those to its repository ("repo"), or it alone ("item").

    `error`: what the client raised, or an error on this machine, as of a file that is gone.
    """
    kinds, status = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}, _status(error)
    if status == _UNAUTHORIZED or kinds & {"LocalTokenNotFoundError", "OfflineModeIsEnabled"} or constants.HF_HUB_OFFLINE:
        return "all"
    return "item" if status is None or status in _CONTENT else "repo"


def retry_after(error: BaseException) -> str:
    """Return the header Retry-After of an answer: how long it asks to wait, "" without one."""
    for each in _chain(error):
        if (response := vars(each).get("response")) is not None:
            return str(response.headers.get("Retry-After", ""))
    return ""


def conflicts(error: BaseException) -> bool:
    """Return whether the Hub refused a commit as another one came before it, so that the same may be asked again."""
    return _status(error) in _CONFLICT


def unreachable(error: BaseException) -> bool:
    """Return whether the Hub could not be asked (no network, offline mode, a server that fails), rather than that it refused.

    `error`: what the loading library raised. Only then may a copy of an earlier download stand in for what was asked.
    """
    kinds: set[str] = set()
    for each in _chain(error):
        if (response := vars(each).get("response")) is not None:
            return int(response.status_code) >= 500 or int(response.status_code) in _LATER
        kinds |= {kind.__name__ for kind in type(each).__mro__}
        if kinds & (_NO_NETWORK | {"OfflineModeIsEnabled"}):
            return True
    return "LocalEntryNotFoundError" in kinds


def may_pass(error: BaseException) -> bool:
    """Return whether the Hub may answer when it is asked again: it could not be reached, and offline mode is not set.

    A server that does not do what is asked (501, 505) would answer so again, as would a proxy that refuses to pass requests on (401, 403,
    404, 407).
    """
    if any("ProxyError" in {kind.__name__ for kind in type(each).__mro__} and _REFUSED.search(str(each)) for each in _chain(error)):
        return False
    offline = any("OfflineModeIsEnabled" in {kind.__name__ for kind in type(each).__mro__} for each in _chain(error))
    if _status(error) in _NEVER:
        return False
    return unreachable(error) and not offline and not constants.HF_HUB_OFFLINE


def _has_token() -> bool:
    """Return whether the Hub's client has a token, of the environment or of `hf auth login`."""
    return bool(os.environ.get("HF_TOKEN", "").strip()) or Path(constants.HF_TOKEN_PATH).is_file()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in the chain of an error, None where there is none."""
    for each in _chain(error):
        if (response := vars(each).get("response")) is not None:
            return int(response.status_code)
    return None


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return printable(secrets.shown(line))
