"""Predicted futures of samples: latents of a world encoder, written once by `plait data rollout` and read beside each sample in training.

A folder has `rollout.json`, which says of what data, by which predictor and with which encoder they are made, and parts of safetensors
files with latents (T, C, h, w) by a sample's index: T = 1 + steps latent frames, of which the first is the picture. A part has the samples
that cannot be used with the reason. This file imports no torch: the family reads the tensors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from safetensors import SafetensorError, safe_open

from plait.data.sources.contract import Sample, Source
from plait.errors import BadSample, PlaitError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "rollout.json"
"""The file of a folder of futures that says what they are; it is written first, and parts follow."""
FIELD = "rollout"
"""Key of a sample: its `Rollout`."""
FORMAT = 2
_TABLE = "samples"
"""The key of a part's metadata with {"skipped": {index: reason}, "xxh3": {index: hash of its latents}} as JSON."""


@dataclass(frozen=True)
class Rollout:
    """Where the future of one sample lies: tensor `name` of `file`, and `encoder`, the pin of the encoder it is made with.

    `steps`: latent frames after the first.
    """

    file: str
    name: str
    steps: int
    encoder: Mapping[str, Any]


def part_path(folder: Path, number: int) -> Path:
    """Return the path of part `number` of a folder of futures."""
    return folder / f"part-{number:05d}.safetensors"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what `rollout.json` of a folder says. Raises PlaitError if it is missing, damaged or of another format."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlaitError(f"{folder} has no {MANIFEST}: it is no folder of futures; make one with `plait data rollout`") from None
    except (OSError, ValueError) as error:
        raise PlaitError(f"{path} cannot be read ({error}): remove the folder and make it again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise PlaitError(f"{path} is not of format {FORMAT}: make the futures again with this version of plait")
    return manifest


class RolledSource(Source):
    """A source whose samples have a future, key `rollout`, from a folder that `plait data rollout` wrote.

    Raises PlaitError where the folder is of other data, or not finished.
    """

    def __init__(self, whole: Source, folder: Path, seed: int) -> None:
        self.whole, self.folder = whole, folder
        self.manifest = read_manifest(folder)
        made = self.manifest["source"]
        if made["fingerprint"] != whole.fingerprint:
            raise PlaitError(
                f"rollout: {folder} has futures of {made['name']}, {made['samples']} samples, not of this data ({len(whole)} samples), or "
                "its options, limit, filter, split or seed are others: make them again with `plait data rollout`"
            )
        if self.manifest["seed"] not in (None, seed):
            raise PlaitError(
                f"rollout: {folder} is made with the random encoder of seed {self.manifest['seed']}, and the run's seed is {seed}"
            )
        count = -(-len(whole) // self.manifest["per_part"])
        if (missing := [number for number in range(count) if not part_path(folder, number).is_file()]) and len(whole):
            raise PlaitError(
                f"rollout: {folder} lacks {len(missing)} of {count} parts, the first {part_path(folder, missing[0]).name}: the same "
                "`plait data rollout` finishes it"
            )
        self.name, self.groups, self.has_template = whole.name, whole.groups, whole.has_template
        self.allow_blank, self.may_wait, self.left_out = whole.allow_blank, whole.may_wait, dict(whole.left_out)
        self.filtered, self.unfiltered, self.stream = dict(whole.filtered), whole.unfiltered, whole.stream
        self.fingerprint = xxhash.xxh3_64_hexdigest(json.dumps([whole.fingerprint, self.manifest], sort_keys=True).encode())

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int, /) -> Sample:
        return self._rolled(self.whole[index], index)

    def draw(self, index: int, sample_key: int) -> Sample:
        """Return sample `index` with its future, drawn by the whole source with the 64-bit seed `sample_key`."""
        return self._rolled(self.whole.draw(index, sample_key), index)

    def peek(self, index: int) -> Sample:
        """Return what the whole source tells of sample `index`, with its future."""
        return self._rolled(self.whole.peek(index), index)

    def sketch(self, index: int) -> Sample:
        """Return what the whole source tells of sample `index` and the sizes of its pictures, with its future."""
        return self._rolled(self.whole.sketch(index), index)

    def places(self, indices: Any) -> Any:
        """Return the indices that samples have in the whole source before any filter."""
        return self.whole.places(indices)

    @property
    def maker(self) -> str:
        """Return the import path of the class of the whole source."""
        return self.whole.maker

    def table(self, global_batch: int) -> list[Mapping[str, Any]]:
        """Return the whole source's table, a dict per bucket. `global_batch`: samples per step."""
        return self.whole.table(global_batch)

    def _rolled(self, sample: Sample, index: int) -> Sample:
        file = part_path(self.folder, index // self.manifest["per_part"])
        return {**sample, FIELD: Rollout(str(file), str(index), self.manifest["steps"], self.manifest["encoder"])}


def open_rolled(source: Source, folder: str, seed: int) -> Source:
    """Return `source` with the futures in `folder` beside its samples. `seed`: the run's, which a random encoder is drawn from.

    Raises PlaitError where the futures are of other data, not finished, or of another random encoder.
    """
    return RolledSource(source, Path(folder), seed)


def read(rollout: Rollout, encoder: Mapping[str, Any], steps: int) -> "Tensor":
    """Return the first 1 + `steps` latent frames (T, C, h, w) of a sample's future, a torch tensor. `encoder`: the pin of the model's.

    Raises PlaitError where the future is of another encoder, or shorter; BadSample where this sample has none.
    """
    folder = Path(rollout.file).parent
    if other := next((name for name in encoder if rollout.encoder.get(name) != encoder[name]), None):
        raise PlaitError(
            f"rollout: {folder} is made with an encoder of {other} {rollout.encoder.get(other)}, and that of model.world is "
            f"{encoder[other]}: make the futures again with `plait data rollout`, or set model.world as they were made"
        )
    if rollout.steps < steps:
        raise PlaitError(f"rollout: {folder} has {rollout.steps} latent frames after the first, and model.world.steps is {steps}: lower it")
    return read_tensor(rollout)[: 1 + steps]


def read_tensor(rollout: Rollout) -> "Tensor":
    """Return the latents (T, C, h, w) of a sample, a torch tensor. Raises BadSample where it has none, with the reason, or is damaged."""
    try:
        with safe_open(rollout.file, framework="pt") as part:
            table = json.loads(part.metadata()[_TABLE])
            if rollout.name in table["skipped"]:
                raise BadSample(f"it has no future: {table['skipped'][rollout.name]}")
            latents: Tensor = part.get_tensor(rollout.name)
        if content_hash(latents) != table["xxh3"].get(rollout.name):
            raise BadSample(f"its future in {rollout.file} is damaged; remove that file and make it again with `plait data rollout`")
        return latents
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise BadSample(f"its future cannot be read from {rollout.file}: {error}; remove that file and make it again") from error


def part_metadata(latents: Mapping[str, "Tensor"], skipped: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a part: a hash of each sample's latents, by index; and {index: reason} of samples without a future."""
    hashes = {name: content_hash(value) for name, value in latents.items()}
    return {_TABLE: json.dumps({"skipped": skipped, "xxh3": hashes}, sort_keys=True)}  # one key: their order is not kept


def reasons(path: Path) -> dict[str, str]:
    """Return why samples of a whole part have no future, by index."""
    with safe_open(path, framework="pt") as part:
        skipped: dict[str, str] = json.loads(part.metadata()[_TABLE])["skipped"]
    return skipped


def content_hash(latents: "Tensor") -> str:
    """Return a hash (xxh3) of the bytes of latents."""
    octets = latents.new_empty(0).byte().dtype  # torch.uint8
    return xxhash.xxh3_64_hexdigest(latents.contiguous().view(octets).numpy().data)


def is_whole(path: Path) -> bool:
    """Return whether a part can be read, and all latents in it are those that were written."""
    try:
        with safe_open(path, framework="pt") as part:
            hashes = json.loads(part.metadata()[_TABLE])["xxh3"]
            return set(hashes) == set(part.keys()) and all(content_hash(part.get_tensor(name)) == hashes[name] for name in hashes)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError):
        return False
