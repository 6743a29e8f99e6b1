"""Ask the Hub, for `plait doctor`, whether each model and dataset is accessible with the user's token, its size and its licence.

All repositories are asked at the same time, each in a thread that is abandoned after a time limit. Nothing is downloaded, and no message
holds the token or any text from the server. A Finding is the result of a check, with a `cure` if something is wrong.
"""

import fnmatch
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from plait.assembly import hub_start
from plait.assembly.hub_start import Contents
from plait.commands.actions.findings import Finding, gigabytes
from plait.config import secrets
from plait.errors import PlaitError, printable

ASK_WITHIN_S = 20.0
"""Seconds for all answers of the Hub together."""
SAFETENSORS = "*.safetensors"
"""Pattern of files of weights."""
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files that a run reads besides the weights: configurations and tokenizers."""
_LIBRARIES = re.compile(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors")
"""Names of the weight files that transformers and diffusers read; a repository may hold others."""
UNAUTHORIZED, _FORBIDDEN = 401, 403


@dataclass(frozen=True)
class Wanted:
    """A repository that a run reads, named by `setting`. `folder`: the only one of its folders that is read; "": the top; None: all.

    `setting`: the key of the configuration, such as "model: vae". `kind`: "model" or "dataset". `library`: whether transformers or
    diffusers loads it, which read weight files of certain names only. `start`: if a run starts from it (`from:`), the step of the pushed
    run, "" for the newest; None for other repositories. `kept`: bytes on the disk at a time where its parquet is streamed, from `least`
    bytes of parquet on; None: it is never streamed.
    """

    setting: str
    name: str
    revision: str | None = None
    folder: str | None = ""
    kind: str = "model"
    library: bool = True
    start: str | None = None
    kept: int | None = None
    least: int = 0

    @property
    def title(self) -> str:
        """Return the name for messages: repository, folder and revision, as "nvidia/Cosmos/vae@main"."""
        return self.name + (f"/{self.folder}" if self.folder else "") + (f"@{self.revision}" if self.revision else "")


@dataclass
class HubAnswer:
    """What the Hub answered about a repository: its files to read, {path: size in bytes}, or the error.

    `gated`: its owner grants access on request. `came`: the Hub answered in time.
    """

    files: dict[str, int] = field(default_factory=dict)
    licence: str = "none is named"
    gated: bool = False
    error: Exception | None = None
    came: bool = False


def token_origin() -> str | None:
    """Return where the Hub's client takes its token from: the name of an environment variable, or "hf auth login"; None: no token."""
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return name
    path = Path(constants.HF_TOKEN_PATH)
    return "hf auth login" if path.is_file() and path.stat().st_size else None


def ask(wanted: Sequence[Wanted], limit_s: float) -> list[HubAnswer]:
    """Ask the Hub about all repositories at once; return an answer for each, in order. `limit_s`: seconds for all answers together.

    An answer that did not come in time is empty, with `came` False; one that is an error has it in `error`. Nothing is raised.
    """
    api, answers = HfApi(), [HubAnswer() for _ in wanted]

    def fill(item: Wanted, answer: HubAnswer) -> None:
        try:
            _ask_one(api, item, answer, limit_s)
        except Exception as error:  # noqa: BLE001  the client raises those of its HTTP library, which changes with its version
            answer.error = error
        answer.came = True

    threads = [threading.Thread(target=fill, args=pair, daemon=True) for pair in zip(wanted, answers, strict=True)]
    until = time.monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [answer if answer.came else HubAnswer() for answer in answers]


