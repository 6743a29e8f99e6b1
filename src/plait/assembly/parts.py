"""What a configuration stands for: the family, its model on a device, its inputs and its opened data.

Training, evaluation and generation all begin here.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import xxhash
from torch import nn

from plait import files
from plait.assembly import checkpoint_specs
from plait.config import mixture
from plait.config.resolved import StageView, folder
from plait.config.schema import Evaluate, RunConfig, Source
from plait.data.buckets import BucketOrder, batches_of, order_of
from plait.data.loading.loader import Loader
from plait.data.order import Order, SampleId, permute
from plait.data.sources import open as sources
from plait.data.sources.contract import Absent
from plait.data.sources.contract import Source as SampleSource
from plait.engine import evaluation
from plait.engine.evaluation import HeldOut
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.sharding import Sharding
from plait.errors import PlaitError
from plait.families import registry
from plait.keys import key

DATA_DIR = "MOLMO_DATA_DIR"
"""The environment variable that names the folder of datasets where `data.root` does not: the one the Molmo guide sets."""

_TOKENIZER_SAMPLES = 2_000
"""How many samples of each training source a tokenizer trained on the spot reads."""


@dataclass
class Parts:
    """A family's module, its typed `model:` section and the model built from it."""

    config: RunConfig
    family: ModuleType
    section: Any
    assets: Path
    model: nn.Module
    base: dict[str, str] = field(default_factory=dict)
    """xxh3 of every parameter as built: the reference that frozen weights are pinned to."""
    sharding: Sharding = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.sharding = Sharding(self.model)

    def inputs(self, config: RunConfig, train: bool) -> Any:
        """The family's `Inputs` for training or for held-out data."""
        return self.family.Inputs(self.section, self.assets, max_tokens=config.data.max_tokens, pad=config.data.pad, train=train)

    def frozen_xxh3(self, trained: set[str]) -> str:
        """One xxh3 over the base weights that were never trained."""
        lines = "".join(f"{name}={value}\n" for name, value in sorted(self.base.items()) if name not in trained)
        return xxhash.xxh3_64_hexdigest(lines.encode())


def build(config: RunConfig, run: Path, ranks: Ranks) -> Parts:
    """The model of `config`, in host memory. What a family makes on the spot (a tokenizer) is saved in RUN/assets by rank 0."""
    family = registry.load(config.family)
    section = family.Config.model_validate(config.model)
    assets = run / "assets"
    if ranks.first:
        prepare(config, assets)
    ranks.barrier()
    model = family.build(section, assets, seed=key(config.seed, "init"))
    return Parts(config, family, section, assets, model, hashes(model))


def prepare(config: RunConfig, assets: Path) -> None:
    """Write what the family makes on the spot, from the texts of the training samples, into `assets`; nothing twice.

    A run that starts `from:` another takes over what that one made: trained embeddings mean nothing with another tokenizer.
    """
    inherited = checkpoint_specs.assets(config.from_) if config.from_ and not assets.is_dir() else None
    if inherited is not None:
        files.copy_folder(inherited, assets)
    elif config.from_ and not assets.is_dir() and (exported := checkpoint_specs.tokenizer(config.from_)) is not None:
        files.write_whole(assets / "tokenizer" / exported.name, exported.read_bytes())
    family = registry.load(config.family)
    family.prepare(family.Config.model_validate(config.model), assets, lambda: _texts(config))


def hashes(model: nn.Module) -> dict[str, str]:
    """xxh3 of each parameter by name; every rank takes all, at 0.1 to 0.4 s of a processor per GB."""
    return {name: _hash(value) for name, value in model.named_parameters()}


