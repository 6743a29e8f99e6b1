"""The command `plait train`: start a run, or continue it. `declare` adds the arguments of `run`."""

import logging

from plait.assembly.checked_configuration import open_checked
from plait.commands.arguments import add_config, positive, spread
from plait.commands.command import OVERRIDES, Arguments, Command, Parser

log = logging.getLogger(__name__)


def declare(parser: Parser) -> None:
    """Add the arguments of `plait train` to its parser."""
    add_config(parser)
    parser.add_argument("--fresh", action="store_true", help="begin a new run, and refuse where there is one already")
    parser.add_argument("--restart", action="store_true", help="start over; the old run is kept aside")
    parser.add_argument("--stage", help="run this stage only, then stop")
    parser.add_argument("--allow-inexact", action="store_true", help="go on although something differs from what was saved; it is named")
    parser.add_argument("--nproc", type=positive, help="ranks on this machine, one per GPU: short for torchrun")
    parser.add_argument("--max-restarts", type=positive, help="with --nproc: when a rank dies, start all again so often")
    parser.add_argument("--shutdown-timeout", type=positive, metavar="SECONDS", help="with --nproc: to save after a signal (default: 30)")


def run(arguments: Arguments) -> None:
    """Train the run of the configuration `config` (an argument) to its last planned step; continue it if it has a checkpoint.

    Raises PlaitError for what the user has to mend, and two subclasses of it: Paused after a signal such as SIGTERM, with everything saved,
    and Stopped if a safety check fails.
    """
    resolved = open_checked(arguments.config, arguments.overrides, words=arguments.words, compared=True)
    spread(arguments, arguments.max_restarts, arguments.shutdown_timeout)
    for line in resolved.warnings:
        log.warning(line)
    from plait.commands.actions.publishing.beside import pushed
    from plait.commands.actions.publishing.restore import from_mirror
    from plait.commands.actions.report.refresh import refreshed
    from plait.training import run as training
    from plait.training.run_context import TrainOptions

    restart = arguments.restart or "restart" in resolved.train_options
    fresh = arguments.fresh or "fresh" in resolved.train_options
    from_mirror(resolved, restart=restart, fresh=fresh)
    with pushed(resolved) as pushes, refreshed(resolved) as pages:
        options = TrainOptions(
            restart=restart,
            allow_inexact=arguments.allow_inexact,
            only=arguments.stage,
            fresh=fresh,
            hooks=(*pages, *pushes),
        )
        training.train(resolved, options)


COMMANDS = (Command(("train",), "start a run, or continue it: the same command does both", declare, run, OVERRIDES, scripts=True),)
