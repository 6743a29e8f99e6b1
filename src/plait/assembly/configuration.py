"""Read configuration files, and resolve what they name: families (kinds of model), presets, and formats of other trainers."""

from collections.abc import Sequence
from pathlib import Path

from plait.config.dialects import table
from plait.config.dialects.wandb_sweeps import trial_folder
from plait.config.load import load_config
from plait.config.nodes import Node
from plait.config.resolved import Resolved
from plait.data.sources.open import KINDS
from plait.families import registry


def open_config(
    path: str | Path | Node,
    overrides: Sequence[str] = (),
    *,
    words: Sequence[str] = (),
    data_base: Path | None = None,
    trials: bool = False,
) -> Resolved:
    """Read and check the configuration at `path`: .yaml, .json, or a launch script of another trainer, called with the arguments `words`.

    `path` may also be the mapping itself, as a node. Returns it with each stage's (part of a run's) settings filled in. `overrides`:
    settings that replace the file's, as "optim.lr=1e-4". `data_base`: the folder that data paths are relative to; None: the file's.
    `trials`: give each trial of a W&B sweep its own run folder.
    Raises PlaitError, one line, for any fault.
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
