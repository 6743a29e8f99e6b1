"""Encode the first samples of a stage as its model sees them, by the loader's code with the run's random seeds.

No weights are read. Unusable ones are replaced, as in training. A view is the configuration of one stage (part of a run).
"""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from plait.assembly.data import TrainingData, data_seed, open_data, open_training, open_validation
from plait.assembly.fixed_order import FixedOrder
from plait.assembly.held_out import choose
from plait.assembly.model import write_assets
from plait.config.resolved import Resolved, StageView
from plait.config.schema import RunConfig
from plait.data.buckets import BucketOrder
from plait.data.loading import truncation
from plait.data.loading.micro_batch import Bad, MicroBatchBuilder, collated
from plait.data.order import BatchChanges, Order, Ordering, SampleId, rank_slices
from plait.data.sources.contract import Sample, Source, read
from plait.errors import PlaitError, sample_errors
from plait.families import registry
from plait.families.contract import Family
from plait.families.limits import check_max_tokens
from plait.families.signatures import Inputs
from plait.keys import key
from plait.training.batching import token_lengths
from plait.training.batching.token_lengths import Prepared

_STEPS_SEARCHED = 2_000
"""Number of steps that are searched for a sample of every bucket (image size)."""


@dataclass(frozen=True)
class _Watched:
    """A family's inputs whose examples are pairs of the sample and the example itself."""

    inputs: Inputs

    def encode(self, sample: dict[str, Any], sample_key: int) -> tuple[dict[str, Any], Any]:
        """Return (sample, example)."""
        return sample, self.inputs.encode(sample, sample_key)

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        """Return the batch of the examples alone."""
        return self.inputs.collate([example for _, example in examples])


@dataclass(frozen=True)
class Seen:
    """One sample as the model sees it. `id`: its source and index; `sample`: as the source gave it; `example`: encoded.

    `shown`: what the family's `inspect` returns for the example. `cut`: whether data.max_tokens cut some of its text off.
    """

    id: SampleId
    sample: dict[str, Any]
    example: Any
    shown: dict[str, Any]
    cut: bool


class First(NamedTuple):
    """The first samples of a stage: the `ids` asked for, the stage's `order`, what was `seen`, and what was `bad` and replaced."""

    ids: Sequence[SampleId]
    order: Ordering
    seen: list[Seen]
    bad: list[Bad]


