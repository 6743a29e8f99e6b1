"""The command `plait export`: write a checkpoint as a directory that other software loads. `declare` adds the arguments of `run`."""

from plait.commands.arguments import add_checkpoint, add_weights, path
from plait.commands.command import Arguments, Command, Parser
from plait.config.sections.adapters import HELP, LAYOUT
from plait.families import registry

LIBRARIES = ("transformers", "diffusers", "peft")
"""What `--check` loads an export with."""


def declare(parser: Parser) -> None:
    """Add the arguments of `plait export` to its parser; help lists the layouts of all families.

    Raises PlaitError for a family that cannot be loaded.
    """
    add_checkpoint(parser)
    parser.add_argument("out", metavar="DIR", type=path, help="the new directory")
    layouts = [(family, name, meaning) for family, section in registry.model_configs() for name, meaning in section.layouts.items()]
    known = "; ".join(f"{name}, of {family}: {meaning}" for family, name, meaning in layouts)
    known += f"; {LAYOUT}, of runs with adapters: {HELP}"
    parser.add_argument("--to", metavar="LAYOUT", help=f"one of those that the family has (default: its first). {known}".replace("%", "%%"))
    add_weights(parser)
    parser.add_argument(
        "--check",
        choices=LIBRARIES,
        help="load it in a new process and compare weights, logits, answers or pictures with the run's; DIR appears only where they are "
        "equal, and one that exists is only compared",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="with --check, of a layout that is loaded by the code in it: run that"
    )


def run(arguments: Arguments) -> None:
    """Write the weights of `checkpoint` (RUN, RUN@STEP, ...) into the new directory `out`, in the layout `to`, such as hf.

    All three are arguments; `raw`: the last weights, not their average; `ema_length`: an average of this length; `check`: compare the
    export with the run, as a library loads it. Raises PlaitError if the directory exists, there is no such checkpoint, or its model family
    has no such layout, and for an export that is not the run's model.
    """
    from plait.commands.actions import export

    export.export(
        arguments.checkpoint,
        arguments.out,
        arguments.to,
        averaged=not arguments.raw,
        length=arguments.ema_length,
        library=arguments.check,
        trust=arguments.trust_remote_code,
    )


COMMANDS = (Command(("export",), "write a checkpoint as a directory that other software loads", declare, run),)
