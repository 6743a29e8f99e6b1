"""The command `plait runs`: list the runs below a folder. `declare` adds the arguments of `run`."""

from pathlib import Path

from plait.commands.arguments import add_json, path
from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait runs` to its parser."""
    parser.add_argument("folder", type=path, nargs="?", default=Path("runs"), metavar="DIR", help="a folder with runs (default: runs)")
    parser.add_argument("--by", metavar="FIGURE", help="a held-out figure, such as loss: the best run first")
    add_json(parser, "runs, unreadable")


def run(arguments: Arguments) -> None:
    """Print a line per run below a folder (the argument `folder`), and the settings in which runs of one family differ.

    Raises PlaitError where there is no run, and for a figure `by` that no run has.
    """
    from plait.commands.actions.runs import list_runs

    list_runs.show(arguments.folder, by=arguments.by, as_json=arguments.json)


COMMANDS = (Command(("runs",), "list the runs in a folder: how far and how good each is, what was set differently", declare, run),)
