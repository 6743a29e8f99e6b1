"""Download the files that a run needs to start `from:` a repository of the Hub, once on each machine.

A repository may hold a run (`stage-*/step-*`, `assets/`), a checkpoint alone, or bare safetensors. `owner/name@MARK` names a revision, or
in a run the checkpoint of a step, `best` or `latest`. Other files (metrics, other checkpoints) are not downloaded.

The errors of the Hub client's HTTP library change with its version, so all exceptions of it are caught.
"""

import atexit
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError

from plait.assembly import checkpoint_specs
from plait.config import hub_errors, signed
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError

_STEP = re.compile(r"(stage-(\d+)-[^/]+/step-(\d{8,}))/manifest\.json")
_ASSETS = re.compile(r"assets/.+|tokenizer\.json")
_MANIFEST = "manifest.json"
_BARE = re.compile(r"[^/]+\.safetensors|plait\.json|(?:[^/]+/)?adapter_config\.json")
_ALONE = re.compile(r"(?:(?:weights|ema|moments)[\w.-]*/)?[^/]+\.safetensors|manifest\.json|run-config\.yaml")


@dataclass(frozen=True)
class Contents:
    """The paths of the files of the Hub repository `name` (owner/name) at `commit`.

    `revision`: as asked for (None: main). `checkpoint`: the step folder chosen among them, "" if there is none.
    """

    name: str
    revision: str | None
    commit: str
    files: tuple[str, ...]
    checkpoint: str

    def needed(self, assets: bool) -> list[str]:
        """Return the paths of the weight files; with `assets`, of the files needed to build the model, such as a tokenizer, instead."""
        if assets:
            return [file for file in self.files if _ASSETS.fullmatch(file)]
        if self.checkpoint:
            return [file for file in self.files if file.startswith(f"{self.checkpoint}/") or file == "config.yaml"]
        return [file for file in self.files if (_ALONE if _MANIFEST in self.files else _BARE).fullmatch(file)]


def repository(spec: str) -> tuple[str, str] | None:
    """Split `owner/name[@mark]` into (owner/name, mark or ""); None if `spec` is a local path or cannot be a Hub repository."""
    path, mark = checkpoint_specs.split(spec)
    if path.exists() or (path.parent / "config.yaml").is_file() or not checkpoint_specs.may_be_hub(str(path)):
        return None
    return str(path), mark


def look(name: str, mark: str) -> Contents:
    """List the files of the Hub repository `name` and choose a checkpoint. If the Hub cannot be reached, the local cache is listed.

    `mark`: a revision, or a step, "best" or "latest" of a run; "": the newest of the main branch. Raises PlaitError if there is no such
    repository, revision or step.
    """
    contents = _list(name, "" if names_step(mark) else mark)
    if names_step(mark) and not _steps(contents.files):
        return _list(name, mark)
    newest = chosen(contents, "")
    return chosen(contents, str(_best(contents, newest.checkpoint)) if mark == "best" and newest.checkpoint else mark)


def names_step(mark: str) -> bool:
    """Return whether a mark names a checkpoint (a step, "best" or "latest") rather than a revision of the repository."""
    return mark.isdecimal() or mark in ("best", checkpoint_specs.LATEST)


def chosen(contents: Contents, mark: str) -> Contents:
    """Return `contents` with a checkpoint chosen: that of step `mark`, or the newest if `mark` is no number.

    So it is the newest for "best" too, which `look` replaces by the number of its step before. Raises PlaitError if the repository holds
    checkpoints but none of that step. Without checkpoints it is returned as it is.
    """
    if not (steps := _steps(contents.files)):
        return contents
    at_step = [folder for (step, _), folder in sorted(steps.items()) if not mark.isdecimal() or step == int(mark)]
    if not at_step:
        known = ", ".join(str(step) for step, _ in sorted(steps))
        raise PlaitError(f"from: {contents.name} has no checkpoint at step {mark!r}; it has {known}")
    return replace(contents, checkpoint=at_step[-1])


def _steps(files: Sequence[str]) -> dict[tuple[int, int], str]:
    """Return the folders of the checkpoints among a repository's files, by step and stage."""
    return {(int(match[3]), int(match[2])): match[1] for file in files if (match := _STEP.fullmatch(file))}


def _list(name: str, revision: str) -> Contents:
    try:
        info = HfApi().model_info(name, revision=revision or None)
        return Contents(name, revision or None, str(info.sha), tuple(file.rfilename for file in info.siblings or []), "")
    except HFValidationError as error:
        raise _refusal(name, error) from error
    except Exception as error:  # noqa: BLE001
        try:
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[], local_files_only=True))
        except Exception:  # noqa: BLE001
            raise _refusal(name, error) from error
        files = tuple(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file())
        return Contents(name, revision or None, folder.name, files, "")


