"""The verb `plait hello`."""

import logging

from plait.commands.command import Arguments, Command, Parser

log = logging.getLogger(__name__)


def declare(parser: Parser) -> None:
    """Add the name to greet."""
    parser.add_argument("--name", default="world", help="whom to greet")


def run(arguments: Arguments) -> None:
    """Greet."""
    log.info(f"hello, {arguments.name}")


COMMANDS = (Command(("hello",), "greet", declare, run),)
