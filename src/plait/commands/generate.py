"""The verb `plait generate`: generate text or pictures with a checkpoint."""

from pathlib import Path

from plait.commands.arguments import add_checkpoint, add_weights
from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the verb's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--out", type=Path, help="folder for what is written")
    add_weights(parser)


def run(arguments: Arguments) -> None:
    """Let the checkpoint answer the prompt in text, or draw it to files, as its family does; show the answers or the files' names."""
    from plait.commands.actions import generate

    generate.generate(arguments.checkpoint, arguments.overrides, averaged=not arguments.raw, length=arguments.ema_length, out=arguments.out)


_SETTINGS = "The family's own options are given as --name=value; a wrong one lists them."
COMMANDS = (Command(("generate",), "answer a prompt, or draw one", declare, run, _SETTINGS),)
