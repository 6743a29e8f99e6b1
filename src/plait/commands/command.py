"""The declaration of a verb (sub-command) of the command line: its words, help, arguments and function.

Each other file in this folder is one verb and ends in `COMMANDS`. It imports nothing heavy at the top, so that help and errors appear at
once; its `run` imports what it needs.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

Arguments = argparse.Namespace
"""Parsed arguments by name. Besides a verb's own: `overrides` (its `name=value` settings, in order), `words` (those of a launch script),
`typed` (the whole command line as it was typed) and `parsers` (of every verb by its words)."""

Parser = argparse.ArgumentParser


def actions(parser: Parser) -> list[argparse.Action]:
    """Return what a verb declares: its options (they have `option_strings`) and positional arguments."""
    return parser._actions  # argparse has no public name for it


OVERRIDES = "Settings of the configuration are given as --a.b=value or --a.b value, for example --optim.lr=3e-6 --run=runs/second."


CALLS = {"declare": "declare(parser)", "run": "run(arguments)"}
"""How the functions of a Command are called."""


@dataclass(frozen=True)
class Command:
    """One verb. `declare` adds its arguments to its argparse parser; `run` does its work with what was parsed.

    `words`: `("train",)`, or `("data", "inspect")` for a verb of a group. `settings`: what `--name=value` means to the verb, shown under
    its help; None where it takes none. `settings_need`: an option, such as "base", without which it takes none. `scripts`: whether its
    `config` may be a launch script, which takes words besides flags. `repeats`: whether a setting may be given several times, as a list.
    """

    words: tuple[str, ...]
    help: str
    declare: Callable[[Parser], None]
    run: Callable[[Arguments], None]
    settings: str | None = None
    settings_need: str | None = None
    scripts: bool = False
    repeats: bool = False