def _hash(value: torch.Tensor) -> str:
    return xxhash.xxh3_64_hexdigest(value.detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def _texts(config: RunConfig) -> Iterator[str]:
    for source in training(config)[0]:
        for i in range(min(len(source), _TOKENIZER_SAMPLES)):
            sample = source[permute(i, len(source), config.seed, "texts")]
            yield from (message["content"] for message in sample["messages"])


def open_data(config: RunConfig, entries: Sequence[Source], split: str) -> list[Any]:
    """The opened sources of `entries`."""
    root = folder(config.data.root or os.environ.get(DATA_DIR) or "data")

    def known(entry: Source, wanted: str) -> SampleSource:
        return registry.datasets(config.family).open_dataset(entry, wanted, root=root, cache=folder(config.data.cache))

    return sources.open_all(entries, seed=config.seed, split=split, cache=folder(config.data.cache), catalogue=known)


def training(config: RunConfig) -> tuple[list[Any], list[float]]:
    """The opened training sources and their weights: of `data.train`, or of the mixture that stands for it."""
    if config.data.mixture is None:
        return open_data(config, config.data.train, "train"), [entry.weight for entry in config.data.train]
    mixed = mixture.read(registry.mixture(config.family, config.data.mixture), config.data.without, sources.KINDS)
    opened, absent = [], []
    for entry in mixed.entries:
        try:
            opened += open_data(config, [entry], "train")
        except Absent as error:
            absent.append((str(entry.name), error))
    if absent:
        names, first = [name for name, _ in absent], absent[0][1]
        raise PlaitError(
            f"mixture {mixed.title}: {len(names)} of its {len(mixed.entries)} datasets are not there ({', '.join(names)}); "
            f"the first: {first}; to train without them, say so: --data.without='[{', '.join(names)}]'"
        )
    return opened, mixed.weights([len(source) for source in opened])


def check_data(views: Sequence[StageView]) -> None:
    """Open what each stage will read, and let it go: what is missing should not wait for a model, nor for a stage that is days ahead."""
    looked: list[Any] = []
    for view in views:
        config = view.config
        held_out = [*config.data.validation, *(source for bench in config.evaluate for source in bench.data)]
        if (config.data, held_out) not in looked:
            looked.append((config.data, held_out))
            try:
                training(config)
                open_data(config, held_out, "validation")
            except PlaitError as error:
                raise error if view is views[0] else PlaitError(f"stage {view.name}: {error}") from error


@dataclass(frozen=True)
class FixedOrder:
    """Chosen samples in fixed batches, each of one bucket; as an order for the loader."""

    sizes: tuple[int, ...]
    batches: tuple[tuple[SampleId, ...], ...]

    @classmethod
    def of(cls, chosen: Sequence[SampleId], opened: Sequence[Any], batch: int) -> "FixedOrder":
        """Batches of at most `batch` from the samples of `opened`."""
        cut = tuple(tuple(ids) for ids in batches_of(chosen, opened, batch))
        return cls(tuple(len(source) for source in opened), cut)

    def ids(self, step: int) -> list[SampleId]:
        """The ids of batch `step`."""
        return list(self.batches[step])

    @property
    def steps(self) -> int:
        """How many batches there are; the last of a bucket may be smaller."""
        return len(self.batches)


def choose(sizes: Sequence[int], count: int | None, seed: int) -> tuple[SampleId, ...]:
    """`count` held-out samples (all when None) drawn evenly from sources of these sizes by a seeded permutation; the same every time."""
    total = sum(sizes)
    found = []
    for position in range(total if count is None else min(count, total)):
        index, source = int(permute(position, total, seed, "held-out")), 0
        while index >= sizes[source]:
            index, source = index - sizes[source], source + 1
        found.append(SampleId(source, int(index), 0))
    return tuple(found)


AnyOrder = Order | BucketOrder


def stage_order(view: StageView, opened: Sequence[Any], weights: Sequence[float]) -> tuple[int, AnyOrder]:
    """The seed of a stage's data and the order of its samples, in buckets where a source has them. Stages differ, layouts do not."""
    seed = key(view.config.seed, "stage", view.name)
    return seed, order_of(opened, weights, seed, view.config.train.global_batch)


def exam(config: RunConfig, bench: str) -> tuple[str, Source]:
    """The rule and the source that NAME:SPLIT means. Raises PlaitError for an unknown dataset or split, or one that no rule judges."""
    name, _, split = bench.partition(":")
    known = registry.datasets(config.family)
    try:
        rule, split = known.rule_of(name), known.split_of(name, split)
    except PlaitError as error:
        raise PlaitError(f"bench {bench!r}: {error}") from error
    return rule, Source(source="dataset", name=name, split=split)


def benches(config: RunConfig, entries: Sequence[Evaluate]) -> dict[str, Any]:
    """The family's benches, and those that entries name as NAME:SPLIT. Raises PlaitError for one that is unknown."""
    found = dict(registry.benches(config.family))
    for entry in entries:
        if ":" in entry.bench:
            found[entry.bench] = found[exam(config, entry.bench)[0]]
    evaluation.check(entries, found)
    return found


class HeldData:
    """The held-out data of `evaluate:` entries, opened once: an entry's own `data`, that of its NAME:SPLIT, else `data.validation`."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.opened: dict[str, list[Any]] = {}

    def of(self, entry: Evaluate) -> tuple[list[Any], tuple[SampleId, ...]]:
        """The opened sources of an entry, and which of their samples it takes."""
        config = self.config
        listed = entry.data or ([exam(config, entry.bench)[1]] if ":" in entry.bench else config.data.validation)
        if not listed:
            raise PlaitError(f"evaluate runs bench {entry.bench!r} but there is no held-out data; list some under data.validation")
        if (name := repr(listed)) not in self.opened:
            self.opened[name] = open_data(config, listed, "validation")
        found = self.opened[name]
        return found, choose([len(source) for source in found], entry.samples, config.seed)


@dataclass(frozen=True)
class Chosen:
    """Chosen samples of opened sources, read when they are asked for: a whole exam does not fit into memory."""

    opened: Sequence[Any]
    ids: Sequence[SampleId]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> Any:
        return self.opened[self.ids[place].source][self.ids[place].index]

    def name(self, place: int) -> str:
        """What a sample is called that cannot be read."""
        return f"{self.opened[self.ids[place].source].name}[{self.ids[place].index}]"


def held_out(parts: Parts, config: RunConfig, ranks: Ranks, data: HeldData | None = None) -> HeldOut:
    """Access to the held-out data of an `evaluate:` entry."""
    held = data or HeldData(config)

    def batches(entry: Evaluate) -> Loader:
        found, chosen = held.of(entry)
        order = FixedOrder.of(chosen, found, entry.batch * ranks.size)
        cut: dict[str, Any] = {"rank": ranks.rank, "world_size": ranks.size, "micro_batch": entry.batch, "pin": ranks.device.type == "cuda"}
        workers: dict[str, Any] = {
            "workers": config.data.workers,
            "kind": "threads",
            "prefetch": config.data.prefetch,
            "start_step": 0,
            "stop_step": order.steps,
        }
        return Loader(found, order, parts.inputs(config, train=False), seed=config.seed, **cut, **workers)

    return HeldOut(batches, lambda entry: Chosen(*held.of(entry)))