@dataclass(frozen=True)
class StageSamples:
    """The opened data of a stage, "train" or "validation" (`split`), and what encodes it."""

    view: StageView
    family: Family
    split: str
    data: TrainingData
    inputs: Inputs
    order: Order | BucketOrder | None
    """The order of the stage's steps; None of held-out data."""

    @classmethod
    def of(cls, view: StageView, family: Family, section: Any, assets: Path, split: str) -> "StageSamples":
        """Open the data of a stage. `section`: the `model:` section; `assets`: a folder of the model's files. Raises PlaitError."""
        config = view.config
        data = open_training(config) if split == "train" else TrainingData(_held_out(config), [])
        check_max_tokens(config.data.max_tokens, family.limits(section))
        inputs = _inputs(config, family, section, assets, train=split == "train")
        if split != "train":
            return cls(view, family, split, data, inputs, None)
        data, order, _ = token_lengths.prepare(view, data, family, inputs)
        return cls(view, family, split, data, inputs, order)

    def first(self, samples: int) -> First:
        """Encode the first samples, in the order of the run's steps. Raises PlaitError where too many are unusable."""
        ids, seed, order = self._first(samples)
        builder = MicroBatchBuilder(tuple(self.data.sources), order, _Watched(self.inputs), seed, rank=0, world_size=1, micro_batch=None)
        first = First(ids, order, [], [])
        for wanted in ids:
            value, chosen, bad, _ = builder.encode(wanted)
            first.seen.append(self._seen(chosen, *value))
            first.bad.extend(bad)
        return first

    def _first(self, samples: int) -> tuple[Sequence[SampleId], int, Ordering]:
        """Return the first ids of the stage, the seed of its sample keys, and its order, as the run has them."""
        config, order = self.view.config, self.order
        if order is None:
            chosen = choose([len(source) for source in self.data.sources], samples, config.seed)
            return chosen, config.seed, FixedOrder.of(chosen, self.data.sources, config.train.global_batch)
        seed = data_seed(self.view)
        if isinstance(order, BucketOrder):
            return _of_every_bucket(order, samples), seed, order
        steps = -(-samples // config.train.global_batch)
        return [sample_id for step in range(steps) for sample_id in order.ids(step)][:samples], seed, order

    def encode(self, chosen: SampleId) -> Seen:
        """Encode one sample of the training order as the run does. Raises BadSample if it cannot be used."""
        sample_key = key(data_seed(self.view), "sample", *chosen)
        with sample_errors:
            sample = read(self.data.sources[chosen.source], chosen.index, sample_key)
            return self._seen(chosen, sample, self.inputs.encode(sample, sample_key))

    def _seen(self, identity: SampleId, sample: Sample, example: Any) -> Seen:
        assert self.family.inspect is not None
        cut = bool(sum(collated(self.inputs, [example]).get("cut", ())))
        return Seen(identity, sample, example, self.family.inspect(self.inputs, sample, example), cut)


def _inputs(config: RunConfig, family: Family, section: Any, assets: Path, *, train: bool) -> Inputs:
    """Return the family's inputs, which refuse what the configuration refuses."""
    inputs = family.Inputs(section, assets, max_tokens=config.data.max_tokens, pad=config.data.pad, train=train)
    return truncation.inputs_of(inputs, config.data, train=train)


def ordered(view: StageView, batches: BatchChanges) -> Prepared:
    """Open the training data of a stage; return it with its order and slicing. `batches`: as (step, samples per step).

    Raises PlaitError for data that cannot be opened.
    """
    config, data = view.config, open_training(view.config)
    if not config.data.needs_lengths:
        return Prepared(data, data.order(view, batches), rank_slices)
    family = registry.load(config.family)
    section = family.Config.model_validate(config.model)
    with assets_of(config) as assets:
        return token_lengths.prepare(view, data, family, _inputs(config, family, section, assets, train=True), batches)


def showing(resolved: Resolved) -> Family:
    """Return the family of a configuration. Raises PlaitError for one that does not say what its model sees."""
    family = registry.load(resolved.config.family)
    if family.inspect is None:
        raise PlaitError(f"family {family.name!r} has no `inspect`: it does not say what its model sees")
    return family


@contextlib.contextmanager
def assets_of(config: RunConfig) -> Iterator[Path]:
    """Yield the run's folder of assets that its family made; before the run, a temporary folder with the same content."""
    existing = Path(config.run) / "assets" if config.run else None
    if existing is not None and existing.is_dir():
        yield existing
        return
    with tempfile.TemporaryDirectory() as temporary:
        write_assets(config, Path(temporary))
        yield Path(temporary)


def _held_out(config: RunConfig) -> Sequence[Source]:
    """Open the sources of held-out figures: what `data` holds out, else those of the first `evaluate` entry that has any."""
    if config.data.holds_out:
        return open_validation(config)
    entries = next((entry.data for entry in config.evaluate if entry.data), [])
    if not entries:
        raise PlaitError("the configuration has no validation data to look at: list some under data.validation, or hold out a share: 1%")
    return open_data(config, entries, "validation")


def _of_every_bucket(order: BucketOrder, samples: int) -> list[SampleId]:
    """Return the first samples of each bucket in the order of the run's steps, by turns. A step has only one of them."""
    count = sum(len(lengths) for lengths in order.groups)
    first: dict[tuple[int, int], list[SampleId]] = {}
    for step in range(_STEPS_SEARCHED):
        ids = first.setdefault(order.bucket(step), [])
        if len(ids) * count < samples:
            ids += order.ids(step)
        if len(first) == count and all(len(ids) * count >= samples for ids in first.values()):
            break
    return [sample_id for turn in itertools.zip_longest(*first.values()) for sample_id in turn if sample_id is not None][:samples]
