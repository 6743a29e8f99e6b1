"""The command `plait why`: say where the time of a run's steps goes, and what makes them slow. `declare` adds the arguments of `run`."""

from plait.commands.arguments import add_json, path, positive
from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait why` to its parser."""
    parser.add_argument("run", type=path, help="a run directory; the run may be training")
    parser.add_argument("--stage", help="this stage; without it the one that has trained last")
    parser.add_argument("--profile", type=positive, metavar="N", help="train N steps again, in a folder that is removed, and write a trace")
    add_json(parser, "run, stage, seconds_per_step, window, causes, trace")


def run(arguments: Arguments) -> None:
    """Print where the time of a step goes, and the known causes of slow steps with the overrides that cure them.

    The costliest comes first. With `profile`, some steps are trained again to write a trace of torch.profiler. Raises
    PlaitError for a path that is no run directory, and for a run that has recorded nothing.
    """
    from plait.commands.actions.runs import why

    why.show(arguments.run, arguments.stage, profile=arguments.profile, as_json=arguments.json)


COMMANDS = (Command(("why",), "where the time of a step goes, and what makes it slow", declare, run),)
