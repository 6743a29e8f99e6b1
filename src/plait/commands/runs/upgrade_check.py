"""The command `plait upgrade-check`: is a run's model still the same under the libraries at hand? `declare` adds the arguments of `run`."""

from plait.commands.arguments import SPEC, add_json
from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait upgrade-check` to its parser."""
    parser.add_argument("checkpoint", help=SPEC)
    add_json(parser, "checkpoint, versions, findings, blocks, same")


def run(arguments: Arguments) -> None:
    """Build the model of a checkpoint under the libraries at hand, and compare its parameters, frozen weights and outputs with those saved.

    Raises Unwell, a PlaitError with exit code 1, where the run would not go on with the model that was saved.
    """
    from plait.commands.actions.runs import upgrade_check

    upgrade_check.show(arguments.checkpoint, as_json=arguments.json)


COMMANDS = (Command(("upgrade-check",), "whether a run's model is still the same under the libraries installed now", declare, run),)
