"""What `plait data rollout` does: write predicted futures of a source's samples, as latents of a model's world encoder, into a folder.

The folder has rollout.json and parts, which appear whole or not at all: the same command finishes what was stopped.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from plait import files
from plait.assembly.checked_configuration import open_checked
from plait.assembly.data import open_data
from plait.assembly.model import seed_of
from plait.commands.actions.shard_data import entry, show_progress
from plait.config.messages import flag
from plait.config.schema import RunConfig, SourceEntry
from plait.data.rollouts import stored
from plait.data.sources.contract import Source
from plait.errors import BadSample, PlaitError
from plait.families import registry
from plait.families.futures import Futures, Request, opener

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutOptions:
    """How futures are made. `predictor`: "copy", "scenes", or a video world model's folder or Hub name, of `revision`.

    `model`: the configuration whose world encoder and seed count, None where the source is one; `split` and `number`: which entry of its
    data, by list and place; `steps`: latent frames after the first, None: model.world.steps; `limit`: samples; `batch`: per call of the
    encoder; `per_part`: samples in a file; `dtype`: of latents and predictor; `prompt`, `inference_steps`, `guidance`: of a video world
    model; `device`: where it and the encoder compute.
    """

    predictor: str
    model: Path | None = None
    split: str = "train"
    number: int = 0
    steps: int | None = None
    limit: int | None = None
    batch: int = 16
    per_part: int = 256
    dtype: str = "bfloat16"
    prompt: str = ""
    inference_steps: int = 35
    guidance: float = 7.0
    revision: str | None = None
    device: str = "cpu"


OPTIONS = frozenset(RolloutOptions.__dataclass_fields__)
"""The names of its fields."""
_MOST_REASONS = 5  # that are told of samples without a future, the most frequent first
_OF_FRAMES = ("copy", "scenes")
_OF_MODELS = ("prompt", "inference_steps", "guidance", "revision")


def roll_out(what: str, out: Path, options: RolloutOptions, settings: Sequence[str] = ()) -> None:
    """Predict the futures of the source `what` into the folder `out`, or finish one that was stopped.

    `what`: a configuration or run, whose data it is, or a source as `plait data shard` takes it, with `settings` such as "limit=100".
    Raises PlaitError for a wrong argument, source or setting, for a folder that holds something else, and where no sample has a future.
    """
    own = Path(what).suffix in (".yaml", ".yml", ".json") or (Path(what) / "config.yaml").is_file()
    if not own and options.model is None:
        raise PlaitError(f"--model: name the configuration whose world encoder is to see the futures of {what}")
    if own and options.model is not None:
        raise PlaitError(f"--model={options.model}: {what} is a configuration, whose own world encoder counts; give one of the two")
    config = open_checked(Path(what) if own else options.model or Path(), settings if own else ()).config
    _refuse_idle(options, own=own)
    open_futures = opener(config.family)
    if open_futures is None:
        raise PlaitError(f"family {config.family} learns from no futures: it has no module futures.py")
    row = _entry_of(config, options) if own else entry(what, settings)
    if options.limit is not None:
        row = row.model_copy(update={"limit": options.limit})
    source = open_data(config, [row.model_copy(update={"rollout": None})], options.split)[0]
    shared = {name: getattr(options, name) for name in Request.__dataclass_fields__ if name in OPTIONS}
    section = registry.model_config(config.family).model_validate(config.model)
    made = open_futures(section, Request(**shared, options=row.options), seed=seed_of(config))
    for line in made.lines:
        log.info(line)
    manifest = {
        "format": stored.FORMAT,
        "source": {"name": source.name, "fingerprint": source.fingerprint, "samples": len(source)},
        "with": made.made_by,
        "encoder": made.encoder,
        "seed": None if made.seed is None else config.seed,
        "steps": made.steps,
        "dtype": options.dtype,
        "per_part": options.per_part,
    }
    _begin(out, manifest)
    _write(source, out, options, made)


def _refuse_idle(options: RolloutOptions, *, own: bool) -> None:
    """Raise PlaitError for an option that changes nothing. `own`: whether the source is a configuration."""
    idle = dict.fromkeys(_OF_MODELS, "only a video world model takes it") if options.predictor in _OF_FRAMES else {}
    idle |= {} if own else {"number": "the source is no configuration, which has several"}
    for name, why in idle.items():
        if getattr(options, name) != RolloutOptions.__dataclass_fields__[name].default:
            raise PlaitError(f"{flag(name)} changes nothing: {why}; leave it out")


def _entry_of(config: RunConfig, options: RolloutOptions) -> SourceEntry:
    entries = config.data.train if options.split == "train" else config.data.validation_sources
    if not 0 <= options.number < len(entries):
        raise PlaitError(f"--number={options.number}: data.{options.split} has {len(entries)} entries, counted from 0")
    return entries[options.number]


def _begin(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write rollout.json into a new folder, or check that a folder that was begun is of the same settings."""
    path = out / stored.MANIFEST
    if path.is_file():
        before, now = stored.read_manifest(out), json.loads(json.dumps(manifest))
        if other := [name for name in now if before.get(name) != now[name]]:
            raise PlaitError(f"{out} was begun with another {other[0]}: {before.get(other[0])}, now {now[other[0]]}; name a new folder")
    elif out.is_dir() and any(out.iterdir()):
        raise PlaitError(f"{out} is not empty and has no {stored.MANIFEST}: name a new folder")
    else:
        files.write_json(path, manifest)


