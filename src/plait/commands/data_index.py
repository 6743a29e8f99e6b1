"""The command `plait data index`: build index files for random access to tar shards. `declare` adds the arguments of `run`."""

from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait data index` to its parser."""
    parser.add_argument("path", help="a shard, folder or pattern")
    parser.add_argument("--beside", action="store_true", help="keep each index beside its shard, to upload or share it; else in the cache")


def run(arguments: Arguments) -> None:
    """Build the index of each shard that has none or an outdated one, and print what is in each shard."""
    from plait.commands.actions import index_data

    index_data.index(arguments.path, beside=arguments.beside)


COMMANDS = (Command(("data", "index"), "make and check the offset index of tar shards", declare, run),)