def _ask_one(api: HfApi, item: Wanted, answer: HubAnswer, limit_s: float) -> None:
    """Fill in an answer. Raises what the client raises."""
    about = api.model_info if item.kind == "model" else api.dataset_info
    info: Any = about(item.name, revision=item.revision, timeout=limit_s, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    answer.files = {name: size for name, size in sizes.items() if _reads(item, name)}
    if item.start is not None:
        contents = hub_start.chosen(Contents(item.name, item.revision, str(info.sha), tuple(sizes), ""), item.start)
        answer.files = {name: sizes[name] for name in (*contents.needed(assets=False), *contents.needed(assets=True))}
    answer.licence = licence(info)
    answer.gated = bool(info.gated)
    if answer.gated:
        api.auth_check(item.name, repo_type=item.kind)


def _reads(item: Wanted, file: str) -> bool:
    """Return whether a run that reads the repository downloads this file of it."""
    path = PurePosixPath(file)
    if item.folder is None:
        return True
    if str(path.parent) != (item.folder or "."):
        return False
    weights = _LIBRARIES.fullmatch(path.name) is not None if item.library else fnmatch.fnmatch(path.name, SAFETENSORS)
    return weights or any(fnmatch.fnmatch(path.name, pattern) for pattern in _SMALL)


def licence(info: Any) -> str:
    """Return the licence that a repository's card or tags name. One that is none of the Hub's list has its name and address."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    named = card.get("license") or [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    licences = [str(each) for each in (named if isinstance(named, list) else [named])]
    more = [secrets.without_secrets(str(card[key])) for key in ("license_name", "license_link") if card.get(key)]
    text = ", ".join(licences) + (f" ({', '.join(more)})" if more else "")
    return printable(" ".join(secrets.masked(text).split()))[:200] or "none is named"


def cached(item: Wanted) -> bool:
    """Return whether a model is in the Hub's local cache, with its configuration and each file of weights that its index names."""
    prefix = f"{item.folder}/" if item.folder else ""
    config = try_to_load_from_cache(item.name, f"{prefix}config.json", revision=item.revision)
    if not isinstance(config, str):
        return False
    folder = Path(config).parent
    for index in folder.glob("*.safetensors.index.json"):
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / name).is_file() for name in listed)
    return any(folder.glob(SAFETENSORS))


def examine(wanted: Sequence[Wanted], limit_s: float | None = None) -> tuple[list[Finding], int]:
    """Return a finding for each repository, and the number of bytes to download, as far as the Hub answered.

    `limit_s`: seconds for all answers together; None: 20. Offline, or if the Hub does not answer, the local cache is checked instead.
    """
    if constants.HF_HUB_OFFLINE:
        return [_offline(item) for item in wanted], 0
    findings, total = [], 0
    limit_s = ASK_WITHIN_S if limit_s is None else limit_s
    for item, answer in zip(wanted, ask(wanted, limit_s), strict=True):
        if answer.error is not None or not answer.came:
            findings.append(_refused(item, answer.error, limit_s))
            continue
        missing = {name: size for name, size in answer.files.items() if not _is_cached(item, name)}
        kept = _kept(item, answer)
        total += sum(missing.values()) if kept is None else kept
        findings.append(_had(item, answer, missing, kept))
    return findings, total


def _kept(item: Wanted, answer: HubAnswer) -> int | None:
    """Return how many bytes of a dataset are on the disk at a time if it is streamed; None if it is not."""
    parquet = sum(size for name, size in answer.files.items() if name.lower().endswith(".parquet"))
    return None if item.kept is None or parquet < max(1, item.least) else min(item.kept, parquet)


def _is_cached(item: Wanted, file: str) -> bool:
    return isinstance(try_to_load_from_cache(item.name, file, revision=item.revision, repo_type=item.kind), str)


def _what(item: Wanted) -> str:
    return "weights" if item.kind == "model" else "data"


def _had(item: Wanted, answer: HubAnswer, missing: dict[str, int], kept: int | None) -> Finding:
    """Return the finding of a repository that can be had. `kept`: bytes of it on the disk at a time; None: all."""
    size = gigabytes(sum(answer.files.values()))
    if kept is not None:
        amount = f"{size}, streamed: up to {gigabytes(kept)} on the disk at a time"
    elif not missing:
        amount = f"in the cache ({size})"
    elif len(missing) < len(answer.files):
        amount = f"{gigabytes(sum(missing.values()))} of {size} to download"
    else:
        amount = f"{'up to ' if item.folder is None else ''}{size} to download"
    if item.kind == "model" and not any(name.endswith(".safetensors") for name in answer.files):
        amount += ", but it lists no safetensors weights, and others are not read"
    access = ", gated: this token may read it" if answer.gated else ""
    return Finding(_what(item), f"{item.title} ({item.setting}): {amount}; licence {answer.licence}{access}")


