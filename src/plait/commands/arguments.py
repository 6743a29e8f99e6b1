"""Command-line arguments that several verbs (sub-commands such as `train` and `eval`) share."""

import argparse
from pathlib import Path

from plait.commands.command import Arguments, Parser
from plait.config.dialects import table
from plait.config.sections.places import on_disk
from plait.errors import PlaitError
from plait.files import expanded
from plait.training import launch

SPEC = "RUN, RUN@STEP, RUN/STAGE, RUN/STAGE@best or a step folder"
"""The ways to name a checkpoint, for help and messages."""
EXPORT = "; or the folder of an export"
"""What verbs that read an export too add to them."""


def positive(text: str) -> int:
    """Parse an option that is a whole number from 1. Raises argparse.ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def path(text: str) -> Path:
    """Parse an option that is a path. A leading ~ becomes the home directory, because a shell does not replace it in --out=~/x.

    Raises argparse.ArgumentTypeError for an address such as s3://bucket/folder.
    """
    try:
        return expanded(on_disk(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def config_path(text: str) -> Path:
    """Return the path of a configuration that an argument names. Raises PlaitError for an address."""
    try:
        return path(text)
    except argparse.ArgumentTypeError as error:
        raise PlaitError(str(error)) from None


def add_config(parser: Parser) -> None:
    """Add `config`, the positional argument of verbs that begin with a configuration, to a verb's parser.

    Its help lists the launch scripts of other trainers that plait reads, those of all installed dialects (formats of other trainers).
    """
    scripts = ", ".join(" ".join([name, *words]) for name, words in table.scripts().items())
    text = f"a .yaml or .json file, a run directory, or a launch script with its words: {scripts}"
    parser.add_argument("config", type=path, help=text.replace("%", "%%"))


def add_checkpoint(parser: Parser, also: str = "") -> None:
    """Add the positional argument `checkpoint` (RUN, RUN@STEP, ...) to the parser of a verb that reads one checkpoint, or `also` more."""
    parser.add_argument("checkpoint", help=f"{SPEC}{also}")


def add_weights(parser: Parser) -> None:
    """Add the options `--raw` (use the last weights) and `--ema-length` (use an average of this length) to a verb's parser.

    They exclude each other; without either the verb uses the EMA weights.
    """
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--raw", action="store_true", help="use the last weights, not their average")
    which.add_argument("--ema-length", type=float, metavar="SHARE", help="an average of this length, made of what optim.ema.post_hoc kept")


def add_json(parser: Parser, keys: str) -> None:
    """Add the switch `--json` to a verb's parser. `keys`: the names in the object that it prints, for the help: "config, stages"."""
    parser.add_argument("--json", action="store_true", help=f"as one JSON object: {keys}")


def spread(arguments: Arguments, max_restarts: int | None = None, shutdown_timeout_s: int | None = None) -> None:
    """Replace this process by torchrun with `--nproc` ranks of the same command; without `--nproc` do nothing.

    `arguments`: the parsed command line. `max_restarts` (how often all ranks are restarted when one dies) and `shutdown_timeout_s` (seconds
    to save after a signal) go to torchrun. Raises PlaitError if one is given without `--nproc`, and for `--nproc` in a process that
    torchrun started.
    """
    if arguments.nproc is not None:
        launch.exec_torchrun(arguments.nproc, max_restarts or 0, shutdown_timeout_s, arguments.typed)
    elif max_restarts or shutdown_timeout_s:
        raise PlaitError("--max-restarts and --shutdown-timeout belong to --nproc, or to torchrun itself; add --nproc=N")
