"""Open held-out data and choose its samples, the same ones every time and on any number of ranks.

An entry is an item of the `evaluate:` list, a source one data set. A bench is a metric; DATASET:SPLIT means that dataset's own metric.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait.assembly import sample_losses
from plait.assembly.data import open_data, open_validation
from plait.assembly.fixed_order import FixedOrder
from plait.assembly.model import ModelBundle
from plait.config.schema import Evaluate, RunConfig, SourceEntry
from plait.data.loading.loader import Loader
from plait.data.order import SampleId, permute
from plait.data.sources.contract import Source, read
from plait.engine import evaluation
from plait.engine.evaluation import Bench, HeldOut
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.families import offers, registry
from plait.families.ablation import Ablation, ablated
from plait.keys import key


def choose(sizes: Sequence[int], count: int | None, seed: int) -> tuple[SampleId, ...]:
    """Choose `count` samples (None: all) at random from sources of lengths `sizes`, all samples equally likely.

    They are in the order of the draw, which `seed` alone decides: a larger count begins with the same samples.
    """
    total = sum(sizes)
    chosen = []
    for position in range(total if count is None else min(count, total)):
        index, source = int(permute(position, total, seed, "held-out")), 0
        while index >= sizes[source]:
            index, source = index - sizes[source], source + 1
        chosen.append(SampleId(source, int(index), 0))
    return tuple(chosen)


def benchmark(config: RunConfig, bench: str) -> tuple[str, SourceEntry]:
    """Return (metric's name, `data:` item that reads the samples) for a `bench` "DATASET:SPLIT". Raises PlaitError if it is unknown."""
    name, _, split = bench.partition(":")
    catalogue = offers.datasets(config.family)
    try:
        rule, split = catalogue.rule_of(name), catalogue.split_of(name, split)
    except PlaitError as error:
        raise PlaitError(f"bench {bench!r}: {error}") from error
    return rule, SourceEntry(source="dataset", name=name, split=split)


def benches(config: RunConfig, entries: Sequence[Evaluate]) -> dict[str, Bench]:
    """Return the family's benches (metrics) by name, and one per "DATASET:SPLIT" of `entries`. Raises PlaitError for an unknown one."""
    known = dict(registry.benches(config.family))
    for entry in entries:
        if ":" in entry.bench:
            rule = benchmark(config, entry.bench)[0]
            if rule not in known:
                raise PlaitError(
                    f"bench {entry.bench!r}: its rule {rule!r} is no bench of family {config.family!r}: known: {', '.join(sorted(known))}"
                )
            known[entry.bench] = known[rule]
        if entry.ablate is not None:
            known[entry.title] = _ablated(config, entry, known)
    evaluation.check(entries, known)
    return known


def ablation_of(config: RunConfig, name: str) -> Ablation:
    """Return the input of this name that can be left out. Raises PlaitError where the family or this model has none of that name."""
    section, listed = registry.load(config.family).Config.model_validate(config.model), registry.ablations(config.family)
    if (ablation := listed.get(name)) is None:
        raise PlaitError(
            f"family {config.family!r} has no input {name!r} that can be left out (ablate): known: {', '.join(listed) or 'none'}"
        )
    if (reason := ablation.lacks(section)) is not None:
        raise PlaitError(f"there is no {name} to leave out (ablate): {reason}")
    seen = ablation.seen
    return ablation if seen is None else replace(ablation, content=lambda sample: seen(sample, section))


def _ablated(config: RunConfig, entry: Evaluate, known: Mapping[str, Bench]) -> Bench:
    """Return the bench of an entry that leaves an input out. Raises PlaitError for an input that the family or this model has not."""
    ablation, family = ablation_of(config, str(entry.ablate)), registry.load(config.family)
    section = family.Config.model_validate(config.model)
    if entry.bench not in known and entry.bench != evaluation.LOSS:
        evaluation.check([entry], known)
    bench = sample_losses.bench(family.Loss(section)) if entry.bench == evaluation.LOSS else known[entry.bench]
    return ablated(bench, str(entry.ablate), ablation)


class HeldOutData:
    """The held-out sources of a run's `evaluate:` entries, opened when first asked for, each once.

    An entry's sources are its `data`, or the dataset that its `bench` names as DATASET:SPLIT, else what `data` of `config` holds out.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.opened: dict[str, list[Source]] = {}

    def of(self, entry: Evaluate) -> tuple[list[Source], tuple[SampleId, ...]]:
        """Return the opened sources of an `evaluate:` entry, and the ids of the samples to evaluate on. Raises PlaitError without data."""
        config = self.config
        listed = entry.data or ([benchmark(config, entry.bench)[1]] if ":" in entry.bench else [])
        if not (listed or config.data.holds_out):
            raise PlaitError(f"evaluate runs bench {entry.bench!r} but there is no held-out data; list some under data.validation")
        if (name := repr(listed)) not in self.opened:
            self.opened[name] = open_data(config, listed, "validation") if listed else open_validation(config)
        opened = self.opened[name]
        return opened, choose([len(source) for source in opened], entry.samples, config.seed)

    def fingerprints(self, entries: Sequence[Evaluate]) -> dict[str, str]:
        """Return {name: content hash} of the held-out sources of `entries`, each with its bench in the name, to compare between ranks."""
        benches = [entry.bench for entry in entries]
        opened = [(place, number, source) for place, entry in enumerate(entries) for number, source in enumerate(self.of(entry)[0], 1)]
        return {
            f"{source.name} (held-out source {number} of bench {benches[place]}{_nth(benches, place)})": source.fingerprint
            for place, number, source in opened
        }


def _nth(benches: Sequence[str], place: int) -> str:
    """Return which of several entries with one bench is at `place`, for names: ", entry 2" of evaluate; "" where it is the only one."""
    return f", entry {place + 1}" if benches.count(benches[place]) > 1 else ""


@dataclass(frozen=True)
class ChosenSamples:
    """The samples of an `evaluate:` entry, each read when it is indexed, since a whole benchmark may not fit into memory.

    `opened`: the entry's sources. `ids`: the samples chosen from them, in the order of this sequence. `seed`: the run's, to read them as
    its held-out loss does, each with its key; None: without random choices.
    """

    opened: Sequence[Source]
    ids: Sequence[SampleId]
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> Any:
        source, index, _ = self.ids[position]
        if self.seed is None:
            return read(self.opened[source], index)
        own = key(self.seed, "sample", *self.ids[position])  # as of the loader
        return {**read(self.opened[source], index, own), sample_losses.KEY: own}

    def name(self, position: int) -> str:
        """Return a name for the sample at `position`, such as "coco[17]", without reading it."""
        return f"{self.opened[self.ids[position].source].name}[{self.ids[position].index}]"


def open_held_out(
    bundle: ModelBundle, config: RunConfig, ranks: Ranks, data: HeldOutData | None = None, stop: Callable[[], bool] = lambda: False
) -> HeldOut:
    """Return the functions that open held-out data of an `evaluate:` entry: `batches` for the loss, `samples` for other benches.

    `batches(entry)` iterates over this rank's part of the chosen samples, encoded for the model of `bundle`, `entry.batch` at a time;
    `samples(entry)` is a sequence of all of them as their sources give them. `config`: says where data is. `data`: opened sources to use
    again; None: open them. `stop`: called while batches are read; once it returns True, they end. The functions raise PlaitError for data
    that cannot be opened.
    """
    held_out = data or HeldOutData(config)

    def batches(entry: Evaluate) -> Loader:
        opened, chosen = held_out.of(entry)
        order = FixedOrder.of(chosen, opened, entry.batch * ranks.size)
        return Loader(
            opened,
            order,
            bundle.inputs(config, train=False),
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.size,
            micro_batch=entry.batch,
            pin=ranks.device.type == "cuda",
            workers=config.data.workers,
            kind="threads",
            prefetch=config.data.prefetch,
            start_step=0,
            stop_step=order.steps,
            replace=False,
            interrupted=stop,
        )

    return HeldOut(batches, lambda entry: ChosenSamples(*held_out.of(entry), seed=sample_losses.seed_of(entry, config)))
