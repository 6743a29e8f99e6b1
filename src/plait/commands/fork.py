"""The command `plait fork`: make a new run that continues from a checkpoint of another one. `declare` adds the arguments of `run`."""

from plait.commands.arguments import path
from plait.commands.command import OVERRIDES, Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait fork` to its parser."""
    parser.add_argument("start", metavar="RUN@STEP", help="or RUN, RUN/STAGE, RUN/STAGE@best, a step folder")
    parser.add_argument("new", type=path, metavar="NEW", help="folder of the new run; `plait train NEW` continues it")


def run(arguments: Arguments) -> None:
    """Write the directory `new` of a run: the checkpoint `start`, and its run's settings changed by `overrides`; all are arguments.

    Raises PlaitError if the directory exists, or if training could not continue it with these settings.
    """
    from plait.commands.actions import fork

    fork.fork(arguments.start, arguments.new, arguments.overrides)


COMMANDS = (Command(("fork",), "a new run that goes on from a moment of another one", declare, run, OVERRIDES),)