def _offline(item: Wanted) -> Finding:
    """Return the finding of a repository that the Hub is not asked about, because HF_HUB_OFFLINE is set."""
    if item.kind == "dataset":
        return Finding("data", f"{item.title} ({item.setting}): the Hub is offline, so it cannot be asked; it must be in the cache")
    if cached(item):
        return Finding("weights", f"{item.title} ({item.setting}) is in the cache; the Hub is offline and was not asked")
    result = f"{item.title} ({item.setting}) is not in the cache, and the Hub is offline"
    return Finding("weights", result, f"download it first: {_download(item)}")


def _download(item: Wanted) -> str:
    """Return the command that downloads a repository's part."""
    if item.kind == "dataset":
        return "plait data inspect CONFIG, with the same HF_HOME"
    part = f" --include '{item.folder}/*'" if item.folder else ""
    return f"hf download {item.name}{part}" + (f" --revision {item.revision}" if item.revision else "")


def _refused(item: Wanted, error: Exception | None, limit_s: float) -> Finding:
    """Return the finding of a repository that the Hub did not give, or did not answer for (`error` is None)."""
    origin = token_origin()
    site = f"{secrets.without_secrets(constants.ENDPOINT)}/{'datasets/' if item.kind == 'dataset' else ''}{item.name}"
    token = f"the token of {origin}" if origin else "no token is set"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    login = "set HF_TOKEN (or run `hf auth login`)"
    if isinstance(error, PlaitError):
        result, cure = str(error), f"mend {item.setting}"
    elif isinstance(error, GatedRepoError):
        result = f"gated, and {token + ' may not read it' if origin else token}"
        allow = "with the account of that token; a fine-grained one must also allow public gated repositories"
        cure = f"accept its licence at {site} {allow if origin else f'and {login}'}"
    elif status == UNAUTHORIZED and origin:
        result = f"the Hub refuses {token} (401)"
        cure = "set HF_TOKEN to a token that is valid" if origin != "hf auth login" else "run `hf auth login` again, or set HF_TOKEN"
    elif isinstance(error, RevisionNotFoundError):
        result, cure = f"it has no revision {item.revision!r}", f"mend {item.setting}: {site} lists its branches and commits"
    elif isinstance(error, RepositoryNotFoundError):
        result = f"there is no such {item.kind}, or it is private and {token + ' may not see it' if origin else token}"
        cure = f"mend {item.setting}, or {login if not origin else f'use a token that may read {item.name}'}"
    elif isinstance(error, HFValidationError):
        result, cure = "that is no name of a repository", f"mend {item.setting}: owner/name, or a folder that is here"
    elif status == _FORBIDDEN:
        result, cure = f"the Hub forbids it (403) with {token}", f"look at {site} with the account of that token"
    else:
        return _unasked(item, reason(error, status, limit_s))
    return Finding(_what(item), f"{item.title} ({item.setting}): {result}", cure)


def reason(error: BaseException | None, status: int | None, limit_s: float) -> str:
    """Return why there is no answer, in words of the system's. The client's may hold the token, as those on a header that is wrong do."""
    if error is None:
        return f"no answer in {limit_s:g} s"
    if status is not None:
        return f"it answered with status {status}"
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    system = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    return type(error).__name__ + (f": {system}" if system else "")


def _unasked(item: Wanted, reason: str) -> Finding:
    """Return the finding of a repository that the Hub could not be asked about."""
    unasked = f"the Hub at {secrets.without_secrets(constants.ENDPOINT)} could not be asked ({reason})"
    if item.kind == "model" and cached(item):
        return Finding("weights", f"{item.title} ({item.setting}) is in the cache; {unasked}")
    cure = f"see that this machine reaches the Hub (HF_ENDPOINT, proxies), or download on one that does: {_download(item)}"
    return Finding(_what(item), f"{item.title} ({item.setting}): {unasked}", cure)
