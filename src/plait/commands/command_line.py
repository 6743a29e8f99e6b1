"""Parse command lines into the arguments of one verb (sub-command such as `train`), its options and its settings `--name=value`.

Each verb has a file in this folder, which declares its options; verbs.py finds it.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from plait import __version__
from plait.commands import verbs
from plait.commands.command import Arguments, Command, HelpFormatter, actions
from plait.config import secrets
from plait.config.dialects import table as dialects
from plait.engine.monitoring import reporter
from plait.errors import PlaitError


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises PlaitError, one line, instead of printing the usage and exiting."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """Raise PlaitError with `message`, argparse's; of an unknown choice it names the nearest known one, or all of them."""
        if choice := re.fullmatch(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            known = re.findall(r"[\w-]+", choice[3])
            near = difflib.get_close_matches(choice[2], known, 1)
            message = f"{choice[1]} {choice[2]!r} is unknown: " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")
        raise PlaitError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        """Return the help, with that of the options which the verb's `more` lists at its end."""
        command: Command | None = self.get_default("command")
        return "\n".join([super().format_help(), *(parser.format_help() for parser in (command.more() if command is not None else ()))])

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help, usage or version; argparse itself would pass over an output that cannot be written to."""
        reporter.write(file or sys.stderr, message.removesuffix("\n"), whole=True)  # argparse has wrapped it


def parse(arguments: Sequence[str]) -> Arguments:
    """Parse a command line. Raises PlaitError for an argument that is no option of the command and no setting, or that is given twice.

    Returns a namespace: the command's options, `command`, `overrides` (settings, such as "optim.lr=3e-6"), `typed` (all arguments as
    given), `words` (positional arguments of a launch script) and `parsers` ({words of a command: its parser}).
    """
    arguments = dialects.rewritten(arguments)
    parser, own = build_parsers()
    chosen = own.get(tuple(arguments[:2])) or own.get(tuple(arguments[:1]))
    given = _joined(arguments, chosen) if chosen is not None else arguments
    for item in given:
        secrets.refuse_argument(item)
    if chosen is not None:
        _refuse_empty(given, chosen)
    spaced = (
        _settings_with_spaces(given, chosen) if chosen is not None and _takes_settings(chosen.get_default("command"), arguments) else []
    )
    parsed, rest = parser.parse_known_args([item for item in given if item not in spaced])
    rest = sorted([*spaced, *rest], key=given.index) if spaced else rest
    parsed.typed, parsed.words, parsed.parsers = list(arguments), [], own
    command: Command = parsed.command
    if command.scripts and dialects.is_script(str(parsed.config)):  # it has words, and a switch of its own stands for --switch=true
        parsed.words = [item for item in rest if not item.startswith("-")]
        rest = [item if "=" in item else f"{item}=true" for item in rest if item.startswith("--")]
    if rest and not _takes_settings(command, arguments):
        parser.error(f"{rest[0]!r} is not an option of this command")
    for item in rest:
        if not (item.startswith("--") and "=" in item):
            parser.error(f"{item!r} is not understood: a setting is written --name=value or --name value, for example --optim.lr=3e-6")
    parsed.overrides = [item.removeprefix("--") for item in rest]
    assert chosen is not None
    names = [] if command.repeats else [item.partition("=")[0] for item in rest]
    once = {name for name, action in _options(chosen).items() if not isinstance(action, argparse._AppendAction)}
    names += [item.partition("=")[0] for item in _before_dashes(arguments) if item.partition("=")[0] in once]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        parser.error(f"{twice} is given twice: give it once")
    return parsed


def _takes_settings(command: Command, arguments: Sequence[str]) -> bool:
    """Return whether `--name=value` means a setting of the configuration in this command line."""
    needed = command.settings_need
    given = needed is None or f"--{needed}" in [item.partition("=")[0] for item in arguments]
    return command.settings is not None and given


def _options(parser: Parser) -> dict[str, argparse.Action]:
    """Return a command's own options by name, such as `--nproc`."""
    return {name: action for action in actions(parser) for name in action.option_strings}


def _refuse_empty(given: Sequence[str], parser: Parser) -> None:
    """Raise PlaitError for an empty argument or option: as a path it would be the folder at hand."""
    for before, item in zip(["", *given], _before_dashes(given), strict=False):
        name, equals, value = item.partition("=")
        if not item.strip() or (equals and not value.strip() and name in _options(parser)):
            parser.error(
                f"{name.strip() or (before if before in _options(parser) else 'an argument')} is empty: is a variable of the shell unset?"
            )


def _settings_with_spaces(given: Sequence[str], parser: Parser) -> list[str]:
    """Return the settings, `--name=value`, with a space in them, each of which argparse would take for an argument of the command."""
    settings = [item for item in _before_dashes(given) if item.startswith("--") and "=" in item]
    return [item for item in settings if " " in item and item.partition("=")[0] not in _options(parser)]


def _before_dashes(arguments: Sequence[str]) -> Sequence[str]:
    """Return the arguments before a lone `--`, after which nothing is an option."""
    return arguments[: [*arguments, "--"].index("--")]


def _joined(arguments: Sequence[str], parser: Parser) -> list[str]:
    """Write settings `--name value` as `--name=value`, or argparse would take the value for an argument of the command.

    Beside a launch script its switches, which may have no value, are left as they are.
    """
    command: Command = parser.get_default("command")
    script = next((item for item in arguments if command.scripts and dialects.is_script(item)), None)
    takes_settings = _takes_settings(command, arguments)
    joined: list[str] = []
    for item in _before_dashes(arguments):
        before = joined[-1] if joined else ""
        is_value = not item.startswith("-") or item[1:2].isdigit() or item[1:2] == "."
        is_setting = before.startswith("--") and "=" not in before and before not in _options(parser)
        own = script is None or dialects.takes_value(script, before.removeprefix("--"), item)
        if takes_settings and is_setting and is_value and own:
            joined[-1] = f"{before}={item}"
        else:
            joined.append(item)
    return [*joined, *arguments[len(_before_dashes(arguments)) :]]


def build_parsers() -> tuple[Parser, dict[tuple[str, ...], Parser]]:
    """Return the parser of the whole command line, and the parser of each command by its words: {("ckpt", "verify"): parser}.

    Commands of other packages are included. Raises PlaitError for one that cannot be loaded or added.
    """
    parser = Parser("plait", description="Train multimodal models in stages; stop anywhere, continue exactly.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"plait {__version__}")
    verb = parser.add_subparsers(metavar="VERB", required=True)
    groups: dict[str, argparse._SubParsersAction[Parser]] = {}
    parsers: dict[tuple[str, ...], Parser] = {}
    for command in verbs.every():
        *group, name = command.words
        if group and group[0] not in groups:
            made = verb.add_parser(group[0], help=verbs.GROUPS.get(group[0], ""))
            groups[group[0]] = made.add_subparsers(metavar="WHAT", required=True)
        place = groups[group[0]] if group else verb
        own = place.add_parser(name, **command.texts, allow_abbrev=False)
        command.declare(own)
        own.set_defaults(command=command)
        parsers[command.words] = own
    return parser, parsers
