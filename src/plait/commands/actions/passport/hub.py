"""Check a repository of the Hub against its passport, of which only small files are downloaded.

Of files in large-file storage, as all weights are, the Hub's API tells size and SHA-256. Others are downloaded anew, past the cache.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

from plait.commands.actions.passport import checked, listing, seal
from plait.commands.actions.passport.checked import Verdict
from plait.commands.actions.passport.claims import File
from plait.config import hub_errors
from plait.errors import PlaitError

_MOST_BYTES = 64 << 20
"""Of a file that is downloaded: what is larger is in large-file storage on every Hub."""


def look(name: str, mark: str) -> Verdict:
    """Check the repository `name` (owner/name) at a branch, tag or commit, "": its main branch.

    Raises PlaitError where the Hub does not give it, or it has no passport.
    """
    spec = f"{name}@{mark}" if mark else name
    try:
        info = HfApi().model_info(name, revision=mark or None, files_metadata=True)
        siblings = {str(file.rfilename): file for file in info.siblings or []}
        if seal.NAME not in siblings:
            raise PlaitError(f"{spec} on the Hub has no {seal.NAME}: it was pushed by an older plait, or by another program")
        with tempfile.TemporaryDirectory(prefix="plait-verify-") as work:
            return _checked(spec, _Repository(name, str(info.sha), siblings, Path(work)))
    except PlaitError:
        raise
    except Exception as error:  # the errors of the client's HTTP library change with its version
        raise PlaitError(f"{spec} cannot be checked: {hub_errors.reason(error, spec)}") from error


class _Repository:
    """A repository at a commit. `siblings`: what the API tells of each file; `work`: a folder for what is downloaded."""

    def __init__(self, name: str, commit: str, siblings: dict[str, Any], work: Path) -> None:
        self.name, self.commit, self.siblings, self.work = name, commit, siblings, work

    def path(self, file: str) -> Path:
        """Download a file of the commit."""
        return Path(hf_hub_download(self.name, file, revision=self.commit, cache_dir=self.work))

    def entry(self, file: str) -> File | None:
        """Return size and SHA-256 of a file, as the API tells them or as it is; None of a large file without them."""
        told = self.siblings[file]
        if told.lfs is not None:
            return File(size=told.lfs.size, sha256=told.lfs.sha256)
        return None if (told.size or 0) > _MOST_BYTES else listing.entry(self.path(file).resolve())


def _checked(spec: str, there: _Repository) -> Verdict:
    found = Verdict(f"{spec} at {there.commit[:12]}")
    checked.read(found, there.path(seal.NAME).read_bytes())
    if found.claims is None:
        return found
    listed, names = found.claims.files, sorted(there.siblings)
    found.faults += _faults(there, listed)
    found.faults += listing.unlisted(names, listed)
    found.not_covered, found.checked = listing.not_covered(names, listed), len(listed)
    if listing.CARD in there.siblings:
        found.faults += checked.card_faults(there.path(listing.CARD).read_bytes(), found.digest)
    if found.claims.kind == "checkpoint" and not found.faults:
        found.faults += checked.manifest_faults(there.path("manifest.json"), found.claims)
    return found


def _faults(there: _Repository, listed: dict[str, File]) -> Iterator[str]:
    """Yield a line for each listed file that is missing there, or another."""
    for name, entry in listed.items():
        if name not in there.siblings:
            yield f"{name} is missing: the passport lists {entry.size:,} bytes"
        elif (now := there.entry(name)) is None:
            yield f"{name} cannot be compared: it is large, and the Hub tells no sha256 of it"
        elif now.size != entry.size:
            yield f"{name} is changed: it had {entry.size:,} bytes, has {now.size:,}"
        elif now.sha256 != entry.sha256:
            yield f"{name} is changed: its sha256 was {entry.sha256}, is {now.sha256}"
