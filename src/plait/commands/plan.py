"""The command `plait plan`: say what a run will take and what is wrong with it, before it starts. `declare` adds the arguments of `run`."""

from plait.assembly.checked_configuration import open_checked
from plait.commands.arguments import add_config, add_json, positive
from plait.commands.command import OVERRIDES, Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait plan` to its parser."""
    add_config(parser)
    parser.add_argument("--gpu", help="plan for GPUs of this kind, such as H100; without it, for this machine")
    parser.add_argument("--ranks", type=positive, default=1, help="how many GPUs, or ranks on this machine (default: 1)")
    parser.add_argument("--stage", help="this stage only")
    parser.add_argument("--search", action="store_true", help="look for the fastest strategy, micro-batch and checkpointing; with --gpu")
    parser.add_argument("--probe", action="store_true", help="measure the pace by a few real steps here; needs weights and data")
    add_json(parser, "run, family, ranks, gpu, stages, needs, findings")


def run(arguments: Arguments) -> None:
    """Print what each stage of the configuration `config` (an argument) takes: parameters, memory, steps, hours, disk; then findings.

    Nothing is trained but with `--probe`, and no weights or data are downloaded but for that. Raises PlaitError for a fault of the
    configuration, and Unsound, one with exit code 1, after printing, if there are errors.
    """
    resolved = open_checked(arguments.config, arguments.overrides, words=arguments.words)
    from plait.commands.actions import plan

    asked = plan.Asked(arguments.gpu, arguments.ranks, arguments.stage, search=arguments.search, probe=arguments.probe)
    plan.show(resolved, asked, as_json=arguments.json)


COMMANDS = (Command(("plan",), "what a run will take and what is wrong with it, before it starts", declare, run, OVERRIDES, scripts=True),)
