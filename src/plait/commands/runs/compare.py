"""The command `plait compare`: show two or more runs side by side. `declare` adds the arguments of `run`."""

from plait.commands.arguments import add_json, path
from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait compare` to its parser."""
    parser.add_argument("first", type=path, metavar="RUN", help="a run directory")
    parser.add_argument("others", type=path, nargs="+", metavar="RUN", help="others")
    add_json(parser, "runs, settings, stages, verdict")


def run(arguments: Arguments) -> None:
    """Print a table of the runs `first` and `others` (arguments): settings that differ, and the steps, held-out figures and time of stages.

    Raises PlaitError for a path that is no run directory, or is given twice.
    """
    from plait.commands.actions import compare

    compare.show([arguments.first, *arguments.others], as_json=arguments.json)


COMMANDS = (Command(("compare",), "two or more runs side by side: what was set differently, and how good each became", declare, run),)
