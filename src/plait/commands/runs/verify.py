"""The command `plait verify`: check files and claims against a passport. `declare` adds the arguments of `run`."""

from plait.commands.arguments import SPEC, add_json, path
from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait verify` to its parser."""
    parser.add_argument("what", metavar="DIR|HUB", help=f"an export, {SPEC}, or a repository of the Hub as owner/name[@tag]")
    parser.add_argument("--digest", metavar="SHA256", help="the digest that its passport must have, as it was printed elsewhere")
    parser.add_argument("--run", metavar="RUN", type=path, help="the run that it was made of: each claim is compared with what that says")
    parser.add_argument("--weights", action="store_true", help="with --run: make an export again from it, and compare each tensor")
    parser.add_argument("--data", action="store_true", help="open the data too, of the run, and compare its fingerprints")
    add_json(parser, "of, intact, faults, not_covered, not_compared, digest, claims")


def run(arguments: Arguments) -> None:
    """Check what the argument `what` names against its passport, and print the passport as a table.

    Raises Unlike, a PlaitError with exit code 1, where a file or a claim is not as it says, and PlaitError where there is no passport.
    """
    from plait.commands.actions.passport import verify

    weight_faults = None
    if arguments.weights:
        from plait.commands.actions.publishing import remade

        weight_faults = remade.weight_faults
    options = {"weight_faults": weight_faults, "with_data": arguments.data, "as_json": arguments.json}
    verify.verify(arguments.what, digest=arguments.digest, run=arguments.run, **options)


COMMANDS = (Command(("verify",), "whether files and claims of an export, a run or a repository are what its passport says", declare, run),)
