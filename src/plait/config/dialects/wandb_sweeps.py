"""Handle Weights & Biases sweeps: refuse the file of one, with advice, and give each trial a run folder.

The file of a sweep is for W&B's agents, which start plait; it is no configuration of plait.
"""

import json
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import yaml

from plait.config.dialects import molmo_commands
from plait.config.dialects.dotted_flags import SWITCHES
from plait.config.dialects.molmo_scripts import SCRIPTS
from plait.config.nodes import Node, to_plain
from plait.config.reading import Override
from plait.errors import PlaitError

_KEYS = {"program", "parameters", "method"}
_PROGRAM, _ARGUMENTS, _SWITCHED = "${program}", "${args}", "${args_no_boolean_flags}"
_MACRO = re.compile(r"\$\{\w+\}")  # what the agent replaces; ${envvar:NAME}, a variable of the environment, stays a word
_VARIABLE = re.compile(r"[A-Za-z_]\w*=.*")


def recognise(tree: Node, plait_keys: Sequence[str]) -> bool:
    """Return whether `tree` is the file of a sweep: it has `parameters`, and `program`, `method` or both. `plait_keys` is not used."""
    return isinstance(tree.value, dict) and "parameters" in tree.value and len(_KEYS & tree.value.keys()) > 1


def translate(tree: Node, overrides: Sequence[Override], path: Path, plait_keys: Sequence[str]) -> NoReturn:
    """Raise PlaitError with the lines that make the sweep's agents run plait: the agents, not plait, read the file.

    `tree`: its content; `path`: for the message. The other arguments, which every dialect takes, are not used.
    """
    sweep = to_plain(tree)
    given = sweep.get("command") or ("${env}", "${interpreter}", _PROGRAM, _ARGUMENTS)
    words = [str(word) for word in given] if isinstance(given, list | tuple) else str(given).split()
    if any(before.rsplit("/", 1)[-1] == "plait" and word == "train" for before, word in pairwise(words)):
        raise PlaitError(f"{path} is the file of a W&B sweep, whose agents run plait: wandb sweep {path}")
    line, lost = _command(words, str(sweep.get("program") or ""))
    note = f" ({' '.join(lost)} has no equivalent and is left out)" if lost else ""
    raise PlaitError(
        f"{path} is the file of a W&B sweep, which its agents read: write command: [{', '.join(map(_quoted, line))}] in it{note}, "
        f"then wandb sweep {path}"
    )


def _command(words: Sequence[str], program: str) -> tuple[list[str], list[str]]:
    """Return (the words of a sweep's command that runs plait in place of a script, the launcher's words that it leaves out).

    `words`: the command as given; `program`: what ${program} stands for. The script's own words and flags are kept as written, torchrun's
    number of ranks becomes --nproc. Names such as MODEL stand for words that are missing.
    """
    at = next((number for number, word in enumerate(words) if word == _PROGRAM or word.endswith(".py")), len(words))
    file = program if at == len(words) or words[at] == _PROGRAM else words[at]
    script = molmo_commands.FILES.get(file.rsplit("/", 1)[-1], "CONFIG")
    before, (positional, flags) = words[:at], _words_and_flags([word for word in words[at + 1 :] if not _MACRO.fullmatch(word)])
    launcher = molmo_commands.launcher(before)
    ranks, options = molmo_commands.torchrun(before)
    outer = [
        word for word in before[:launcher] if not re.fullmatch(r"(?:.*/)?(?:env|python[\d.]*)|-m", word) and not _MACRO.fullmatch(word)
    ]
    variables = [word for word in outer if _VARIABLE.fullmatch(word)]
    line = [*(["${env}", *variables] if variables else []), *(["torchrun", *options, "-m"] if options else []), "plait", "train", script]
    line += [*positional, *SCRIPTS.get(script, ())[len(positional) :], *flags, *([] if options else ranks)]
    return [*line, _SWITCHED if _SWITCHED in words else _ARGUMENTS], [word for word in outer if word not in variables]


def _words_and_flags(after: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what follows a script in two lists: its words, and its flags, each as written and followed by its value, if that is apart."""
    words: list[str] = []
    flags: list[str] = []
    for before, word in pairwise(["", *after]):
        switch = "." not in before and before[2:] in SWITCHES and word.lower() not in ("true", "false")
        value = before.startswith("--") and "=" not in before and not switch
        (flags if value or word.startswith("-") else words).append(word)
    return words, flags


def _quoted(word: str) -> str:
    """Return `word` as it is written in a list of YAML in brackets: in quotation marks if it is not read as this text without."""
    try:
        plain = yaml.safe_load(f"[{word}]") == [word]
    except yaml.YAMLError:
        plain = False
    return word if plain else json.dumps(word, ensure_ascii=False)


def trial_folder(run: str) -> str:
    """Return the run folder of this process: `run`, or, in a trial of a sweep, the folder SWEEP-TRIAL below it.

    A trial is recognised by WANDB_SWEEP_ID and WANDB_RUN_ID, which the agent sets in the environment.
    """
    sweep, trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return f"{run.rstrip('/')}/{sweep}-{trial}" if sweep and trial else run
