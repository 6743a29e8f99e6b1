"""Handle Weights & Biases sweeps: refuse the file of one, with advice, and give each trial a run folder.

The file of a sweep is for W&B's agents, which start plait; it is no configuration of plait.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from plait.config.dialects.molmo_commands import FILES
from plait.config.nodes import Node, to_plain
from plait.config.reading import Override
from plait.errors import PlaitError

_KEYS = {"program", "parameters", "method"}


def recognise(tree: Node, plait_keys: Sequence[str]) -> bool:
    """Return whether `tree` is the file of a sweep: it has `parameters`, and `program`, `method` or both. `plait_keys` is not used."""
    return isinstance(tree.value, dict) and "parameters" in tree.value and len(_KEYS & tree.value.keys()) > 1


def translate(tree: Node, overrides: Sequence[Override], path: Path, plait_keys: Sequence[str]) -> NoReturn:
    """Raise PlaitError with the lines that make the sweep's agents run plait: the agents, not plait, read the file.

    `tree`: its content; `path`: for the message. The other arguments, which every dialect takes, are not used.
    """
    sweep = to_plain(tree)
    words = [str(word) for word in sweep.get("command") or ()]
    program = str(sweep.get("program") or "")
    scripts = [FILES[name] for word in [program, *words] if (name := word.rsplit("/", 1)[-1]) in FILES]
    if words[:2] == ["plait", "train"]:
        raise PlaitError(f"{path} is the file of a W&B sweep, whose agents run plait: wandb sweep {path}")
    kept = [word for word in words if not re.fullmatch(r"\$\{\w+\}|(?:.*/)?(?:env|python3?|torchrun)|-.*|.*\.py", word)]
    script = scripts[0] if scripts else "CONFIG"
    rest = kept or {"molmo/captioner": ["MODEL"], "molmo/multitask": ["MIXTURE", "CHECKPOINT"]}.get(script, [])
    line = ", ".join(["plait", "train", script, *rest, "${args}"])
    raise PlaitError(f"{path} is the file of a W&B sweep, which its agents read: write command: [{line}] in it, then wandb sweep {path}")


def trial_folder(run: str) -> str:
    """Return the run folder of this process: `run`, or, in a trial of a sweep, the folder SWEEP-TRIAL below it.

    A trial is recognised by WANDB_SWEEP_ID and WANDB_RUN_ID, which the agent sets in the environment.
    """
    sweep, trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return f"{run.rstrip('/')}/{sweep}-{trial}" if sweep and trial else run
