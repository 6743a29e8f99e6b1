"""The command `plait data index`: build indexes of tar shards and of files of records. `declare` adds the arguments of `run`."""

from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait data index` to its parser."""
    parser.add_argument("path", help="a shard, a file of records (.jsonl, .json, .csv, .tsv), a folder of shards, or a pattern")
    parser.add_argument("--beside", action="store_true", help="keep each index beside its shard, to upload or share it; else in the cache")


def run(arguments: Arguments) -> None:
    """Build the index of each file that has none or an outdated one, and print what is in each."""
    from plait.commands.actions import index_data

    index_data.index(arguments.path, beside=arguments.beside)


COMMANDS = (Command(("data", "index"), "make and check the offset index of tar shards and files of records", declare, run),)
