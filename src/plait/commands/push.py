"""The command `plait push`: push a checkpoint to the Hub. `declare` adds the arguments of `run`."""

from plait.commands.arguments import SPEC
from plait.commands.command import Arguments, Command, Parser
from plait.errors import PlaitError


def declare(parser: Parser) -> None:
    """Add the arguments of `plait push` to its parser."""
    parser.add_argument("checkpoint", metavar="RUN", help=f"{SPEC}; what waits in the run's queue is sent first")
    parser.add_argument("repo", metavar="REPO", nargs="?", help="repository of the Hub, as owner/name; without it hub.repo of the run")
    parser.add_argument("--to", metavar="LAYOUT", help="push an export in this layout, such as hf; without it the checkpoint, for from:")
    parser.add_argument("--public", action="store_true", help="a repository that is made is public")
    parser.add_argument("--drop", action="store_true", help="push nothing: take what waits out of the queue, with REPO what is for that")
    parser.add_argument("--replace", action="store_true", help="push even where the repository holds another model")


def run(arguments: Arguments) -> None:
    """Push the weights of `checkpoint` (RUN, RUN@STEP, ...), with a card, to the repository `repo`; all are arguments.

    Raises PlaitError where there is no such checkpoint or repository, for what the Hub does not take, and for options beside --drop.
    """
    from plait.commands.actions.publishing import push

    if arguments.drop:
        if arguments.to or arguments.public or arguments.replace:
            raise PlaitError("--drop pushes nothing: leave --to, --public and --replace out")
        push.drop(arguments.checkpoint, arguments.repo)
        return
    options = push.PushOptions(arguments.repo, arguments.to, arguments.public, arguments.replace)
    push.push(arguments.checkpoint, options)


COMMANDS = (Command(("push",), "push a checkpoint to the Hub, with a model card", declare, run),)