def _write(source: Source, out: Path, options: RolloutOptions, futures: Futures) -> None:
    """Write the parts that are missing or damaged, each whole or not at all, and tell what was made and why samples have no future.

    Raises PlaitError where no sample has one, and removes what was written: the same command tries again.
    """
    count, written, without = -(-len(source) // options.per_part), 0, Counter[str]()
    with show_progress() as report:
        for number in range(count):
            path = stored.part_path(out, number)
            if path.is_file() and not stored.is_whole(path):
                log.warning(f"{path} is damaged: made again")
                path.unlink()
            if not path.is_file():
                indices = range(number * options.per_part, min((number + 1) * options.per_part, len(source)))
                tensors, reasons = _part(source, indices, options, futures)
                files.write_whole(path, save(tensors, stored.part_metadata(tensors, reasons)))
                written += len(tensors)
            without.update(stored.reasons(path).values())
            report("futures", min((number + 1) * options.per_part, len(source)), len(source))
    missing = without.total()
    told = "; ".join(f"{reason} ({number})" for reason, number in without.most_common(_MOST_REASONS))
    told += f"; and {len(without) - _MOST_REASONS} other reasons" if len(without) > _MOST_REASONS else ""
    if missing and missing == len(source):
        for number in range(count):
            stored.part_path(out, number).unlink()
        (out / stored.MANIFEST).unlink()
        raise PlaitError(f"none of {missing} samples has a future, so nothing is kept in {out}: {told}; mend the data and run this again")
    log.info(f"{out}: futures of {written} samples written, {missing} of {len(source)} samples without one{': ' * bool(told)}{told}")


def _part(source: Source, indices: range, options: RolloutOptions, futures: Futures) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the latents of these samples by index, and why the others have none."""
    tensors: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    for start in range(indices.start, indices.stop, options.batch):
        chosen: list[tuple[int, Mapping[str, Any]]] = []
        for i in range(start, min(start + options.batch, indices.stop)):
            try:
                chosen.append((i, source[i]))
            except BadSample as error:
                reasons[str(i)] = str(error)
        found = futures.predict([sample for _, sample in chosen], [i for i, _ in chosen])
        for i, latents in found.items():
            if isinstance(latents, str):
                reasons[str(i)] = latents
            else:
                tensors[str(i)] = latents.to(getattr(torch, options.dtype)).contiguous()
    return tensors, reasons
