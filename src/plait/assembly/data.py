"""Open the sources (data sets) of a configuration, and put a stage's samples in order.

A stage is a part of a run, a view its configuration. An entry is an item of `data.train` or `data.validation`, which names a source.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from plait.config import mixture
from plait.config.resolved import StageView, folder
from plait.config.schema import RunConfig, SourceEntry
from plait.data.buckets import BucketOrder
from plait.data.download.absent import all_absent
from plait.data.loading.bucketing import order_of
from plait.data.order import BatchChanges, Order
from plait.data.sources.contract import Absent, Source
from plait.data.sources.open import KINDS, open_all
from plait.data.sources.part import Part
from plait.errors import PlaitError
from plait.families import offers, registry
from plait.families.idle_options import with_futures
from plait.families.limits import check_max_tokens
from plait.keys import key


@dataclass(frozen=True)
class TrainingData:
    """The opened sources of a stage (part of a run), and for each the weight with which samples are drawn from it."""

    sources: Sequence[Source]
    sampling_weights: Sequence[float]

    def names(self) -> list[str]:
        """Return the name of each source; repeated names get a number: ["coco", "coco (2)"]."""
        names = [source.name for source in self.sources]
        earlier = [names[:number].count(name) for number, name in enumerate(names)]
        return [f"{name} ({count + 1})" if count else name for name, count in zip(names, earlier, strict=True)]

    def fingerprints(self) -> dict[str, str]:
        """Return {name: hash of the source's content}, kept in checkpoints so that changed data is noticed."""
        return dict(zip(self.names(), (source.fingerprint for source in self.sources), strict=True))

    def order(self, view: StageView, batches: BatchChanges = ()) -> Order | BucketOrder:
        """Return the order of the stage's samples: its `ids(step)` lists those of a step. A batch is of one bucket (samples of one shape).

        `batches`: (step of the stage, samples per step from it on); default: `train.global_batch`. Raises PlaitError if a source is empty.
        """
        (_, first), *changes = batches or [(0, view.config.train.global_batch)]
        return order_of(self.sources, self.sampling_weights, data_seed(view), first, changes)


def data_seed(view: StageView) -> int:
    """Return the 64-bit seed of a stage's sample order and augmentation: different for each stage, the same on all ranks."""
    return key(view.config.seed, "stage", view.name)


def open_data(config: RunConfig, entries: Sequence[SourceEntry], split: str) -> list[Source]:
    """Open the sources of `entries`; those without a split read `split`, "train" or "validation". Raises PlaitError if one does not fit."""
    root, cache = folder(config.data.root), folder(config.data.cache)

    def named(entry: SourceEntry, wanted: str) -> Source:
        opened: Source = offers.datasets(config.family).open_dataset(entry, wanted, root=root, cache=cache)
        return opened

    sources = open_all(entries, seed=config.seed, split=split, cache=cache, open_named=named)
    return [with_futures(one, row.rollout, config) if row.rollout else one for one, row in zip(sources, entries, strict=True)]


def open_training(config: RunConfig) -> TrainingData:
    """Open the sources of `data.train` or `data.mixture`, without the samples that are held out of them.

    Raises PlaitError if one cannot be opened; it names all named datasets whose files are missing.
    """
    return _open_training(config, held_out=False)


def open_validation(config: RunConfig) -> list[Source]:
    """Open the held-out data: what `data.validation` lists, and the share of training sources. Raises PlaitError if one fails."""
    listed = open_data(config, config.data.validation_sources, "validation")
    return [*listed, *_open_training(config, held_out=True).sources] if config.data.shares else listed


def _open_training(config: RunConfig, *, held_out: bool) -> TrainingData:
    """Open the training sources; of each, where a share is held out, that share or the rest."""

    def opened_of(entry: SourceEntry) -> list[Source]:
        if (share := config.data.share_of(entry)) is None:
            return [] if held_out else open_data(config, [entry], "train")
        return [Part(source, share, config.seed, held_out=held_out) for source in open_data(config, [entry], "train")]

    named = config.data.mixture
    mixed = None if named is None else mixture.read(offers.mixture(config.family, named), config.data.without, KINDS)
    entries = config.data.train if mixed is None else mixed.entries
    opened, absent = [], []
    for entry in entries:
        try:
            opened += opened_of(entry)
        except Absent as error:
            absent.append((str(entry.name), error))
    if absent:
        raise all_absent(absent, len(entries), None if mixed is None else mixed.title)
    weights = [entry.weight for entry in entries] if mixed is None else mixed.sampling_weights([len(source) for source in opened])
    return TrainingData(opened, weights)


def check_data(views: Sequence[StageView]) -> None:
    """Check that the data of each stage can be opened, so that a fault shows before training. Equal data is opened once.

    Raises PlaitError for missing or wrong data, and for a `data.max_tokens` that is longer than the model's positions.
    """
    checked: list[tuple[object, object]] = []
    for view in views:
        config = view.config
        held_out = [*config.data.validation_sources, *(source for bench in config.evaluate for source in bench.data)]
        if (config.data, held_out) not in checked:
            checked.append((config.data, held_out))
            try:
                family = registry.load(config.family)
                check_max_tokens(config.data.max_tokens, family.limits(family.Config.model_validate(config.model)))
                open_training(config)
                open_data(config, held_out, "validation")
            except PlaitError as error:
                raise error if view is views[0] else PlaitError(f"stage {view.name}: {error}") from error
