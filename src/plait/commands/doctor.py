"""The command `plait doctor`: check what a run needs before it starts. `declare` adds the arguments of `run`."""

from plait.assembly.checked_configuration import open_checked
from plait.commands.arguments import add_json, path, positive, spread
from plait.commands.command import Arguments, Command, Parser
from plait.errors import PlaitError, command


def declare(parser: Parser) -> None:
    """Add the arguments of `plait doctor` to its parser."""
    parser.add_argument("config", type=path, nargs="?", help="look at its weights and data too")
    parser.add_argument("--nproc", type=positive, help="ranks on this machine, to try how they reach each other")
    add_json(parser, "findings, cures")


def run(arguments: Arguments) -> None:
    """Check versions, devices, ranks and disks, and what the configuration `config` (an argument, or None) needs; print each result.

    Raises Unwell, a PlaitError with exit code 1, if something is wrong.
    """
    from plait.commands.actions import findings

    findings.require_imports()
    try:
        resolved = open_checked(arguments.config, arguments.overrides) if arguments.config is not None else None
    except (ImportError, AttributeError) as error:  # of another version of a package, which imports but lacks what plait takes from it
        raise findings.Unwell(f"{type(error).__name__}: {error}; plait doctor without CONFIG compares the installed versions") from error
    if resolved is None and (other := [item for item in arguments.overrides if not item.startswith("run=")]):
        raise PlaitError(f"--{other[0]} is a setting of a configuration: {command('doctor', 'CONFIG', f'--{other[0]}')}")
    runs = [item.removeprefix("run=") for item in arguments.overrides] or ["."]
    folder = resolved.config.run if resolved is not None else runs[-1]
    spread(arguments)
    from plait.commands.actions import doctor
    from plait.commands.actions.publishing import access

    doctor.examine(resolved, path(str(folder)), access.findings, as_json=arguments.json)


_SETTINGS = "--run=DIR names the folder to try; with CONFIG, any setting can be given."
COMMANDS = (Command(("doctor",), "look for what would keep a run from going well, and say what to do", declare, run, _SETTINGS),)
