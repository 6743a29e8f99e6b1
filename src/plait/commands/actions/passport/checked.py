"""Check a folder with a passport in it: its seal, its files, its card, and the manifest of a checkpoint."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plait.commands.actions.passport import listing, seal
from plait.commands.actions.passport.claims import Claims
from plait.config.messages import one_line
from plait.engine.checkpoints import chain, checkpoint, integrity
from plait.errors import PlaitError, command

_TOLD = re.compile(r"passport `(sha256:[0-9a-f]{64})`")


@dataclass
class Verdict:
    """What was checked. `what`: its name; `claims`: None where they cannot be read; `not_covered`: files that no claim is made of.

    `not_compared`: what was not held to the run that was named. `by`: what it was held against, in words; `run`: of a run, or a part of
    one: its directory.
    """

    what: str
    by: str = "its passport says"
    claims: Claims | None = None
    digest: str | None = None
    faults: list[str] = field(default_factory=list)
    not_covered: list[str] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)
    checked: int = 0
    run: Path | None = None


def folder(path: Path) -> Verdict:
    """Check a folder on the disk with a passport in it."""
    passport = path / seal.NAME
    found = Verdict(str(path))
    if passport.is_symlink() and not (passport.is_file() and passport.resolve().parent.name == "blobs"):
        found.faults.append(f"{seal.NAME} is a link, and no file of its own")
        return found
    if not passport.is_file():
        found.faults.append(f"{seal.NAME} is no regular file")
        return found
    read(found, passport.read_bytes())
    if found.claims is None:
        return found
    there, listed = listing.names(path), found.claims.files
    found.faults += listing.faults(path, listed)
    found.not_covered, found.checked = listing.not_covered(there, listed), len(listed)
    if (path / listing.CARD).is_file():
        found.faults += card_faults((path / listing.CARD).read_bytes(), found.digest)
    if found.claims.kind == "checkpoint":
        found.faults += manifest_faults(path / "manifest.json", found.claims)
        found.faults += [] if found.faults else integrity.verify(path)
    return found


def read(found: Verdict, body: bytes) -> None:
    """Take claims, digest and faults of a passport's bytes into a verdict."""
    claims, found.digest, faults = seal.unseal(body)
    found.faults += faults
    if claims is not None:
        try:
            found.claims = Claims.model_validate(claims)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            found.faults += [] if faults else [f"claim {name} is none of this version of plait: {one_line(first['msg'])}"]


def card_faults(body: bytes, digest: str | None) -> list[str]:
    """Return a line where a model card tells another digest; one that was edited may tell none."""
    told = _TOLD.search(body.decode(errors="replace"))
    return [f"{listing.CARD} tells passport {told[1]}, and {seal.NAME} has {digest}"] if told is not None and told[1] != digest else []


def card_line(digest: str, repo: str) -> str:
    """Return the sentence of a model card on its passport, which `card_faults` reads."""
    return f"What this page says of stages, data and bases is in its passport `{digest}`: `{command('verify', repo)}` checks it."


def manifest_faults(path: Path, claims: Claims) -> Iterator[str]:
    """Yield what a pushed checkpoint's own manifest, the file `path`, says otherwise than the passport."""
    try:
        manifest = checkpoint.read(path.parent).manifest
    except PlaitError as error:
        yield str(error)
        return
    yield from seal.differences(_of_manifest(manifest), _of_passport(claims), "manifest.json:")
    linked = {entry["folder"]: entry["xxh3"] for entry in manifest.get(chain.KEY, {}).get("stages", {}).values()}
    for stage in claims.stages[:-1]:
        if stage.folder in linked and linked[stage.folder] != stage.manifest_xxh3:
            was = stage.manifest_xxh3
            yield f"stage {stage.name} ended with manifest xxh3 {was}, and manifest.json is linked to {linked[stage.folder]}"


def _of_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    state = manifest["state"]
    pushed = {name: {"size": entry["size"], "xxh3": entry["xxh3"]} for name, entry in manifest["files"].items()}
    told = {
        "step": state["step"],
        "stage": manifest["stage"],
        "frozen_xxh3": manifest["frozen_xxh3"],
        "versions": manifest.get("versions", {}),
    }
    return {**told, "files": pushed, "trained": {name: one["trains"] for name, one in manifest["components"].items() if one["trains"]}}


def _of_passport(claims: Claims) -> dict[str, Any]:
    origin = claims.checkpoint
    told = {"step": origin.step, "stage": origin.stage, "frozen_xxh3": origin.frozen_xxh3, "versions": claims.versions}
    pushed = {name: entry.model_dump() for name, entry in origin.files.items() if name in claims.files}
    return {**told, "files": pushed, "trained": claims.stages[-1].trained if claims.stages else {}}
