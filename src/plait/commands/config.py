"""The command `plait config`: print the whole configuration, with the origin of each value. `declare` adds the arguments of `run`."""

import logging

from plait.assembly.checked_configuration import open_checked
from plait.commands.arguments import add_config, add_json
from plait.commands.command import OVERRIDES, Arguments, Command, Parser
from plait.config.show import as_dict, render
from plait.engine.monitoring.json_output import show_json

log = logging.getLogger(__name__)


def declare(parser: Parser) -> None:
    """Add the arguments of `plait config` to its parser."""
    add_config(parser)
    add_json(parser, "config, stages, origins, warnings")


def run(arguments: Arguments) -> None:
    """Print every setting of the configuration `config` (an argument) with its value and its origin, such as file and line.

    With `json`, print all of it as one JSON object. Raises PlaitError for any fault in the configuration.
    """
    resolved = open_checked(arguments.config, arguments.overrides, words=arguments.words)
    if arguments.json:
        show_json(as_dict(resolved))
    else:
        log.info(render(resolved))


COMMANDS = (
    Command(("config",), "print the resolved configuration and where each value comes from", declare, run, OVERRIDES, scripts=True),
)