def _best(contents: Contents, newest: str) -> int:
    """Return the step of the best checkpoint, which the manifest of the newest one names."""
    try:
        path = hf_hub_download(contents.name, f"{newest}/manifest.json", revision=contents.commit)
    except Exception as error:
        raise _refusal(contents.name, error) from error
    best = json.loads(Path(path).read_bytes())["state"]["best"]
    if best is None:
        raise PlaitError(f"from: {contents.name} has no best checkpoint: its configuration sets no checkpoint.best")
    return int(best["step"])


def _refusal(name: str, error: Exception) -> PlaitError:
    reason = hub_errors.reason(error, name)
    return PlaitError(f"from: {name!r} is no run, stage or folder here, and the Hub did not give it: {reason}; `plait doctor` says more")


def _download(contents: Contents, files: Sequence[str], local_only: bool = False) -> Path:
    """Download files into the Hub's cache, or find them there, and return the folder of the repository's snapshot."""
    wanted = [glob.escape(file) for file in files]
    revision = contents.commit if local_only else contents.revision  # by its name the cache knows it later, without a network
    try:
        return Path(snapshot_download(contents.name, revision=revision, allow_patterns=wanted, local_files_only=local_only))
    except Exception as error:
        raise _refusal(contents.name, error) from error


def assets(spec: str) -> Path | None:
    """Download the files that are needed to build a model, such as its tokenizer, from the Hub repository that `spec` names.

    Returns the local folder that holds `assets/` or tokenizer.json; None if `spec` is a local path, or the repository has neither. Raises
    PlaitError if neither the Hub nor the local cache gives the repository.
    """
    named = repository(spec)
    contents = None if named is None else look(*named)
    return _download(contents, files) if contents is not None and (files := contents.needed(assets=True)) else None


def fetch(spec: str, ranks: Ranks) -> Path | None:
    """Download the weights that `spec`, a `from:`, names on the Hub; returns their folder, None if it is a local path. All ranks call this.

    Rank 0 downloads while the others wait, then one rank of each other machine. Raises PlaitError on all ranks, with the message of the
    first that failed.
    """
    named = repository(spec)
    if not ranks.agree(named is not None):
        return None
    contents: Contents | None = None
    failure = None
    if ranks.first and named is not None:
        try:
            contents = look(*named)
            contents = replace(contents, commit=_download(contents, contents.needed(assets=False)).name)
        except PlaitError as error:
            failure = str(error)
    contents, failure = ranks.agree((contents, failure))
    if contents is None:
        raise PlaitError(failure)
    files = contents.needed(assets=False)
    if os.environ.get("LOCAL_RANK", "0") == "0" and not ranks.first:
        try:
            _download(contents, files)
        except PlaitError as error:
            failure = str(error)
    if failures := [line for line in ranks.gather(failure) if line is not None]:
        raise PlaitError(failures[0])
    return _download(contents, files, local_only=True) / contents.checkpoint


def local_checkpoint(spec: str) -> Path | None:
    """Download the checkpoint of the Hub repository that `spec` names, with what its model is built from; return its local folder.

    None if the repository holds neither a run nor a checkpoint with its run's configuration, as an export. Raises PlaitError if neither the
    Hub nor the local cache gives the repository, or it has no such checkpoint.
    """
    named = repository(spec)
    if named is None:
        return None
    contents = look(*named)
    assets_there = contents.needed(assets=True)
    if contents.checkpoint:
        return _download(contents, [*contents.needed(assets=False), *assets_there]) / contents.checkpoint
    if not {_MANIFEST, signed.COPY} <= set(contents.files):
        return None
    top = [file for file in contents.files if "/" not in file or _ALONE.fullmatch(file)]
    root = _download(contents, [*top, *assets_there])
    try:
        step = int(json.loads((root / _MANIFEST).read_bytes())["state"]["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise PlaitError(f"from: {contents.name}: its {_MANIFEST} is damaged: push it again") from error
    run = Path(tempfile.mkdtemp(prefix="plait-"))  # a checkpoint is known by the names of its folders
    atexit.register(shutil.rmtree, run, ignore_errors=True)
    folder = run / "stage-1-hub" / f"step-{step:08d}"
    for file in top:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).symlink_to(root / file)
    if (root / "assets").is_dir():
        (run / "assets").symlink_to(root / "assets")
    return folder
