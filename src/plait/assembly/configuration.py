"""Open a configuration file with everything that can be named in it: the families, their presets, and the dialects of other trainers."""

from collections.abc import Sequence
from pathlib import Path

from plait.config import mixture
from plait.config.dialects import table
from plait.config.load import load_config
from plait.config.resolved import Resolved
from plait.data.sources.open import KINDS
from plait.errors import PlaitError
from plait.families import registry


def open_config(path: str | Path, overrides: Sequence[str] = (), *, words: Sequence[str] = ()) -> Resolved:
    """Read the configuration at `path` (.yaml, .json, or a launch script's name with its `words`).

    Raises PlaitError, one line, for any fault of it.
    """
    return load_config(
        path,
        overrides,
        model_config=registry.model_config,
        preset=registry.preset,
        sources=KINDS,
        dialects=table.dialects(),
        words=words,
    )


def open_run_config(run: Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read the configuration that a run directory was made with. Raises PlaitError where `run` is no run directory."""
    if not (run / "config.yaml").is_file():
        raise PlaitError(f"{run} is no run directory: it has no config.yaml")
    return open_config(run / "config.yaml", overrides)


def open_checked(path: Path, overrides: Sequence[str] = (), *, words: Sequence[str] = ()) -> Resolved:
    """Read a file, or the configuration of the run directory `path`, and check the mixtures it names.

    Raises PlaitError for a wrong name or file of a mixture before anything else is done.
    """
    if path.is_dir():
        path, overrides = path / "config.yaml", [f"run={path}", *overrides]
    resolved = open_config(path, overrides, words=words)
    for data in (view.config.data for view in resolved.stages):
        if data.mixture is not None:
            mixture.read(registry.mixture(resolved.config.family, data.mixture), data.without, KINDS)
    return resolved
