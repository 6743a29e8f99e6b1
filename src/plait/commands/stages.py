"""The verb `plait stages`: list the stages of a run and how far each is."""

from pathlib import Path

from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("run", type=Path, help="a run directory")


def run(arguments: Arguments) -> None:
    """Print a block per stage."""
    from plait.commands.actions import stages

    stages.show(arguments.run)


COMMANDS = (Command(("stages",), "how far each stage of a run is, why it ended, what it trains, how good it became", declare, run),)
