"""`plait prove`: a run that is killed and continued, compared with one that was not."""

from plait.commands.prove.command import COMMANDS

__all__ = ["COMMANDS"]
