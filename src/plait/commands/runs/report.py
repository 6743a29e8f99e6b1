"""The command `plait report`: write an HTML page of one or more runs. `declare` adds the arguments of `run`."""

from plait.commands.arguments import add_json, path
from plait.commands.command import Arguments, Command, Parser


def declare(parser: Parser) -> None:
    """Add the arguments of `plait report` to its parser."""
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="a run directory; several are set beside each other")
    parser.add_argument("--out", type=path, metavar="FILE", help="the page (default: report.html in the run, or here for several)")
    add_json(parser, "page, runs, settings, verdict")
    parser.add_argument("--no-plan", action="store_true", help="do not hold a run against its plan, which builds the model without weights")


def run(arguments: Arguments) -> None:
    """Write the page of the run directories `runs` (an argument) as one file, which loads nothing else.

    With `json` print their figures instead, and write the page only where `out` names it. Raises PlaitError for a path that is no run
    directory, or is given twice.
    """
    from plait.commands.actions.report import report

    (report.show if arguments.json else report.write)(arguments.runs, arguments.out, plan=not arguments.no_plan)


COMMANDS = (Command(("report",), "one HTML file about a run, or several: curves, held-out figures, data, settings", declare, run),)
