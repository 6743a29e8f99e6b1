"""The verb `plait config`: print the resolved configuration, with the origin of each value."""

import logging
from pathlib import Path

from plait.assembly.configuration import open_checked
from plait.commands.arguments import CONFIG
from plait.commands.command import OVERRIDES, Arguments, Command, Parser
from plait.config.show import render

log = logging.getLogger(__name__)


def declare(parser: Parser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("config", type=Path, help=CONFIG)


def run(arguments: Arguments) -> None:
    """Print every value with its origin."""
    log.info(render(open_checked(arguments.config, arguments.overrides, words=arguments.words)))


COMMANDS = (
    Command(("config",), "print the resolved configuration and where each value comes from", declare, run, OVERRIDES, scripts=True),
)
