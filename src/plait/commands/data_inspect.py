"""The command `plait data inspect`: draw samples as the model sees them, as PNG and HTML. `declare` adds the arguments of `run`."""

from plait.assembly.configuration import open_checked
from plait.commands.arguments import add_config, path, positive
from plait.commands.command import OVERRIDES, Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait data inspect` to its parser."""
    add_config(parser)
    parser.add_argument("--samples", type=positive, default=12)
    parser.add_argument("--out", type=path, help="new folder for the picture and the page (default: inspect, then inspect-2, ...)")
    parser.add_argument("--split", choices=("train", "validation"), default="train")


def run(arguments: Arguments) -> None:
    """Draw the first samples that the run would train on, or evaluate on, into the folder `--out`."""
    resolved = open_checked(arguments.config, arguments.overrides, words=arguments.words)
    from plait.commands.actions import inspect_data

    inspect_data.draw(resolved, arguments.split, arguments.samples, arguments.out)


COMMANDS = (
    Command(("data", "inspect"), "draw what the model sees: pixels, prompt, supervised text", declare, run, OVERRIDES, scripts=True),
)
