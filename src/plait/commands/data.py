"""The commands `plait data ...`: draw samples as the model sees them, download, index and encode pictures, predict their futures.

For each, a `declare_...` adds its arguments to a parser, and a `run_...` does its work with what was parsed.
"""

import argparse
import ipaddress
import re
from pathlib import Path

from plait.assembly.checked_configuration import open_checked
from plait.commands.arguments import add_json, config_path, path, positive
from plait.commands.command import OVERRIDES, Arguments, Command, Parser
from plait.errors import PlaitError


def declare_inspect(parser: Parser) -> None:
    """Add the arguments of `plait data inspect` to its parser."""
    what = "a configuration, run directory or launch script; or data alone: a folder, file, pattern or address, or `scenes`"
    parser.add_argument("config", help=what)
    parser.add_argument("--figures", type=positive, metavar="SAMPLES", help="measure at most so many of a source (default: see the docs)")
    parser.add_argument("--headers", action="store_true", help="do not decode pictures: faster, and damaged ones are not found")
    add_json(parser, "sources, look, refused, pages")
    parser.add_argument("--out", type=path, help="new folder for the pages (default: inspect, then inspect-2, ...)")
    parser.add_argument("--split", help="of a configuration train or validation, of data alone any (default: train)")
    of_data = parser.add_argument_group("of data alone")
    of_data.add_argument("--held-out", metavar="SOURCE", help="other data, to compare with: what is in both")
    of_data.add_argument("--tokenizer", type=path, help="a tokenizer.json, or a folder with one, that counts tokens")
    of_config = parser.add_argument_group("of a configuration")
    of_config.add_argument("--samples", type=positive, help="how many to draw as the model sees them (default: 12)")


def run_inspect(arguments: Arguments) -> None:
    """Measure data, and draw the first samples that a run of the argument `config` would train on, or evaluate on.

    Raises PlaitError for a faulty configuration or data, and for a folder that is not empty.
    """
    from plait.commands.actions.packing.configuration_or_data import is_configuration

    whole = arguments.words or is_configuration(arguments.config)
    given = {name: getattr(arguments, name) for name in ("held_out", "tokenizer", "samples") if getattr(arguments, name) is not None}
    wrong = [name for name in given if (name == "samples") != bool(whole)]
    if wrong:
        what = "a configuration, and this is data alone: --figures says how many are measured" if not whole else "data alone"
        raise PlaitError(f"--{wrong[0].replace('_', '-')} is of {what}")
    if not whole:
        from plait.commands.actions.inspection import inspect_source

        options = inspect_source.InspectOptions(
            split=arguments.split or "train",
            figures=arguments.figures,
            headers_only=arguments.headers,
            tokenizer=arguments.tokenizer,
            held_out=arguments.held_out,
            as_json=arguments.json,
            out=arguments.out,
        )
        inspect_source.inspect(arguments.config, arguments.overrides, options)
        return
    split = arguments.split or "train"
    if split not in ("train", "validation"):
        raise PlaitError(f"--split {split!r} is unknown: known: train, validation (see plait data inspect --help)")
    resolved = open_checked(config_path(arguments.config), arguments.overrides, words=arguments.words)
    from plait.commands.actions.inspection import inspect_data, stage_figures

    measured = stage_figures.Measured(arguments.figures, headers_only=arguments.headers)
    inspect_data.draw(resolved, split, arguments.samples or 12, arguments.out, measured=measured, as_json=arguments.json)


def declare_step(parser: Parser) -> None:
    """Add the arguments of `plait data step` to its parser."""
    parser.add_argument("run", type=path, help="a run directory; or a configuration, of which no run is needed")
    parser.add_argument("step", type=positive, help="number of the step in the run, from 1, as in metrics.jsonl")
    parser.add_argument("--stage", metavar="NAME", help="count the steps of this stage")
    parser.add_argument("--ranks", type=positive, help="divide the samples over so many (default: as the run's checkpoints say, else 1)")
    add_json(parser, "run, step, stage, stage_step, ranks, micro_batch, hash, recorded_hash, samples")
    parser.add_argument("--page", action="store_true", help="also draw them as the model sees them, on a page")
    parser.add_argument("--out", type=path, help="new folder for the page (default: step-N, then step-N-2, ...); draws it too")


