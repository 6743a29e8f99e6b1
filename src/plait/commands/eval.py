"""The verb `plait eval`: measure a checkpoint on a bench, which is a metric on some data, such as `loss` or `vqa2:validation`."""

import contextlib
from pathlib import Path

from plait.commands.arguments import add_checkpoint, add_weights, positive, spread
from plait.commands.command import Arguments, Command, Parser
from plait.errors import PlaitError
from plait.families import registry


def declare(parser: Parser) -> None:
    """Add the arguments of `plait eval` to its parser, with a switch for each variant that a model family offers."""
    add_checkpoint(parser)
    parser.add_argument(
        "--bench", required=True, help="loss, a bench of the family, or a dataset with its own rule: vqa2 or vqa2:validation"
    )
    parser.add_argument("--data", help="in place of the run's held-out data: a .jsonl, .tar or folder, KIND:PATH, or a dataset's folder")
    parser.add_argument("--split", help="part of the data")
    parser.set_defaults(variant=None)
    for family in registry.names():
        with contextlib.suppress(PlaitError):  # a family that cannot be imported is told where it is used, not by every command
            for name, meaning in registry.model_config(family).variants.items():
                parser.add_argument(f"--{name}", dest="variant", action="store_const", const=name, help=f"{family}: {meaning}")
    parser.add_argument("--pictures", type=positive, default=200, help="answers whose pictures are on the page; it has all answers")
    parser.add_argument("--samples", type=positive, help="held-out samples (default: all)")
    parser.add_argument("--batch", type=positive, default=16, help="samples at a time")
    parser.add_argument("--show", type=int, default=3, help="answers to print")
    add_weights(parser)
    parser.add_argument("--out", type=Path, help="where to write (default: RUN/eval/...)")
    parser.add_argument("--nproc", type=positive, help="share the samples among so many ranks of this machine")


def run(arguments: Arguments) -> None:
    """Measure the checkpoint, and write the figures, the answers and a page with pictures."""
    spread(arguments)
    from plait.commands.actions import evaluate

    options = evaluate.Options(
        samples=arguments.samples,
        batch=arguments.batch,
        show=arguments.show,
        pictures=arguments.pictures,
        averaged=not arguments.raw,
        length=arguments.ema_length,
        variant=arguments.variant,
        data=arguments.data,
        split=arguments.split,
        out=arguments.out,
    )
    evaluate.evaluate(arguments.checkpoint, arguments.bench, options)


COMMANDS = (Command(("eval",), "measure a checkpoint on a bench; writes predictions and a page with pictures", declare, run),)
