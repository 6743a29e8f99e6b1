"""Find the verbs (sub-commands such as `train`) of plait and of other packages.

Each file of this folder with COMMANDS is one, and each entry point. A file without COMMANDS is no verb. Importing this module imports the
files of all verbs, none of which imports torch.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from types import ModuleType

from plait import commands
from plait.commands.command import CALLS, Command, HelpFormatter, Parser
from plait.config import plugins
from plait.errors import PlaitError

GROUP = "plait.commands"
"""Entry points of this group name a module that has COMMANDS, such as `hello = words_family.hello`."""
ORDER = (
    "recipes",
    "train",
    "config",
    "plan",
    "prove",
    "eval",
    "export",
    "push",
    "generate",
    "stages",
    "runs",
    "report",
    "why",
    "compare",
    "upgrade-check",
    "verify",
    "fork",
    "ckpt",
    "data",
    "doctor",
    "completion",
)
"""The order in which help lists the first words of verbs; others follow in alphabetical order, and those of other packages last."""
GROUPS = {"ckpt": "look into checkpoints", "data": "look into data"}
"""The help of a first word that several verbs share, such as `data` of `plait data inspect`."""


def shipped() -> list[Command]:
    """Import the files of the folder `commands` and return the verbs that they declare, in the order of help."""
    files = [importlib.import_module(f"{commands.__name__}.{file.name}") for file in pkgutil.iter_modules(commands.__path__)]
    found: list[Command] = [command for file in files for command in vars(file).get("COMMANDS", ())]
    return sorted(found, key=lambda command: ORDER.index(command.words[0]) if command.words[0] in ORDER else len(ORDER))


def every() -> list[Command]:
    """Return all verbs, those of other packages last. Raises PlaitError for one of another package that cannot be loaded or added."""
    verbs = shipped()
    owners = ["plait itself"] * len(verbs)
    for entry in plugins.offered(GROUP):
        for command in _commands(entry):
            for verb, owner in zip(verbs, owners, strict=True):
                if taken := _taken(command.words, verb.words):
                    raise plugins.fault(entry, f"cannot be added: {taken}, of {owner}")
            verbs.append(command)
            owners.append(plugins.package_of(entry))
    return verbs


def _commands(entry: EntryPoint) -> Iterator[Command]:
    """Import another package's module of verbs and check each one. Raises PlaitError for what is wrong with it."""
    given = vars(plugins.load(entry, ModuleType)).get("COMMANDS")
    if not (isinstance(given, tuple) and given and all(isinstance(command, Command) for command in given)):
        raise plugins.fault(entry, f"cannot be added: {entry.value} has no COMMANDS, a tuple of {Command.__module__}.Command")
    for command in given:
        faults = plugins.faults(command, CALLS) or list(_word_faults(command)) or list(_parser_faults(command))
        if faults:
            raise plugins.fault(entry, f"({entry.value}) does not fulfil the contract of {Command.__module__}.Command: {'; '.join(faults)}")
        yield command


def _word_faults(command: Command) -> Iterator[str]:
    if not (len(command.words) in (1, 2) and all(re.fullmatch("[a-z0-9][a-z0-9_-]*", word) for word in command.words)):
        yield f"words is {command.words!r}: it should be one or two of lower-case letters, digits, - and _, such as ('data', 'inspect')"


def _parser_faults(command: Command) -> Iterator[str]:
    """Declare the verb's arguments to a parser that is thrown away, and format all its help."""
    parser = Parser(prog="plait", formatter_class=HelpFormatter)
    try:
        own = parser.add_subparsers().add_parser(command.words[-1], formatter_class=HelpFormatter, **command.texts)
        command.declare(own)
        own.format_help()
        parser.format_help()
    except PlaitError:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, it is that package's code that must be mended
        yield f"its arguments and help cannot be declared: {plugins.one_line(error)}"


def _taken(words: tuple[str, ...], other: tuple[str, ...]) -> str | None:
    """Return why `words` cannot be added to the verb of the words `other`, or None."""
    if words == other:
        return f"there is `plait {' '.join(words)}` already"
    if words == other[:1]:
        return f"`plait {words[0]}` is a group of verbs, such as `plait {' '.join(other)}`"
    if words[:1] == other:
        return f"`plait {other[0]}` is a verb, so there is no `plait {' '.join(words)}`"
    return None
