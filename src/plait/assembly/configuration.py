"""Read configuration files, and resolve what they name: families (kinds of model), presets, and formats of other trainers."""

from collections.abc import Sequence
from pathlib import Path

from plait.config import mixture
from plait.config.dialects import table
from plait.config.dialects.wandb_sweeps import trial_folder
from plait.config.load import load_config
from plait.config.resolved import Resolved
from plait.data.sources.open import KINDS
from plait.errors import PlaitError
from plait.families import registry


def open_config(
    path: str | Path, overrides: Sequence[str] = (), *, words: Sequence[str] = (), data_base: Path | None = None, trials: bool = False
) -> Resolved:
    """Read and check the configuration at `path`: .yaml, .json, or a launch script of another trainer, called with the arguments `words`.

    Returns it with the settings of each stage (part of a run) filled in. `overrides`: settings that replace the file's, as "optim.lr=1e-4".
    `data_base`: the folder that data paths are relative to; None: that of the file. `trials`: give each trial of a W&B sweep its own run
    folder. Raises PlaitError, one line, for any fault.
    """
    return load_config(
        path,
        overrides,
        model_config=registry.model_config,
        preset=registry.preset,
        sources=KINDS,
        dialects=table.dialects(),
        words=words,
        data_base=data_base,
        run_folder=trial_folder if trials else None,
    )


def open_run_config(run: Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read the configuration in directory `run`, changed by `overrides` ("optim.lr=1e-4"). Raises PlaitError if it is missing or wrong."""
    if not (run / "config.yaml").is_file():
        raise PlaitError(f"{run} is no run directory: it has no config.yaml")
    return open_config(run / "config.yaml", overrides, data_base=Path.cwd())  # paths are absolute, but for runs of older versions


def open_checked(path: Path, overrides: Sequence[str] = (), *, words: Sequence[str] = ()) -> Resolved:
    """Read a configuration, or that of the run directory `path`, and also check the mixtures (lists of weighted data sets) it names.

    `overrides`, `words`: as in `open_config`. Raises PlaitError for a mixture whose name or content is wrong; opens no data.
    """
    is_run = path.is_dir()
    resolved = open_run_config(path, [f"run={path}", *overrides]) if is_run else open_config(path, overrides, words=words, trials=True)
    for data in (view.config.data for view in resolved.stages):
        if data.mixture is not None:
            mixture.read(registry.mixture(resolved.config.family, data.mixture), data.without, KINDS)
    return resolved
