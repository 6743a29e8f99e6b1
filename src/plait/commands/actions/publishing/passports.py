"""Write the passport of a push beside its files, before the card, which tells its digest.

It is made once for an item, of what the run had recorded up to its step, so that a push that is repeated sends the same bytes.
"""

import logging
from collections.abc import Container
from pathlib import Path

from plait.assembly.run_configuration import open_file, open_of_checkpoint
from plait.commands.actions.passport import claims, listing, seal
from plait.commands.actions.passport import write as passport
from plait.commands.actions.passport.claims import Claims
from plait.commands.actions.publishing import contents
from plait.commands.actions.publishing.outbox import Item, Job
from plait.config import signed
from plait.engine.checkpoints import checkpoint
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.errors import PlaitError

log = logging.getLogger(__name__)


class Damaged(PlaitError):
    """A file that is to be sent is not as its manifest or passport says. It is given up, so that later pushes do not wait for it."""


def write(item: Item, run: Path) -> None:
    """Write the passport of an item into its files, if that is not done.

    Raises Damaged where its manifest or passport is, and PlaitError where its run cannot be read.

    An export has one of its own, made when it was written; what the push adds to it is listed as well.
    """
    own = _read(item)
    if own is not None and contents.RUN in own.files:
        return
    if own is None:
        told, listed = _claims(item, run), listing.files_of(item.files)
    else:
        told = own
        listed = {**own.files, **{name: listing.entry(item.files / name) for name in _added(item.files, own)}}
    if told is None:
        log.warning(f"{item.job.title} is pushed without a passport: {item.job.checkpoint} is no longer in {run}")
        return
    passport.write(item.files, told, listed)


def _added(folder: Path, own: Claims) -> list[str]:
    """Return the files that the passport of an export does not list, but for itself and the card."""
    return [name for name in listing.names(folder) if name not in own.files and name not in (seal.NAME, listing.CARD)]


def _read(item: Item) -> Claims | None:
    """Return the claims of the passport among an item's files; None without one. Raises Damaged for one that was changed."""
    path = item.files / seal.NAME
    if not path.is_file():
        return None
    told, _, faults = seal.unseal(path.read_bytes())
    if told is None or faults:
        raise _damaged(item, path)
    return Claims.model_validate(told)


def _claims(item: Item, run: Path) -> Claims | None:
    """Return the claims of a checkpoint that is pushed as it is; of an export without a passport too, while its checkpoint is there.

    Raises Damaged where the manifest that is pushed is.
    """
    job: Job = item.job
    if job.layout is None:
        try:
            pushed = checkpoint.read(item.files)
        except PlaitError as error:
            raise _damaged(item, item.files / contents.MANIFEST) from error
        found = Checkpoint(item.files, {**pushed.manifest, "xxh3": job.xxh3})  # which is that of the whole one in the run
        resolved = open_file(item.files / signed.COPY)
        form = claims.all_weights(found)
        return claims.of_checkpoint(found, job.checkpoint, run, resolved, kind="checkpoint", layout=None, weights=form)
    folder = run / job.checkpoint
    if not (folder / "manifest.json").is_file():
        return None
    resolved = open_of_checkpoint(run, folder)
    return claims.of_checkpoint(checkpoint.read(folder), job.checkpoint, run, resolved, kind="export", layout=job.layout, weights="weights")


def _damaged(item: Item, path: Path) -> Damaged:
    return Damaged(f"{item.job.title} is not pushed to {item.job.repo}: {path} is damaged; push another checkpoint")


def damaged(item: Item, known: Container[str]) -> list[str]:
    """Return the files of an item that are not as its passport says, but for those `known` by other hashes. Raises Damaged for itself."""
    own = _read(item)
    listed = {} if own is None else {name: entry for name, entry in own.files.items() if name not in known}
    return [name for name, entry in listed.items() if not (item.files / name).is_file() or listing.entry(item.files / name) != entry]
