"""The command `plait generate`: generate text or pictures with a checkpoint. `declare` adds the arguments of `run`."""

from argparse import SUPPRESS
from typing import Any

from plait.commands.arguments import EXPORT, add_checkpoint, add_weights, path
from plait.commands.command import Arguments, Command, HelpFormatter, Parser
from plait.config.messages import flag
from plait.families import offers, registry


def declare(parser: Parser) -> None:
    """Add the arguments of `plait generate` to its parser."""
    add_checkpoint(parser, EXPORT)
    parser.add_argument("--out", type=path, help="folder for what is written")
    add_weights(parser)


def run(arguments: Arguments) -> None:
    """Generate text or pictures with the model of the argument `checkpoint`; print the answers, or the names of the files written.

    Which it is, and the options `overrides` (such as "prompt=a cat"), depend on the model's family (kind). Raises PlaitError
    for an option that the family does not have, and if there is no such checkpoint.
    """
    from plait.commands.actions import generate

    generate.generate(arguments.checkpoint, arguments.overrides, averaged=not arguments.raw, length=arguments.ema_length, out=arguments.out)


def family_options() -> list[Parser]:
    """Return a parser for each family that generates something, with its own options, for help; imports no torch.

    Left out are families of other packages that have no options.py.
    """
    parsers = []
    for family, _ in registry.model_configs():
        if options := offers.generate_options(family):
            parsers.append(Parser(usage=SUPPRESS, add_help=False, formatter_class=HelpFormatter))
            group = parsers[-1].add_argument_group(f"options of family {family}")
            for name, field in options.model_fields.items():
                default = "" if field.default in (None, "", [], [""]) or field.is_required() else f" (default: {_shown(field.default)})"
                group.add_argument(flag(name), metavar=name.upper(), help=f"{field.description or ''}{default}".strip())
    return parsers


def _shown(default: Any) -> str:
    """Return a default as it is typed."""
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


_SETTINGS = "The options of the family of the checkpoint's model are given likewise, as --name=value:"
COMMANDS = (Command(("generate",), "answer a prompt, or draw one", declare, run, _SETTINGS, repeats=True, more=family_options),)
