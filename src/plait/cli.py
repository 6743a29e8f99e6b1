"""The command line: verbs and arguments only. Each verb's module is imported when it is used, so that help and errors come at once."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from plait import __version__
from plait.errors import PlaitError

INTERRUPTED = 130
_ABOUT = "Train multimodal models in stages; stop anywhere, continue exactly."
Arguments = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """argparse, with errors like all others of plait: one line, without the usage, which help shows."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, as PlaitError; for an unknown choice, with the nearest one."""
        if found := re.fullmatch(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            known = re.findall(r"[\w-]+", found[3])
            near = difflib.get_close_matches(found[2], known, 1)
            message = f"{found[1]} {found[2]!r} is unknown: " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")
        raise PlaitError(f"{message} (see {self.prog} --help)")


def _positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 2 a PlaitError in one line on standard error, 130 interrupted."""
    try:
        given, overrides = _parse(list(sys.argv[1:] if arguments is None else arguments))
        given.verb(given, overrides)
    except PlaitError as error:
        rank = os.environ.get("RANK", "0")
        print(f"plait: {error}" if rank == "0" else f"plait: rank {rank}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("plait: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parse(arguments: list[str]) -> tuple[Arguments, list[str]]:
    """Split verb arguments from `--a.b=value` overrides of the configuration (or of a verb's own options)."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    given.arguments = arguments
    given.words, rest = _words(given, rest)
    for item in rest:
        if not (item.startswith("--") and "=" in item):
            parser.error(f"{item!r} is not understood: a setting is written --name=value, for example --optim.lr=3e-6")
    if rest and given.settings is None:
        parser.error(f"{rest[0]!r} is not an option of this command")
    return given, [item.removeprefix("--") for item in rest]


def _words(given: Arguments, rest: list[str]) -> tuple[list[str], list[str]]:
    """The words of a launch script, which has some besides settings, and the settings; a switch of its own stands for --switch=true."""
    from plait import dialects

    if given.settings is not _OVERRIDES or "config" not in given or not dialects.is_script(given.config):
        return [], rest
    settings = [item if "=" in item else f"{item}=true" for item in rest if item.startswith("--")]
    return [item for item in rest if not item.startswith("-")], settings


def _add(to: "argparse._SubParsersAction[Parser]", name: str, verb: Callable[..., None], text: str, settings: str | None = None) -> Parser:
    """A verb and what runs it. `settings`: what --name=value means to it; None: it takes none."""
    made = to.add_parser(name, help=text, description=text, epilog=settings, allow_abbrev=False)
    made.set_defaults(verb=verb, settings=settings)
    return made


_CONFIG = "a .yaml or .json file, a run directory, or molmo/captioner MODEL, molmo/multitask MIXTURE CHECKPOINT with the guide's flags"
_SETTINGS = "--run=DIR names the folder to try; with CONFIG, any setting can be given."
_OVERRIDES = "Settings of the configuration are given as --a.b=value, for example --optim.lr=3e-6 --run=runs/second."


def _parser() -> Parser:
    parser = Parser("plait", description=_ABOUT, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"plait {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    made = _add(verbs, "train", _train, "start a run, or continue it: the same command does both", _OVERRIDES)
    made.add_argument("config", type=Path, help=_CONFIG)
    made.add_argument("--fresh", action="store_true", help="begin a new run, and refuse where there is one already")
    made.add_argument("--restart", action="store_true", help="start over; the old run is kept aside")
    made.add_argument("--stage", help="run this stage only, then stop")
    made.add_argument("--allow-inexact", action="store_true", help="go on although something differs from what was saved; it is named")
    _add_ranks(made)
    made = _add(verbs, "config", _config, "print the resolved configuration and where each value comes from", _OVERRIDES)
    made.add_argument("config", type=Path)
    _add_prove(_add(verbs, "prove", _prove, "kill and resume this configuration at random: bit-exact, or the first divergence", _OVERRIDES))
    made = _add(verbs, "eval", _eval, "measure a checkpoint on a bench; writes predictions and a page with pictures")
    made.add_argument("checkpoint", type=Path, help="a run, stage folder or step folder")
    made.add_argument("--bench", required=True, help="loss, a bench of the family, or a dataset with its own rule: vqa2 or vqa2:validation")
    made.add_argument("--data", help="in place of the run's held-out data: a .jsonl, .tar or folder, KIND:PATH, or a dataset's folder")
    made.add_argument("--split", help="part of the data")
    made.add_argument("--high-res", action="store_true", help="molmo: 36 crops and 4096 tokens")
    made.add_argument("--pictures", type=_positive, default=48, help="answers on the page with pictures; predictions.json has all")
    made.add_argument("--samples", type=_positive, help="held-out samples (default: all)")
    made.add_argument("--batch", type=_positive, default=16, help="samples at a time")
    made.add_argument("--show", type=int, default=3, help="answers to print")
    _add_weights(made)
    made.add_argument("--out", type=Path, help="where to write (default: RUN/eval/...)")
    made.add_argument("--nproc", type=_positive, help="share the samples among so many ranks of this machine")
    made = _add(verbs, "export", _export, "write a checkpoint as a directory that other software loads")
    made.add_argument("checkpoint", type=Path, help="a run, stage folder or step folder")
    made.add_argument("out", metavar="DIR", type=Path, help="the new directory")
    made.add_argument("--to", default="hf", help="hf: transformers (default); molmo: the published Molmo layout")
    made.add_argument("--raw", action="store_true", help="the last weights, not their average")
    made = _add(
        verbs,
        "generate",
        _generate,
        "answer a prompt, or draw one",
        "The family's own options are given as --name=value; a wrong one lists them.",
    )
    made.add_argument("checkpoint", type=Path)
    made.add_argument("--out", type=Path, help="folder for what is written")
    _add_weights(made)
    _add_stored(verbs)
    _add_data(verbs)
    made = _add(verbs, "doctor", _doctor, "look for what would keep a run from going well, and say what to do", _SETTINGS)
    made.add_argument("config", type=Path, nargs="?", help="look at its weights and data too")
    made.add_argument("--nproc", type=_positive, help="ranks on this machine, to try how they reach each other")
    return parser


def _add_ranks(made: argparse.ArgumentParser) -> None:
    """What starts a verb on several ranks of this machine (docs/launch.md)."""
    made.add_argument("--nproc", type=_positive, help="ranks on this machine, one per GPU: short for torchrun")
    made.add_argument("--max-restarts", type=_positive, help="with --nproc: when a rank dies, start all again so often")
    made.add_argument("--shutdown-timeout", type=_positive, metavar="SECONDS", help="with --nproc: to save after a signal (default: 30)")


def _spread(given: Arguments) -> None:
    """Become torchrun with this same command on `--nproc` ranks; without it, this process does the work."""
    restarts, timeout = getattr(given, "max_restarts", None), getattr(given, "shutdown_timeout", None)
    if given.nproc is None:
        if restarts or timeout:
            raise PlaitError("--max-restarts and --shutdown-timeout belong to --nproc, or to torchrun itself; add --nproc=N")
        return
    from plait import launch

    launch.spread(given.nproc, restarts or 0, timeout, given.arguments)


def _add_weights(made: Parser) -> None:
    which = made.add_mutually_exclusive_group()
    which.add_argument("--raw", action="store_true", help="use the last weights, not their average")
    which.add_argument("--ema-length", type=float, metavar="SHARE", help="an average of this length, made of what optim.ema.post_hoc kept")


def _add_stored(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """What looks into runs and their checkpoints, or branches off one."""
    _add(verbs, "stages", _stages, "how far each stage of a run is, why it ended, what it trains, how good it became").add_argument(
        "run", type=Path
    )
    made = _add(verbs, "fork", _fork, "a new run that goes on from a moment of another one", _OVERRIDES)
    made.add_argument("start", metavar="RUN@STEP", help="or RUN, RUN/STAGE, RUN/STAGE@best, a step folder")
    made.add_argument("new", type=Path, metavar="NEW", help="folder of the new run; `plait train NEW` continues it")
    inner = verbs.add_parser("ckpt", help="look into checkpoints").add_subparsers(metavar="WHAT", required=True)
    for name, verb, text in (
        ("inspect", _ckpt_inspect, "what a checkpoint holds"),
        ("verify", _ckpt_verify, "check every file of every checkpoint against its hash"),
    ):
        _add(inner, name, verb, text).add_argument("path", type=Path, help="a run, stage folder or step folder")
    made = _add(inner, "consolidate", _ckpt_consolidate, "write the weights of a checkpoint whole, whoever wrote its pieces")
    made.add_argument("checkpoint", help="RUN, RUN@STEP, RUN/STAGE, RUN/STAGE@best or a step folder")
    made.add_argument("out", type=Path, metavar="DIR", help="a new folder")
    made.add_argument("--last", action="store_true", help="the last weights, not the averaged ones")
    made = _add(inner, "ema", _ckpt_ema, "weights averaged over any share of the run, after training (optim.ema.post_hoc)")
    made.add_argument("path", type=Path, help="a run, stage folder or step folder")
    made.add_argument("--length", type=float, required=True, metavar="SHARE", help="of the run, such as 0.07; at most 0.288")
    made.add_argument("--out", type=Path, help="folder (default: RUN/averages/length-SHARE-step-N)")
    made = _add(inner, "diff", _ckpt_diff, "how far weights moved from A to B, and what else differs")
    for name in ("a", "b"):
        made.add_argument(name, metavar=name.upper(), help="RUN, RUN@STEP, RUN/STAGE, RUN/STAGE@best or a step folder")


def _add_data(verbs: "argparse._SubParsersAction[Parser]") -> None:
    inner = verbs.add_parser("data", help="look into data").add_subparsers(metavar="WHAT", required=True)
    _add(inner, "index", _data_index, "make and check the offset index of tar shards").add_argument(
        "path", help="a shard, folder or pattern"
    )
    _add_shard(_add(inner, "shard", _data_shard, "encode pictures with captions into bucketed latent shards", _SOURCE_SETTINGS))
    made = _add(inner, "inspect", _data_inspect, "draw what the model sees: pixels, prompt, supervised text", _OVERRIDES)
    made.add_argument("config", type=Path)
    made.add_argument("--samples", type=_positive, default=12)
    made.add_argument("--out", type=Path, default=Path("inspect"), help="folder for the picture and the page")
    made.add_argument("--split", choices=("train", "validation"), default="train")


_SOURCE_SETTINGS = "Settings of the source are given as --name=value: --template.assistant='a photo of a {label}', --options.size=[64,64]."


def _add_prove(made: argparse.ArgumentParser) -> None:
    made.add_argument("config", type=Path, help="a .yaml or .json file, or a run directory")
    made.add_argument("--kills", type=int, default=6, help="processes ended on the way; each is one more generation")
    made.add_argument("--seed", type=int, default=0, help="of the moments")
    made.add_argument("--ranks", type=int, default=1, help="processes of each generation, under torchrun")
    made.add_argument("--steps", type=_positive, default=8, help="at most so many per stage")
    made.add_argument("--warm", action="store_true", help="fork the generations from one process that has imported everything: faster")
    made.add_argument("--out", type=Path, help="keep the two runs here (default: a temporary folder)")


def _add_shard(made: argparse.ArgumentParser) -> None:
    made.add_argument("source", help="a folder of pictures, a .jsonl, tar shards, or `scenes`")
    made.add_argument("out", type=Path, nargs="?", help="folder of the set; the same command finishes a build that was stopped")
    made.add_argument("--split", default="train", help="part of the source")
    made.add_argument("--buckets", help="sizes to crop to, WIDTHxHEIGHT,... (default: the five of 1024 x 1024 pixels)")
    made.add_argument("--bucket", action="append", default=[], help="write only this one of them; may be repeated")
    made.add_argument("--latents", default="tiny", help="VAE: a folder, a Hub repository[/part][@revision], or tiny[:4x48]")
    made.add_argument("--texts", default="tiny", help="T5 encoder, named likewise, or tiny[:64]")
    made.add_argument("--images", default="tiny", help="DINOv3, named likewise, or tiny")
    made.add_argument("--max-tokens", type=_positive, help="of a caption (default: 512, tiny 64)")
    made.add_argument("--limit", type=_positive, help="read at most so many samples, a fair part of all")
    made.add_argument("--seed", type=int, default=0, help="of the order in which samples are taken")
    made.add_argument("--batch", type=_positive, default=16, help="pictures per call of an encoder")
    made.add_argument("--per-shard", type=_positive, default=1000, help="samples per shard, at most 1000")
    made.add_argument("--statistics", choices=("measured", "published"), default="measured", help="what normalises the latents")
    made.add_argument("--like", type=Path, help="share the statistics of this set (for held-out data)")
    made.add_argument("--workers", type=int, default=2, help="threads that decode pictures")
    made.add_argument("--device", default="cpu", help="of the encoders, such as cuda")
    made.add_argument("--dry-run", action="store_true", help="only count what each bucket would hold")
    made.add_argument("--measure", action="store_true", help="SOURCE is a set made elsewhere: write its metadata.json")


def _load(path: Path, overrides: list[str], words: Sequence[str] = ()):
    from plait import config, mixture
    from plait.families import registry

    if path.is_dir():  # a run directory stands for its own configuration
        path, overrides = path / "config.yaml", [f"run={path}", *overrides]
    resolved = config.load(path, overrides, model_config=registry.model_config, preset=registry.preset, words=words)
    for data in (view.config.data for view in resolved.stages):
        if data.mixture is not None:  # a wrong name or file is told before anything else is done
            mixture.read(registry.mixture(resolved.config.family, data.mixture), data.without)
    return resolved


def _train(given: Arguments, overrides: list[str]) -> None:
    resolved = _load(given.config, overrides, given.words)
    _spread(given)
    from plait import run

    restart, fresh = given.restart or "restart" in resolved.asked, given.fresh or "fresh" in resolved.asked
    run.train(resolved, run.Options(restart, given.allow_inexact, given.stage, fresh))


def _prove(given: Arguments, overrides: list[str]) -> None:
    resolved = _load(given.config, overrides, given.words)
    from plait import prove

    prove.prove(resolved, **{name: getattr(given, name) for name in ("kills", "seed", "ranks", "steps", "warm", "out")})


def _doctor(given: Arguments, overrides: list[str]) -> None:
    resolved = _load(given.config, overrides) if given.config is not None else None
    if resolved is None and (other := [item for item in overrides if not item.startswith("run=")]):
        raise PlaitError(f"--{other[0]} is a setting of a configuration: plait doctor CONFIG --{other[0]}")
    run = resolved.config.run if resolved is not None else overrides[-1].removeprefix("run=") if overrides else "."
    _spread(given)
    from plait import doctor

    doctor.examine(resolved, Path(str(run)))


def _config(given: Arguments, overrides: list[str]) -> None:
    from plait import config

    print(config.render(_load(given.config, overrides, given.words)))


def _eval(given: Arguments, overrides: list[str]) -> None:
    _spread(given)
    from plait import evaluate

    names = ("samples", "batch", "show", "pictures", "high_res", "data", "split", "out")
    options = evaluate.Options(averaged=not given.raw, length=given.ema_length, **{name: getattr(given, name) for name in names})
    evaluate.evaluate(given.checkpoint, given.bench, options)


def _export(given: Arguments, overrides: list[str]) -> None:
    from plait import export

    export.export(given.checkpoint, given.out, given.to, averaged=not given.raw)


def _generate(given: Arguments, overrides: list[str]) -> None:
    from plait import evaluate

    evaluate.generate(given.checkpoint, overrides, averaged=not given.raw, length=given.ema_length, out=given.out)


def _ckpt_inspect(given: Arguments, overrides: list[str]) -> None:
    from plait import ckpt

    ckpt.inspect(given.path)


def _ckpt_verify(given: Arguments, overrides: list[str]) -> None:
    from plait import ckpt

    ckpt.verify(given.path)


def _ckpt_consolidate(given: Arguments, overrides: list[str]) -> None:
    from plait import ckpt

    ckpt.consolidate(given.checkpoint, given.out, averaged=not given.last)


def _ckpt_ema(given: Arguments, overrides: list[str]) -> None:
    from plait import ckpt

    ckpt.ema(given.path, given.length, given.out)


def _ckpt_diff(given: Arguments, overrides: list[str]) -> None:
    from plait import ckpt

    ckpt.diff(given.a, given.b)


def _stages(given: Arguments, overrides: list[str]) -> None:
    from plait import stages

    stages.show(given.run)


def _fork(given: Arguments, overrides: list[str]) -> None:
    from plait import fork

    fork.fork(given.start, given.new, overrides)


def _data_index(given: Arguments, overrides: list[str]) -> None:
    from plait import inspect

    inspect.index(given.path)


def _data_shard(given: Arguments, overrides: list[str]) -> None:
    from plait import shard

    if given.measure:
        shard.measure(Path(given.source))
        return
    names = shard.Options.__dataclass_fields__
    shard.shard(
        given.source,
        given.out,
        shard.Options(**{name: getattr(given, name) for name in names if getattr(given, name) is not None}),
        overrides,
    )


def _data_inspect(given: Arguments, overrides: list[str]) -> None:
    resolved = _load(given.config, overrides, given.words)
    from plait import inspect

    inspect.draw(resolved, given.split, given.samples, given.out)