def run_step(arguments: Arguments) -> None:
    """List the samples of a step of the run, or configuration, that the argument `run` names.

    Raises PlaitError for a faulty configuration or data, a step that there is not, and where the run trained on other samples.
    """
    resolved = open_checked(arguments.run, arguments.overrides)
    from plait.commands.actions.inspection import step_samples

    page = arguments.out or (step_samples.page_folder(arguments.step) if arguments.page else None)
    run = arguments.run if arguments.run.is_dir() else None
    step_samples.show(resolved, run, arguments.step, stage=arguments.stage, ranks=arguments.ranks, as_json=arguments.json, page=page)


def _part(text: str) -> tuple[int, int]:
    """Parse K/N. Raises argparse.ArgumentTypeError for anything else."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be K/N, such as 2/8 for the second of eight parts, got {text!r}")
    return int(match[1]), int(match[2])


def _network(text: str) -> str:
    """Parse an address or a network. Raises argparse.ArgumentTypeError for anything else."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an address or a network, such as 10.1.2.3 or 10.0.0.0/8, got {text!r}") from None


_ALLOW = "also fetch from this private network or address, such as 10.0.0.0/8; may be repeated (default: public addresses only)"


def declare_download(parser: Parser) -> None:
    """Add the arguments of `plait data download` to its parser."""
    parser.add_argument("list", help="parquet, CSV, TSV or JSONL: a file, folder, pattern or address, or hf://datasets/OWNER/NAME")
    parser.add_argument("out", type=path, help="folder of the shards; the same command goes on with a download that was stopped")
    for role, what in {"url": "addresses", "caption": "captions", "hash": "hashes (SHA-256 or MD5) of the files"}.items():
        parser.add_argument(f"--{role}-column", metavar="NAME", help=f"column of the {what} (default: found by its name)")
    parser.add_argument("--limit", type=positive, metavar="ROWS", help="only the first so many rows")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="K/N", help="one of N parts, for as many machines")
    parser.add_argument("--per-shard", type=positive, default=10_000, metavar="ROWS", help="rows of the list per shard")
    parser.add_argument("--as-files", action="store_true", help="one file per picture, named by the SHA-256 of its address, and no shards")
    parser.add_argument("--connections", type=positive, default=256, help="at once")
    parser.add_argument("--per-host", type=positive, default=16, metavar="CONNECTIONS", help="at once to one host")
    parser.add_argument("--timeout", type=positive, default=10, metavar="SECONDS", help="for a connection, and between two pieces")
    parser.add_argument("--attempts", type=positive, default=2, help="at a link whose failure may pass")
    parser.add_argument("--max-bytes", type=positive, default=20 << 20, metavar="BYTES", help="of a file (default: 20 MiB)")
    parser.add_argument("--max-pixels", type=positive, metavar="PIXELS", help="of a picture (default: 67 million)")
    parser.add_argument("--min-side", type=positive, default=1, metavar="PIXELS", help="leave out pictures with a shorter side")
    parser.add_argument("--max-side", type=positive, metavar="PIXELS", help="scale larger pictures down, as JPEG (default: no)")
    parser.add_argument("--ignore-hashes", action="store_true", help="also save files whose hash is not the one in the list")
    parser.add_argument("--allow", type=_network, action="append", default=[], metavar="NETWORK", help=_ALLOW)
    parser.add_argument("--again", default="", metavar="OUTCOME,...", help="fetch rows with these outcomes once more, as timeout,http_503")
    parser.add_argument("--verify", action="store_true", help="read finished shards through, and fetch damaged pictures again")
    parser.add_argument("--record-unreachable", action="store_true", help="record links as unreachable although no server answers")
    parser.add_argument("--cache", type=path, help="folder for copies of remote lists, and for indexes (default: ~/.cache/plait)")


