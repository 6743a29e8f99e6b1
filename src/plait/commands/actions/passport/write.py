"""Write the passport of an export, of consolidated weights, or of what is pushed to the Hub."""

from collections.abc import Mapping
from pathlib import Path

from plait import files
from plait.assembly.saved import SavedModel
from plait.commands.actions.passport import claims, listing, seal
from plait.commands.actions.passport.claims import Claims, File
from plait.engine.checkpoints import checkpoint


def of_folder(saved: SavedModel, folder: Path, *, kind: str, layout: str | None, weights: str) -> str:
    """Write passport.json for a folder that was just made of a checkpoint, with all that is in it; return its digest.

    `kind`: export or weights; `weights`: which ones, in words.
    """
    found, run = saved.checkpoint, checkpoint.run_of(saved.checkpoint.folder)
    place = str(found.folder.relative_to(run))
    told = claims.of_checkpoint(found, place, run, saved.resolved, kind=kind, layout=layout, weights=weights)
    return write(folder, told, listing.files_of(folder))


def write(folder: Path, told: Claims, listed: Mapping[str, File]) -> str:
    """Write the passport of a folder with these claims and files; return its digest."""
    content = seal.sealed({**told.model_dump(mode="json"), "files": {name: entry.model_dump() for name, entry in listed.items()}})
    path = folder / seal.NAME
    path.unlink(missing_ok=True)  # it may be a link to that of the export which is pushed
    files.write_whole(path, files.json_text(content))
    return str(content["digest"])
