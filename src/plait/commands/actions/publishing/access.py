"""Check, for `plait doctor`, whether a run could push to the Hub (`hub:`) and write its mirror (`checkpoint.mirror`).

The Hub is asked what its token may do and whether the repository is there; nothing is made. At a mirror a small file is written, read and
removed. No message holds the token or any text from the Hub.
"""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError

from plait.commands.actions import hub_access
from plait.commands.actions.findings import Finding
from plait.commands.actions.publishing import mirror
from plait.commands.actions.publishing.mirror import Store
from plait.config import hub_errors, secrets
from plait.config.resolved import Resolved
from plait.config.sections.hub import Hub
from plait.data import remote
from plait.errors import PlaitError

T = TypeVar("T")

WITHIN_S = 20.0
"""Seconds for each place to answer."""
_TRIED = ".plait-doctor"
_READ = "read"


def findings(resolved: Resolved) -> Iterator[Finding]:
    """Yield a finding for the repository and for the mirror of a run, where it has one. On the first rank alone, which writes both."""
    if os.environ.get("RANK", "0") != "0":
        return
    if (hub := resolved.config.hub) is not None:
        yield _in_time("push", f"{hub.repo} (hub.repo)", lambda: repository(hub))
    if (address := resolved.config.checkpoint.mirror) is not None:
        yield _in_time("mirror", f"{Store.shown_of(address)} (checkpoint.mirror)", lambda: written(address))


def _in_time(what: str, title: str, check: Callable[[], Finding]) -> Finding:
    """Return the finding of a check, which is abandoned after WITHIN_S."""
    answers: list[Finding] = []
    thread = threading.Thread(target=lambda: answers.append(check()), daemon=True)
    thread.start()
    thread.join(WITHIN_S)
    return answers[0] if answers else Finding(what, f"{title}: no answer in {WITHIN_S:g} s", "see that this machine reaches it (proxies)")


def repository(hub: Hub) -> Finding:
    """Return whether the token may write to the repository that is pushed to, and whether that is there. Nothing is made."""
    title, origin = f"{hub.repo} (hub.repo)", hub_access.token_origin()
    if origin is None:
        return Finding("push", f"{title}: no token is set", "set HF_TOKEN to one that may write, or run `hf auth login`")
    api = HfApi()
    try:
        account = api.whoami()
        name = hub.repo if "/" in hub.repo else f"{account['name']}/{hub.repo}"
        owner = name.partition("/")[0]
        if (fault := _fault(account, owner, name)) is not None:
            cure = f"give it that right at {_endpoint()}/settings/tokens, or name another hub.repo"
            return Finding("push", f"{title}: the token of {origin} {fault}", cure)
        state = _state(api, name, hub)
    except Exception as error:  # noqa: BLE001  the errors of the client's HTTP library change with its version
        return _unasked(title, origin, error)
    if state is None:
        cure = "make it private there, or set hub.private=false"
        return Finding("push", f"{title}: {name} is public, and is to be private", cure)
    return Finding("push", f"{name} (hub.repo): the token of {origin} may write there; {state}")


def _fault(account: dict[str, Any], owner: str, name: str) -> str | None:
    """Return what a token lacks to write to the repository `name` of `owner`, None where it seems to lack nothing."""
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == _READ:
        return f"may not write to {name}: it is one that reads"
    roles = {org.get("name"): org.get("roleInOrg") for org in account.get("orgs", [])}
    if owner != account["name"] and owner not in roles:
        return f"may not write to {name}: its account {account['name']} is no member of {owner}"
    if roles.get(owner) == _READ:
        return f"may not write to {name}: its account {account['name']} may only read in {owner}"
    if token.get("role") == "fineGrained":
        scopes = [scope for scope in token["fineGrained"]["scoped"] if scope["entity"].get("name") in (owner, name)]
        if not any("repo.write" in scope["permissions"] for scope in scopes):
            return f"may not write to {name}: it is a fine-grained one without that right"
    return None


def _state(api: HfApi, name: str, hub: Hub) -> str | None:
    """Return whether a repository is there, None where it is public and is to be private."""
    try:
        private = bool(api.model_info(name, timeout=WITHIN_S).private)
    except RepositoryNotFoundError:
        return f"it is made {'private' if hub.private else 'public'} with the first push"
    return None if hub.private and not private else f"it is there, {'private' if private else 'public'}"


def _unasked(title: str, origin: str, error: Exception) -> Finding:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == hub_access.UNAUTHORIZED:
        cure = "set HF_TOKEN to a token that is valid and may write, or run `hf auth login` again"
        return Finding("push", f"{title}: the Hub refuses the token of {origin} (401)", cure)
    if constants.HF_HUB_OFFLINE:
        return Finding("push", f"{title}: HF_HUB_OFFLINE is set", "unset it, or push later: `plait push RUN`")
    why = hub_access.reason(error, status, WITHIN_S)
    cure = "see that this machine reaches the Hub (HF_ENDPOINT, proxies): pushes wait until it does"
    if status is not None and not hub_errors.may_pass(error):
        cure = "see that HF_ENDPOINT is a Hub that takes pushes"
    return Finding("push", f"{title}: the Hub at {_endpoint()} could not be asked ({why})", cure)


def _endpoint() -> str:
    return secrets.without_secrets(constants.ENDPOINT)


def written(address: str) -> Finding:
    """Return whether a small file can be written to, read from and removed at the address of a mirror."""
    title, path = f"{Store.shown_of(address)} (checkpoint.mirror)", f"{_TRIED}-{os.urandom(4).hex()}"
    try:
        store = Store(address)
        there = store.is_made()
        store.write(path, path.encode())
        try:
            same = store.read(path) == path.encode()
        finally:
            store.remove(path)
            if not there:
                store.remove_folder("")
    except PlaitError as error:
        return Finding("mirror", f"{title}: {error}", "mend checkpoint.mirror: see the line on mirror")
    except Exception as error:  # noqa: BLE001  of any library below fsspec
        passing = remote.may_pass(error) and not isinstance(error, FileNotFoundError)  # which is of a bucket
        cure = "see that this machine reaches it" if passing else "mend checkpoint.mirror, its keys or its rights"
        return Finding("mirror", f"{title} cannot be written, read and removed from: {mirror.reason(error)}", cure)
    if not same:
        return Finding("mirror", f"{title}: what was written is not what is read back", "look at what serves that address")
    return Finding("mirror", f"{title}: a small file was written, read and removed")