def run_download(arguments: Arguments) -> None:
    """Fetch the pictures of the argument `list` into shards in the folder `out`, or go on with a download that was stopped.

    Raises PlaitError for a list that cannot be read, a folder with another download, a dead network, and a disk that is full.
    """
    from plait.commands.actions import download_data
    from plait.data.download.limits import NetworkLimits, PictureLimits

    pixels = {} if arguments.max_pixels is None else {"max_pixels": arguments.max_pixels}
    named = {role: getattr(arguments, f"{role}_column") for role in ("url", "caption", "hash")}
    options = download_data.DownloadOptions(
        columns={role: name for role, name in named.items() if name is not None},
        limit=arguments.limit,
        per_shard=arguments.per_shard,
        part=arguments.part,
        cache=None if arguments.cache is None else str(arguments.cache),
        record_unreachable=arguments.record_unreachable,
        as_files=arguments.as_files,
        again=tuple(filter(None, arguments.again.split(","))),
        verify=arguments.verify,
        network=NetworkLimits(
            connections=arguments.connections,
            per_host=arguments.per_host,
            timeout_s=float(arguments.timeout),
            attempts=arguments.attempts,
            allowed=tuple(arguments.allow),
        ),
        pictures=PictureLimits(
            max_bytes=arguments.max_bytes,
            min_side=arguments.min_side,
            max_side=arguments.max_side,
            check_hash=not arguments.ignore_hashes,
            **pixels,
        ),
    )
    download_data.download(arguments.list, arguments.out, options)


def declare_index(parser: Parser) -> None:
    """Add the arguments of `plait data index` to its parser."""
    files = "a shard, a file of records (.jsonl, .json, .csv, .tsv), a folder of shards, or a pattern"
    parser.add_argument("path", help=f"{files}; or a configuration (.yaml) or run, for all of its data and their filters")
    parser.add_argument("--beside", action="store_true", help="keep each index beside its shard, to upload or share it; else in the cache")
    parser.add_argument("--counts", action="store_true", help="also write index.json, the number of samples of each shard, to stream them")


def run_index(arguments: Arguments) -> None:
    """Build missing and outdated indexes of the files that the argument `path` names, and print what is in each file.

    `path` is a file, a folder of shards or a pattern; or a configuration, of whose sources the filters are measured too. Raises PlaitError
    for a file that cannot be read, and for settings of what is no configuration.
    """
    from plait.commands.actions import index_data

    configuration = Path(arguments.path)
    if configuration.suffix in (".yaml", ".yml") or (configuration / "config.yaml").is_file():
        if option := "beside" if arguments.beside else "counts" if arguments.counts else "":
            raise PlaitError(f"{configuration} is a configuration: --{option} is for a shard, a file of records or a folder of shards")
        index_data.index_configuration(open_checked(configuration, arguments.overrides))
        return
    if arguments.overrides:
        raise PlaitError(f"--{arguments.overrides[0]}: {arguments.path} is no configuration, which alone has settings")
    index_data.index(arguments.path, beside=arguments.beside, counts=arguments.counts)


def declare_dedup(parser: Parser) -> None:
    """Add the arguments of `plait data dedup` to its parser."""
    parser.add_argument(
        "source",
        help="a configuration (.yaml) or run, all of whose data is searched together; or a folder of pictures, a .jsonl, tar shards",
    )
    parser.add_argument("out", type=path, help="file of the copies, for `filter: {dedup: FILE}`")
    parser.add_argument(
        "--distance", type=int, choices=range(17), metavar="0..16", default=4, help="bits of 64 that may differ (default: 4)"
    )
    parser.add_argument(
        "--same-text", action="store_true", help="only samples with the same text are copies: of data that asks several questions"
    )
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="of a SOURCE that is no configuration")


def run_dedup(arguments: Arguments) -> None:
    """Find the copies among the pictures of the argument `source`, and write them to the file `out`.

    Raises PlaitError for a wrong argument or source.
    """
    from plait.commands.actions import dedup_data

    dedup_data.dedup(
        arguments.source,
        arguments.out,
        distance=arguments.distance,
        same_text=arguments.same_text,
        split=arguments.split,
        settings=arguments.overrides,
    )


