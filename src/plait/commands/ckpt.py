"""The commands `plait ckpt ...`: list, verify, compare and delete checkpoints, and write their weights in other forms.

For each, a `declare_...` adds its arguments to a parser, and a `run_...` does its work with what was parsed.
"""

from plait.commands.arguments import SPEC, add_json, path, positive
from plait.commands.command import Arguments, Command, Parser


def declare_path(parser: Parser) -> None:
    """Add the `path` argument, which names a checkpoint or several, to a verb's parser."""
    parser.add_argument("path", metavar="CHECKPOINT", help=SPEC)


def declare_inspect(parser: Parser) -> None:
    """Add the arguments of `inspect` to its parser."""
    declare_path(parser)
    add_json(parser, "checkpoint, state, stage, files, parameters, base, frozen_xxh3, data")


def declare_verify(parser: Parser) -> None:
    """Add the arguments of `verify` to its parser."""
    declare_path(parser)
    add_json(parser, "checkpoints, damaged")


def run_inspect(arguments: Arguments) -> None:
    """Print the content of the checkpoint, or the newest of several, that the argument `path` names (RUN, RUN@STEP, ...).

    Raises PlaitError if there is none.
    """
    from plait.commands.actions import checkpoints

    checkpoints.inspect(arguments.path, as_json=arguments.json)


def run_verify(arguments: Arguments) -> None:
    """Check every file of the checkpoints that the argument `path` names against its stored hash.

    Raises Damaged, a PlaitError with exit code 1, if any is damaged.
    """
    from plait.commands.actions import checkpoints

    checkpoints.verify(arguments.path, as_json=arguments.json)


def declare_consolidate(parser: Parser) -> None:
    """Add the arguments of `consolidate` to its parser."""
    parser.add_argument("checkpoint", help=SPEC)
    parser.add_argument("out", type=path, metavar="DIR", help="a new folder")
    parser.add_argument("--last", action="store_true", help="the last weights, not the averaged ones")


def run_consolidate(arguments: Arguments) -> None:
    """Write the full weights of a checkpoint, which may be sharded over files of several ranks, into a new folder.

    The arguments are `checkpoint` (RUN, RUN@STEP, ...), `out` (the folder) and `last` (use the last weights, not the averaged ones). Raises
    PlaitError if the folder exists, or there is no such checkpoint.
    """
    from plait.commands.actions import checkpoints

    checkpoints.consolidate(arguments.checkpoint, arguments.out, averaged=not arguments.last)


def declare_ema(parser: Parser) -> None:
    """Add the arguments of `ema` to its parser."""
    declare_path(parser)
    parser.add_argument("--length", type=float, required=True, metavar="SHARE", help="of the run, such as 0.07; at most 0.288")
    parser.add_argument("--out", type=path, help="folder (default: RUN/averages/length-SHARE-step-N)")


def run_ema(arguments: Arguments) -> None:
    """Write weights averaged over a share of the run, computed from the averages that it saved (`optim.ema.post_hoc`).

    The arguments are `path` (RUN, RUN@STEP, ...), `length` (the share, such as 0.07) and `out` (folder; None: one in the run). Raises
    PlaitError if there is no such checkpoint, or the run saved no averages.
    """
    from plait.commands.actions import checkpoints

    checkpoints.ema(arguments.path, arguments.length, arguments.out)


def declare_diff(parser: Parser) -> None:
    """Add the arguments of `diff`, the two checkpoints, to its parser."""
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help=SPEC)
    add_json(parser, "a, b, state, components, frozen, differences")


def run_diff(arguments: Arguments) -> None:
    """Print how far the weights moved from checkpoint `a` to `b` (arguments), and what else differs. Raises PlaitError without one."""
    from plait.commands.actions import checkpoints

    checkpoints.diff(arguments.a, arguments.b, as_json=arguments.json)


def declare_prune(parser: Parser) -> None:
    """Add the arguments of `prune` to its parser."""
    parser.add_argument("run", type=path, help="a run directory")
    parser.add_argument("--keep", type=positive, default=1, help="how many of the newest checkpoints of each stage stay (default: 1)")
    parser.add_argument(
        "--also", type=path, action="append", default=[], metavar="DIR", help="other runs below it may start from this one; may be repeated"
    )
    parser.add_argument("--yes", action="store_true", help="delete; without it, what would go is printed")
    add_json(parser, "run, deleted, bytes_freed, runs_looked_at, checkpoints")


def run_prune(arguments: Arguments) -> None:
    """Print which checkpoints of a run go and which stay, and delete the first with `--yes`.

    The run's directory is the argument `run`. Raises PlaitError for a path that is none, a run that trains now, and one of whose
    checkpoints none is intact.
    """
    from plait.commands.actions.runs import prune

    prune.prune(arguments.run, keep=arguments.keep, also=arguments.also, do=arguments.yes, as_json=arguments.json)


def declare_replay(parser: Parser) -> None:
    """Add the arguments of `replay` to its parser."""
    parser.add_argument("run", type=path, help="a run directory")
    parser.add_argument("step", type=positive, metavar="STEP", help="a step that the run has had, from 1")
    parser.add_argument("--out", type=path, metavar="DIR", help="folder in which step-N is written (default: RUN/replays)")


def run_replay(arguments: Arguments) -> None:
    """Train a run again, in memory, from the checkpoint before a step to that step, and write what the step holds.

    The arguments are `run`, `step` and `out` (a folder; None: RUN/replays). Raises PlaitError for a step that the run has not had.
    """
    from plait.commands.actions.runs import replay

    replay.replay(arguments.run, arguments.step, arguments.out)


COMMANDS = (
    Command(("ckpt", "inspect"), "what a checkpoint holds", declare_inspect, run_inspect),
    Command(("ckpt", "verify"), "check every file of every checkpoint against its hash", declare_verify, run_verify),
    Command(
        ("ckpt", "consolidate"),
        "write the weights of a checkpoint whole, whichever ranks wrote its files",
        declare_consolidate,
        run_consolidate,
    ),
    Command(("ckpt", "ema"), "weights averaged over any share of the run, after training (optim.ema.post_hoc)", declare_ema, run_ema),
    Command(("ckpt", "prune"), "free disk: delete checkpoints that nothing needs; prints what would go", declare_prune, run_prune),
    Command(("ckpt", "replay"), "go again from a checkpoint to STEP and look into it: samples, modules, cause", declare_replay, run_replay),
    Command(("ckpt", "diff"), "how far weights moved from A to B, and what else differs", declare_diff, run_diff),
)
