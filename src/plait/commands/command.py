"""The declaration of a verb (sub-command) of the command line: its name, help, arguments and function.

Each other file in this folder is one verb or group of verbs and ends in `COMMANDS`. It imports nothing heavy at the top, so that help and
errors appear at once; its `run` imports what it needs.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Arguments = argparse.Namespace
"""Parsed arguments by name. Besides a verb's own: `overrides` (its `name=value` settings, in order), `words` (positional arguments of a
launch script), `typed` (the command line as it was typed) and `parsers` (of every verb, by the tuple of its words)."""

Parser = argparse.ArgumentParser


class HelpFormatter(argparse.HelpFormatter):
    """argparse's formatter of help, which prints a lone % as it is: only `%(name)s` is replaced, by argparse's value of that name."""

    def _get_help_string(self, action: argparse.Action) -> str:
        """Return an action's help with such a % doubled, as argparse wants it."""
        return re.sub(r"%([%(]?)", lambda found: found[0] if found[1] else "%%", action.help or "")

    def _expand_help(self, action: argparse.Action) -> str:
        """Return an action's help with `%(default)s` and the like filled in; as it is written where it has a name that there is not."""
        try:
            return super()._expand_help(action)
        except (KeyError, TypeError, ValueError):
            return action.help or ""


def actions(parser: Parser) -> list[argparse.Action]:
    """Return the argparse actions of a parser: options (they have `option_strings`) and positional arguments."""
    return parser._actions  # argparse has no public name for it


OVERRIDES = "Settings of the configuration are given as --a.b=value or --a.b value, for example --optim.lr=3e-6 --run=runs/second."
"""The `settings` of a Command that takes a configuration."""


CALLS = {"declare": "declare(parser)", "run": "run(arguments)"}
"""How plait calls the function in each field of a Command."""


@dataclass(frozen=True)
class Command:
    """One verb. `declare` adds its arguments to its argparse parser; `run` does its work with what was parsed.

    `words`: its name, `("train",)`, or `("data", "inspect")` for a verb of a group. `help`: its line in the list of verbs. `settings`:
    text for its own help that says what `--name=value` sets; None if it takes no such settings. `settings_need`: name of the option that
    they require. `scripts`: whether `config` may be a launch script, which takes positional arguments too. `repeats`: whether a repeated
    setting makes a list. `more`: returns parsers of which only the help is used, for options that depend on something else.
    """

    words: tuple[str, ...]
    help: str
    declare: Callable[[Parser], None]
    run: Callable[[Arguments], None]
    settings: str | None = None
    settings_need: str | None = None
    scripts: bool = False
    repeats: bool = False
    more: Callable[[], Sequence[Parser]] = tuple

    @property
    def texts(self) -> dict[str, Any]:
        """Return arguments by name for argparse's `add_parser`: help (one line of a list, every % doubled), description and epilog."""
        return {"help": self.help.replace("%", "%%"), "description": self.help, "epilog": self.settings}