def declare_shard(parser: Parser) -> None:
    """Add the arguments of `plait data shard` to its parser."""
    parser.add_argument(
        "source", help="a folder of pictures, .jsonl, .csv, .parquet, tar shards, or `scenes`; with --plain a configuration"
    )
    parser.add_argument("out", type=path, nargs="?", help="folder of the set; the same command finishes a build that was stopped")
    parser.add_argument("--plain", action="store_true", help="pack pictures and texts as they are, for any trainer; no encoders")
    parser.add_argument("--split", help="part of the source (default: train)")
    parser.add_argument("--min-side", type=positive, help="skip pictures with a shorter side, in pixels")
    parser.add_argument("--limit", type=positive, help="at most so many samples: a fair part of all; with --plain the first, or --shuffle")
    parser.add_argument("--seed", type=int, help="of the order in which samples are taken (default: 0)")
    parser.add_argument("--per-shard", type=positive, help="samples per shard (default: 1000, which is the most; --plain 10000)")
    parser.add_argument("--workers", type=positive, help="threads that decode pictures (default: 2)")
    plain = parser.add_argument_group("with --plain")
    plain.add_argument("--number", type=int, help="which source of a configuration, from 0, where it has several")
    plain.add_argument("--max-side", type=positive, metavar="PIXELS", help="scale larger pictures down, as JPEG or as --encode says")
    plain.add_argument("--encode", choices=("jpg", "webp", "png"), help="encode every picture anew (default: files stay as they are)")
    plain.add_argument("--quality", type=positive, help="of JPEG and WebP that is encoded anew (default: 95)")
    plain.add_argument("--shuffle", action="store_true", help="in a random order, by --seed (default: in the source's)")
    plain.add_argument("--processes", type=positive, help="that pack, each with --workers threads (default: 1)")
    latents = parser.add_argument_group("without --plain: latents")
    latents.add_argument("--buckets", help="sizes to crop to, WIDTHxHEIGHT,... (default: the five of 1024 x 1024 pixels)")
    latents.add_argument("--bucket", action="append", help="write only this one of them; may be repeated")
    latents.add_argument("--latents", help="VAE: a folder, a Hub repository[/part][@revision], or tiny[:4x48], to try things out")
    latents.add_argument("--texts", help="T5 encoder, named likewise, or tiny[:64]")
    latents.add_argument("--images", help="DINOv3, named likewise, or tiny")
    latents.add_argument("--max-tokens", type=positive, help="of a caption (default: 512, tiny 64)")
    latents.add_argument("--uncaptioned", action="store_true", help="write pictures without a caption too (default: they are skipped)")
    latents.add_argument("--batch", type=positive, help="pictures per call of an encoder (default: 16)")
    latents.add_argument("--statistics", choices=("measured", "published"), help="what normalises the latents (default: measured)")
    latents.add_argument("--like", type=path, help="share the statistics of this set (for held-out data)")
    latents.add_argument("--device", help="of the encoders, such as cuda (default: cpu)")
    latents.add_argument("--dry-run", action="store_true", help="only count what each bucket would hold")
    latents.add_argument("--measure", action="store_true", help="SOURCE is a set made elsewhere: write its metadata.json")


def run_shard(arguments: Arguments) -> None:
    """Encode pictures of the argument `source` into latent shards in the folder `out`, or finish a folder that was begun.

    With `--plain`, pack pictures and texts as they are; with `--measure`, write metadata.json for the shards `source`, made by another
    tool. Raises PlaitError for a wrong argument or source.
    """
    from plait.commands.actions import shard_data
    from plait.commands.actions.packing import pack_data

    given = {name: value for name, value in vars(arguments).items() if value is not None and value is not False}
    own, other = (pack_data.OPTIONS, shard_data.OPTIONS | {"measure"}) if arguments.plain else (shard_data.OPTIONS, pack_data.OPTIONS)
    if wrong := next((name for name in given if name in other and name not in own), None):
        needed = "is of latents, which --plain does not make: leave one of them out" if arguments.plain else "needs --plain"
        raise PlaitError(f"--{wrong.replace('_', '-')} {needed}")
    chosen = {name: value for name, value in given.items() if name in own}
    if arguments.plain:
        pack_data.pack(arguments.source, arguments.out, pack_data.PackOptions(**chosen), arguments.overrides)
    elif arguments.measure:
        shard_data.measure(Path(arguments.source))
    else:
        shard_data.shard(arguments.source, arguments.out, shard_data.ShardOptions(**chosen), arguments.overrides)


