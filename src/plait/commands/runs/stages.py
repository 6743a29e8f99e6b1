"""The command `plait stages`: list the stages (parts with settings of their own) of a run. `declare` adds the arguments of `run`."""

from plait.commands.arguments import add_json, path
from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait stages` to its parser."""
    parser.add_argument("run", type=path, help="a run directory")
    add_json(parser, "run, stages, ledger, passed_over")


def run(arguments: Arguments) -> None:
    """Print for each stage of a run how far it is, what it trains, its best evaluation results, and what it forgot.

    The run's directory is the argument `run`; with `json`, all is printed as one JSON object. Raises PlaitError for a path that is no run
    directory, and, after printing, if no checkpoint of several is intact.
    """
    from plait.commands.actions import stages

    stages.show(arguments.run, as_json=arguments.json)


COMMANDS = (Command(("stages",), "how far each stage of a run is, why it ended, what it trains, what it gained and forgot", declare, run),)
