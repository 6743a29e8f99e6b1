"""The verbs that look at runs: how far they are, how good, what makes them slow, and what was set differently."""

from plait.commands.runs import compare, listing, report, stages, upgrade_check, verify, why

COMMANDS = (
    *stages.COMMANDS,
    *listing.COMMANDS,
    *why.COMMANDS,
    *report.COMMANDS,
    *compare.COMMANDS,
    *upgrade_check.COMMANDS,
    *verify.COMMANDS,
)
