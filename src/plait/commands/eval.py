"""The command `plait eval`: measure a checkpoint on a bench (a metric on some data, such as `loss` or `vqa2:validation`)."""

import itertools
import logging
from dataclasses import replace

from plait.assembly.checked_configuration import open_checked
from plait.commands.arguments import EXPORT, SPEC, add_json, add_weights, path, positive, spread
from plait.commands.command import OVERRIDES, Arguments, Command, Parser, actions
from plait.engine.monitoring.json_output import show_json
from plait.errors import PlaitError
from plait.families import registry

log = logging.getLogger(__name__)


def declare(parser: Parser) -> None:
    """Add the arguments of `plait eval` to its parser, and a flag for each setting that a model family lets evaluation change.

    Raises PlaitError for a family that cannot be loaded, or whose flag has the name of another option.
    """
    parser.add_argument("checkpoint", nargs="?", help=f"{SPEC}{EXPORT}")
    parser.add_argument("--base", type=path, metavar="CONFIG", help="in place of a checkpoint: the model of CONFIG before its first step")
    parser.add_argument(
        "--bench",
        required=True,
        help="loss, a bench of the family, or a dataset with its own rule, as vqa2:validation; several: loss,accuracy",
    )
    parser.add_argument(
        "--ablate",
        metavar="INPUT",
        help="an input, as image or world: the same samples also without it, and with another's; several, each in turn: image,world",
    )
    parser.add_argument(
        "--against",
        metavar="MODELS",
        help="other models on the same samples, in one table: base (before the first step), untrained (before that of the run that the "
        "chain of `from:` begins with), random:COMPONENT (that component's values in random order), or checkpoints of other runs; "
        "several: base,random:projector,runs/other",
    )
    parser.add_argument("--data", help="in place of the run's held-out data: a .jsonl, .csv, .parquet, .tar or folder, or KIND:PATH")
    parser.add_argument("--split", help="part of the data")
    parser.add_argument(
        "--rollout", metavar="FOLDERS", help="predicted futures of that data, by plait data rollout, a folder for each of its sources: a,b"
    )
    parser.add_argument("--pictures", type=positive, default=200, help="answers whose pictures are on the page; it has all answers")
    parser.add_argument("--samples", type=positive, help="held-out samples (default: all)")
    parser.add_argument("--batch", type=positive, default=16, help="samples at a time")
    parser.add_argument("--show", type=int, default=3, help="answers to print")
    add_weights(parser)
    parser.add_argument("--out", type=path, help="where to write (default: RUN/eval/...)")
    parser.add_argument("--nproc", type=positive, help="share the samples among so many ranks of this machine")
    add_json(parser, "results, a list of what each bench's metrics.json has with its `folder` and `against`")
    _declare_variants(parser)


def _declare_variants(parser: Parser) -> None:
    """Add a switch for each variant that a family offers. Raises PlaitError for one that has the name of another option."""
    meanings: dict[str, list[str]] = {}
    for family, section in registry.model_configs():
        for name, meaning in section.variants.items():
            if any(f"--{name}" in action.option_strings for action in actions(parser)):
                raise PlaitError(f"family {family!r}: its variant {name!r} is an option of plait eval: give it another name")
            meanings.setdefault(name, []).append(f"{family}: {meaning}".replace("%", "%%"))
    parser.set_defaults(variant=None)
    for name, lines in meanings.items():
        parser.add_argument(f"--{name}", dest="variant", action="store_const", const=name, help="; ".join(lines))


def run(arguments: Arguments) -> None:
    """Measure the model of a checkpoint (argument `checkpoint`), or of a configuration before its first step (`base`), on a `bench`.

    Writes the results, the answers and an HTML page with pictures. Raises PlaitError if not one of a checkpoint and `--base` is given, and
    for options that choose weights beside `--base`.
    """
    if (arguments.checkpoint is None) == (arguments.base is None):
        raise PlaitError(f"give either a checkpoint ({SPEC}) or --base CONFIG (see plait eval --help)")
    if arguments.base is not None and (arguments.raw or arguments.ema_length is not None):
        raise PlaitError("--raw and --ema-length choose between weights that were trained; --base has none")
    resolved = open_checked(arguments.base, arguments.overrides) if arguments.base is not None else None
    spread(arguments)
    from plait.commands.actions.evaluation import ablations, against, evaluate, subject

    for line in resolved.warnings if resolved is not None else ():
        log.warning(line)

    options = evaluate.EvaluateOptions(
        samples=arguments.samples,
        batch=arguments.batch,
        show=arguments.show,
        pictures=arguments.pictures,
        averaged=not arguments.raw,
        length=arguments.ema_length,
        variant=arguments.variant,
        data=arguments.data,
        split=arguments.split,
        rollout=tuple(arguments.rollout.split(",")) if arguments.rollout is not None else (),
        out=arguments.out,
        by_sample=arguments.against is not None,
    )
    measured = subject.Base(resolved) if resolved is not None else subject.named(arguments.checkpoint)
    others = against.others_of(measured, arguments.against.split(",")) if arguments.against is not None else {}
    inputs = ablations.named(measured.config, arguments.ablate)
    results = []
    names = arguments.bench.split(",")
    for name, left_out in itertools.product(names, inputs):
        parts = [name.replace(":", "-")] * (len(names) > 1) + [f"ablate-{left_out}"] * (len(inputs) > 1)
        folder = options.out / "-".join(parts) if options.out is not None and parts else options.out
        results.append(evaluate.evaluate(measured, name, replace(options, out=folder, ablate=left_out)))
    if others:
        against.compare(measured, others, results)
    if arguments.json and results[0].first:
        show_json({"results": [result.written(*["against"] * bool(others)) for result in results]})


HELP = "measure a checkpoint on a bench; writes predictions and a page with pictures"
"""The line on `plait eval` in the help."""
COMMANDS = (Command(("eval",), HELP, declare, run, f"With --base: {OVERRIDES}", settings_need="base"),)