def declare_rollout(parser: Parser) -> None:
    """Add the arguments of `plait data rollout` to its parser."""
    parser.add_argument("source", help="a configuration, whose data it is; or a folder of pictures, a .jsonl, tar shards, or `scenes`")
    parser.add_argument("out", type=path, help="folder of the futures; the same command finishes what was stopped")
    parser.add_argument(
        "--with",
        dest="predictor",
        required=True,
        metavar="NAME|DIR|scenes|copy",
        help="scenes: their exact motion; copy: the picture repeated (the control); or a Cosmos-Predict2 or 2.5 pipeline",
    )
    parser.add_argument("--model", type=path, help="configuration with the world encoder and the seed, where SOURCE is none")
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="training or held-out data (default: train)")
    parser.add_argument("--number", type=int, default=0, help="which entry of data.train or data.validation, counted from 0")
    parser.add_argument("--steps", type=positive, help="latent frames after the first, four frames each (default: model.world.steps)")
    parser.add_argument("--limit", type=positive, help="the first so many samples; the entry then needs the same limit")
    parser.add_argument("--batch", type=positive, default=16, help="samples per call of the encoder")
    parser.add_argument("--per-part", type=positive, default=256, help="samples per file")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="of latents and predictor")
    parser.add_argument("--prompt", default="", help="text for a video world model")
    parser.add_argument("--inference-steps", type=positive, default=35, help="steps of a video world model's sampler")
    parser.add_argument("--guidance", type=float, default=7.0, help="guidance of a video world model by the prompt")
    parser.add_argument("--revision", help="commit or tag of a video world model on the Hub")
    parser.add_argument("--device", default="cpu", help="where encoder and model compute, such as cuda")


def run_rollout(arguments: Arguments) -> None:
    """Predict the futures of the samples of the argument `source` into the folder `out`, or finish a folder that was begun.

    Raises PlaitError for a wrong argument, source or setting, and for a video world model that cannot be loaded or does not fit.
    """
    from plait.commands.actions import rollout_data

    given = {name: value for name, value in vars(arguments).items() if name in rollout_data.OPTIONS and value is not None}
    rollout_data.roll_out(arguments.source, arguments.out, rollout_data.RolloutOptions(**given), arguments.overrides)


_SHARD_SETTINGS = "Settings of the source are given as --name=value: --template.assistant='a photo of a {label}', --options.size=[64,64]."

COMMANDS = (
    Command(
        ("data", "inspect"),
        "measure data, and draw what the model sees of it: pixels, prompt, supervised text",
        declare_inspect,
        run_inspect,
        OVERRIDES,
        scripts=True,
    ),
    Command(("data", "download"), "fetch the pictures of a list of links into tar shards", declare_download, run_download),
    Command(
        ("data", "dedup"),
        "find pictures that come twice, exactly or nearly, also between training and held-out data",
        declare_dedup,
        run_dedup,
        "Settings of the configuration, or of the source, are given as --name=value: --seed=1, --limit=1000.",
    ),
    Command(("data", "index"), "make and check the offset index of tar shards and files of records", declare_index, run_index, OVERRIDES),
    Command(
        ("data", "rollout"),
        "predict the futures of pictures, for a model with world steps",
        declare_rollout,
        run_rollout,
        "Settings of the configuration, or of the source, are given as --name=value: --seed=1, --options.size=[64,64].",
    ),
    Command(("data", "step"), "list the samples of any step of a run", declare_step, run_step, OVERRIDES),
    Command(
        ("data", "shard"),
        "pack any source into tar shards, or encode pictures into bucketed latent shards",
        declare_shard,
        run_shard,
        _SHARD_SETTINGS,
    ),
)
