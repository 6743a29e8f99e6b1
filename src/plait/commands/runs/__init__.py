"""The verbs that look at runs: how far they are, how good, and what was set differently."""

from plait.commands.runs import compare, listing, report, stages

COMMANDS = (*stages.COMMANDS, *listing.COMMANDS, *report.COMMANDS, *compare.COMMANDS)
