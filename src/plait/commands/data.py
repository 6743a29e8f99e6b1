"""The commands `plait data ...`: draw samples as the model sees them, index data files, encode pictures, predict their futures.

For each, a `declare_...` adds its arguments to a parser, and a `run_...` does its work with what was parsed.
"""

from pathlib import Path

from plait.assembly.checked_configuration import open_checked
from plait.commands.arguments import add_config, path, positive
from plait.commands.command import OVERRIDES, Arguments, Command, Parser


def declare_inspect(parser: Parser) -> None:
    """Add the arguments of `plait data inspect` to its parser."""
    add_config(parser)
    parser.add_argument("--samples", type=positive, default=12)
    parser.add_argument("--out", type=path, help="new folder for the picture and the page (default: inspect, then inspect-2, ...)")
    parser.add_argument("--split", choices=("train", "validation"), default="train")


def run_inspect(arguments: Arguments) -> None:
    """Draw the first samples that a run of the argument `config` would train on, or evaluate on, into the folder `out`.

    Raises PlaitError for a faulty configuration or data, and for a folder that is not empty.
    """
    resolved = open_checked(arguments.config, arguments.overrides, words=arguments.words)
    from plait.commands.actions import inspect_data

    inspect_data.draw(resolved, arguments.split, arguments.samples, arguments.out)


def declare_index(parser: Parser) -> None:
    """Add the arguments of `plait data index` to its parser."""
    parser.add_argument("path", help="a shard, a file of records (.jsonl, .json, .csv, .tsv), a folder of shards, or a pattern")
    parser.add_argument("--beside", action="store_true", help="keep each index beside its shard, to upload or share it; else in the cache")


def run_index(arguments: Arguments) -> None:
    """Build missing and outdated indexes of the files that the argument `path` names, and print what is in each file.

    `path` is a file, a folder of shards or a pattern. Raises PlaitError for a file that cannot be read.
    """
    from plait.commands.actions import index_data

    index_data.index(arguments.path, beside=arguments.beside)


def declare_shard(parser: Parser) -> None:
    """Add the arguments of `plait data shard` to its parser."""
    parser.add_argument("source", help="a folder of pictures, a .jsonl, tar shards, or `scenes`")
    parser.add_argument("out", type=path, nargs="?", help="folder of the set; the same command finishes a build that was stopped")
    parser.add_argument("--split", default="train", help="part of the source")
    parser.add_argument("--buckets", help="sizes to crop to, WIDTHxHEIGHT,... (default: the five of 1024 x 1024 pixels)")
    parser.add_argument("--bucket", action="append", default=[], help="write only this one of them; may be repeated")
    parser.add_argument("--latents", help="VAE: a folder, a Hub repository[/part][@revision], or tiny[:4x48], to try things out")
    parser.add_argument("--texts", help="T5 encoder, named likewise, or tiny[:64]")
    parser.add_argument("--images", help="DINOv3, named likewise, or tiny")
    parser.add_argument("--max-tokens", type=positive, help="of a caption (default: 512, tiny 64)")
    parser.add_argument("--min-side", type=positive, help="skip pictures with a shorter side, in pixels")
    parser.add_argument("--uncaptioned", action="store_true", help="write pictures without a caption too (default: they are skipped)")
    parser.add_argument("--limit", type=positive, help="read at most so many samples, a fair part of all")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which samples are taken")
    parser.add_argument("--batch", type=positive, default=16, help="pictures per call of an encoder")
    parser.add_argument("--per-shard", type=positive, default=1000, help="samples per shard, at most 1000")
    parser.add_argument("--statistics", choices=("measured", "published"), default="measured", help="what normalises the latents")
    parser.add_argument("--like", type=path, help="share the statistics of this set (for held-out data)")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode pictures")
    parser.add_argument("--device", default="cpu", help="of the encoders, such as cuda")
    parser.add_argument("--dry-run", action="store_true", help="only count what each bucket would hold")
    parser.add_argument("--measure", action="store_true", help="SOURCE is a set made elsewhere: write its metadata.json")


def run_shard(arguments: Arguments) -> None:
    """Encode pictures of the argument `source` into latent shards in the folder `out`, or finish a folder that was begun.

    With `--measure`, write metadata.json for the shards `source`, made by another tool. Raises PlaitError for a wrong argument or source.
    """
    from plait.commands.actions import shard_data

    if arguments.measure:
        shard_data.measure(Path(arguments.source))
        return
    given = {name: value for name, value in vars(arguments).items() if name in shard_data.OPTIONS and value is not None}
    shard_data.shard(arguments.source, arguments.out, shard_data.ShardOptions(**given), arguments.overrides)


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
    parser.add_argument("--split", choices=("train", "validation"), default="train")
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
        "draw what the model sees: pixels, prompt, supervised text",
        declare_inspect,
        run_inspect,
        OVERRIDES,
        scripts=True,
    ),
    Command(("data", "index"), "make and check the offset index of tar shards and files of records", declare_index, run_index),
    Command(
        ("data", "rollout"),
        "predict the futures of pictures, for a model with world steps",
        declare_rollout,
        run_rollout,
        "Settings of the configuration, or of the source, are given as --name=value: --seed=1, --options.size=[64,64].",
    ),
    Command(("data", "shard"), "encode pictures with captions into bucketed latent shards", declare_shard, run_shard, _SHARD_SETTINGS),
)
