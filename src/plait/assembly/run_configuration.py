"""Read the configuration of a run directory, or a checkpoint's copy of it, and check the mixtures that a configuration names."""

import logging
from collections.abc import Sequence
from pathlib import Path

from plait.assembly.configuration import open_config
from plait.config import mixture, signed
from plait.config.resolved import Resolved
from plait.data.sources.open import KINDS
from plait.errors import PlaitError
from plait.families import registry

log = logging.getLogger(__name__)


def open_run_config(run: Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read the configuration in run directory `run`, changed by `overrides` ("optim.lr=1e-4"). Raises PlaitError if there is none.

    Where config.yaml cannot be read, the newest checkpoint's copy is, with a warning. Raises PlaitError without a copy too.
    """
    path = run / signed.NAME
    copy = None if signed.is_as_written(path) else signed.newest_copy(run)
    if copy is not None and (fault := _fault(path)):
        log.warning(f"{fault}; {copy}, saved with that checkpoint, is read in its place")
        path = copy
    if not path.is_file():
        raise PlaitError(f"{run} is no run directory: it has no config.yaml")
    return open_config(path, overrides, data_base=Path.cwd())  # paths are absolute, but for runs of older versions


def open_accepted(run: Path) -> Resolved:
    """Read the configuration with which `run` was last started: config.yaml, or a checkpoint's copy if that was edited or damaged since.

    Raises PlaitError if neither can be read.
    """
    path = run / signed.NAME
    copy = None if signed.is_as_written(path) else signed.newest_copy(run)
    if copy is None:
        return open_run_config(run)
    log.warning(
        f"{path} is not as plait wrote it: it was edited or damaged; {copy}, saved with that checkpoint, is what this start must fit"
    )
    return open_config(copy, data_base=Path.cwd())


def _fault(path: Path) -> str | None:
    """Return why the configuration at `path` cannot be read; None where it can."""
    if not path.is_file():
        return f"{path} is {'no file' if path.exists() else 'missing'}"
    try:
        open_config(path, data_base=Path.cwd())
    except PlaitError as error:
        return f"{path} is damaged, or not of this version of plait ({error})"
    return None


def open_checked(path: Path, overrides: Sequence[str] = (), *, words: Sequence[str] = ()) -> Resolved:
    """Read a configuration, or that of the run directory `path`, and also check the mixtures (lists of weighted data sets) it names.

    `overrides`, `words`: as in `open_config`. Raises PlaitError for any fault of the configuration or a mixture; opens no data.
    """
    is_run = path.is_dir()
    resolved = open_run_config(path, [f"run={path}", *overrides]) if is_run else open_config(path, overrides, words=words, trials=True)
    for data in (view.config.data for view in resolved.stages):
        if data.mixture is not None:
            mixture.read(registry.mixture(resolved.config.family, data.mixture), data.without, KINDS)
    return resolved
