"""The verb `plait data index`: make the offset index of tar shards, by which samples are read at random."""

from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait data index` to its parser."""
    parser.add_argument("path", help="a shard, folder or pattern")
    parser.add_argument("--beside", action="store_true", help="keep each index beside its shard, to upload or share it; else in the cache")


def run(arguments: Arguments) -> None:
    """Make the missing indices of the shards, check all of them, and print what is in each shard."""
    from plait.commands.actions import index_data

    index_data.index(arguments.path, beside=arguments.beside)


COMMANDS = (Command(("data", "index"), "make and check the offset index of tar shards", declare, run),)
