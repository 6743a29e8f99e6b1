"""The command `plait prove`: train with random kills and without, and compare. `declare` adds the arguments of `run`."""

from plait.assembly.checked_configuration import open_checked
from plait.commands.arguments import SPEC, path, positive
from plait.commands.command import OVERRIDES, Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait prove` to its parser."""
    parser.add_argument("config", type=path, help=f"a .yaml or .json file, or of a run: {SPEC}")
    parser.add_argument("--kills", type=int, default=6, help="processes ended on the way; each is one more generation")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each generation, under torchrun")
    parser.add_argument("--steps", type=positive, default=8, help="at most so many per stage")
    parser.add_argument("--warm", action="store_true", help="fork the generations from one process that has imported everything: faster")
    parser.add_argument("--out", type=path, help="keep the two runs here (default: a temporary folder)")


def run(arguments: Arguments) -> None:
    """Train the configuration `config` (an argument), shortened, with and without kills, and compare the two runs bit by bit.

    `config` may also name a run, in which the verdict is kept then. Raises Diverged, a PlaitError, if the runs differ.
    """
    config = arguments.config
    if not arguments.words and not config.is_file() and not (config / "config.yaml").is_file():
        from plait.assembly import checkpoint_specs

        config = checkpoint_specs.run_named(str(config)) or config
    resolved = open_checked(config, arguments.overrides, words=arguments.words)
    from plait.commands.actions.passport import proofs
    from plait.commands.prove import prove

    prove.prove(
        resolved,
        run=proofs.run_of(config, resolved),
        kills=arguments.kills,
        seed=arguments.seed,
        ranks=arguments.ranks,
        steps=arguments.steps,
        warm=arguments.warm,
        out=arguments.out,
    )


COMMANDS = (
    Command(
        ("prove",),
        "kill and resume this configuration at random: bit-exact, or the first divergence",
        declare,
        run,
        OVERRIDES,
        scripts=True,
    ),
)
