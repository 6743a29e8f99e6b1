"""The verb `plait data index`: make the offset index of tar shards."""

from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("path", help="a shard, folder or pattern")


def run(arguments: Arguments) -> None:
    """Make and check the index of every shard."""
    from plait.commands.actions import index_data

    index_data.index(arguments.path)


COMMANDS = (Command(("data", "index"), "make and check the offset index of tar shards", declare, run),)
