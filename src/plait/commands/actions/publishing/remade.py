"""Make a folder of weights again from its run, and compare each tensor with those that it has."""

import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from plait.commands.actions import export
from plait.commands.actions.checkpoints import consolidate
from plait.commands.actions.export_check.load import digest
from plait.commands.actions.passport.claims import Claims
from plait.errors import PlaitError

log = logging.getLogger(__name__)

_LENGTH = re.compile(r"weights averaged over a length of ([0-9.e-]+)")


def weight_faults(folder: Path, told: Claims, run: Path) -> list[str]:
    """Return a line for each tensor of an export, or of consolidated weights, in `folder` that the run gives otherwise.

    It is made again beside the run, as its passport says, and removed. Raises PlaitError for what is no folder on a disk, and as
    `plait export` and `plait ckpt consolidate` do.
    """
    if not folder.is_dir():
        raise PlaitError(f"--weights: {folder} is no folder on this disk: download it, and verify that")
    assert told.checkpoint.folder is not None, "looked at before"
    spec, averaged = str(run / told.checkpoint.folder), told.weights != "last weights"
    log.info(f"making it again from {spec}, to compare its weights")
    with tempfile.TemporaryDirectory(prefix=".verify-", suffix=".tmp", dir=run) as work:
        again = Path(work) / "again"
        if told.kind == "weights":
            consolidate(spec, again, averaged)
        else:
            length = _LENGTH.fullmatch(told.weights)
            export.export(spec, again, told.layout, averaged=averaged, length=float(length[1]) if length else None, kept=False)
        return list(_differences(_tensors(again), _tensors(folder), run))


def _tensors(folder: Path) -> dict[str, str]:
    """Return dtype, shape and hash of each tensor in the safetensors files of a folder, by folder and name. Raises PlaitError."""
    found = dict[str, str]()
    for path in sorted(folder.rglob("*.safetensors")):
        below = path.parent.relative_to(folder).as_posix()
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    found[name if below == "." else f"{below}/{name}"] = digest(file.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise PlaitError(f"{path} cannot be read: {error}") from error
    return found


def _differences(wanted: dict[str, str], there: dict[str, str], run: Path) -> Iterator[str]:
    for name in dict.fromkeys([*wanted, *there]):
        if name not in there:
            yield f"tensor {name} is not there, and {run} has it"
        elif name not in wanted:
            yield f"tensor {name} is none that {run} gives"
        elif wanted[name] != there[name]:
            yield f"tensor {name} is not that of {run}: {_short(there[name])}, was to be {_short(wanted[name])}"


def _short(text: str) -> str:
    """Return dtype, shape and the first digits of a hash."""
    form, _, hashed = text.rpartition(" ")
    return f"{form} sha256 {hashed[:12]}"
