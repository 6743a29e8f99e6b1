"""The command `plait generate`: generate text or pictures with a checkpoint. `declare` adds the arguments of `run`."""

from plait.commands.arguments import add_checkpoint, add_weights, path
from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait generate` to its parser."""
    add_checkpoint(parser)
    parser.add_argument("--out", type=path, help="folder for what is written")
    add_weights(parser)


def run(arguments: Arguments) -> None:
    """Generate text or pictures with the model of the argument `checkpoint`; print the answers, or the names of the files written.

    Which it is, and the options `overrides` (such as "prompt=a cat"), depend on the model's family (kind). Raises PlaitError
    for an option that the family does not have, and if there is no such checkpoint.
    """
    from plait.commands.actions import generate

    generate.generate(arguments.checkpoint, arguments.overrides, averaged=not arguments.raw, length=arguments.ema_length, out=arguments.out)


_SETTINGS = "The family's own options are given as --name=value; a wrong one lists them."
COMMANDS = (Command(("generate",), "answer a prompt, or draw one", declare, run, _SETTINGS, repeats=True),)
