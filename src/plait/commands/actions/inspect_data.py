"""Draw data as the model will see it, before a step is spent on it: what `plait data inspect` does.

The samples are those that the run takes first, read, replaced and encoded by the loader's own code under the run's own keys; what is drawn
comes from the encoded example, never from the file again. No weights are needed, only what a family's inputs need (a tokenizer).
"""

import contextlib
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from plait.assembly.data import TrainingData, data_seed, open_data, open_training
from plait.assembly.held_out import FixedOrder, choose
from plait.assembly.model import write_assets
from plait.commands.actions.index_data import byte_text
from plait.commands.pages import gallery
from plait.commands.pages.gallery import Card
from plait.config.resolved import Resolved, StageView
from plait.config.schema import RunConfig, Source
from plait.data import images
from plait.data.buckets import contents_of
from plait.data.loading.micro_batch import Bad, Preparation
from plait.data.order import Ordering, SampleId
from plait.errors import PlaitError
from plait.families import registry
from plait.families.contract import Family

_LEGEND = "On colour: the supervised text, which the model learns to say. Everything else is given to it."
_IDS_SHOWN = 5

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class _Watched:
    """A family's inputs that hand on the sample and its key beside the example."""

    inputs: Any

    def encode(self, sample: dict[str, Any], sample_key: int) -> tuple[dict[str, Any], int, Any]:
        return sample, sample_key, self.inputs.encode(sample, sample_key)

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        return self.inputs.collate([example for _, _, example in examples])


@dataclass(frozen=True)
class _Seen:
    """One sample as the model sees it. `shown` is what the family's `inspect` says of the example; `cut`: it is longer than max_tokens."""

    id: SampleId
    sample: dict[str, Any]
    example: Any
    shown: dict[str, Any]
    cut: bool


def draw(resolved: Resolved, split: str, samples: int, out: Path) -> None:
    """Draw the first `samples` samples that the run takes (train: in the order of step 0 on, augmented; validation: as it is judged).

    One sheet and page in `out` for the first stage, and for each later stage that has other data (then in folders named like the stages).
    """
    if samples < 1:
        raise PlaitError(f"--samples={samples}: ask for at least one")
    family = registry.load(resolved.config.family)
    if family.inspect is None:
        raise PlaitError(f"family {family.name!r} has no `inspect`: it does not say what its model sees")
    section = family.Config.model_validate(resolved.config.model)
    views = _different(resolved.stages)
    with _assets(resolved.config) as assets:
        for view in views:
            _draw_stage(view, family, section, assets, split, samples, out if len(views) == 1 else out / f"stage-{view.index}-{view.name}")
    for view in resolved.stages:
        if view not in views:
            same = next(one for one in views if one.config.data == view.config.data)
            order = ", in an order of its own" if split == "train" else ""
            print(f"stage {view.index} ({view.name}) has the data of stage {same.index} ({same.name}){order}")


def _different(stages: Sequence[StageView]) -> list[StageView]:
    return [view for place, view in enumerate(stages) if all(view.config.data != before.config.data for before in stages[:place])]


@contextlib.contextmanager
def _assets(config: RunConfig) -> Iterator[Path]:
    """The run's own folder of what its family made on the spot; before the run, a passing one with the same content."""
    made = Path(config.run) / "assets" if config.run else None
    if made is not None and made.is_dir():
        yield made
        return
    with tempfile.TemporaryDirectory() as passing:
        write_assets(config, Path(passing))
        yield Path(passing)


def _draw_stage(view: StageView, family: Family, section: Any, assets: Path, split: str, samples: int, out: Path) -> None:
    config = view.config
    data = open_training(config) if split == "train" else TrainingData(open_data(config, _held_out(config), split), [])
    opened = data.sources
    inspect = family.inspect
    assert inspect is not None
    inputs = _inputs(family, section, assets, config, split, config.data.max_tokens)
    whole = _inputs(family, section, assets, config, split, None) if config.data.max_tokens is not None else None
    ids, seed, order = _first(view, data, split, samples)
    preparation = Preparation(tuple(opened), order, _Watched(inputs), seed, rank=0, world_size=1, micro_batch=None)
    seen, bad = [], []
    for wanted in ids:
        found = preparation.example(wanted)
        sample, sample_key, example = found.value
        shown = inspect(inputs, sample, example)
        cut = whole is not None and _length(inspect(whole, sample, whole.encode(sample, sample_key))) > _length(shown)
        seen.append(_Seen(found.id, sample, example, shown, cut))
        bad += found.bad
    title = f"{split}, stage {view.index} ({view.name}): the first {len(seen)} samples as the model sees them"
    buckets = contents_of(opened, config.train.global_batch)
    facts = [*_data(seen, opened), *buckets, *_figures(seen), *_batch(seen, family, section, inputs, config), *_trouble(seen, bad, config)]
    several = len(opened) > 1
    cards = [_card(one, opened[one.id.source].name if several else None) for one in seen] + [_bad_card(one, opened) for one in bad]
    sheet, page = gallery.write(out, title, cards, legend=_LEGEND, facts=facts)
    print(title)
    wide = max(len(name) for name, _ in facts)
    print("\n".join(f"  {name:<{wide}}  {value}" for name, value in facts))
    print(f"written to {sheet} and {page}")


def _held_out(config: RunConfig) -> list[Source]:
    """The entries that held-out figures come from: `data.validation`, else the first of `evaluate`."""
    entries = config.data.validation or next((entry.data for entry in config.evaluate if entry.data), [])
    if not entries:
        raise PlaitError("the configuration has no validation data to look at: list some under data.validation")
    return entries


def _inputs(family: Family, section: Any, assets: Path, config: RunConfig, split: str, max_tokens: int | None) -> Any:
    return family.Inputs(section, assets, max_tokens=max_tokens, pad=config.data.pad, train=split == "train")


def _first(view: StageView, data: TrainingData, split: str, samples: int) -> tuple[Sequence[SampleId], int, Ordering]:
    """The ids that come first, the seed of the samples' keys and the stage's order: as the run has them."""
    config = view.config
    if split != "train":
        chosen = choose([len(source) for source in data.sources], samples, config.seed)
        return chosen, config.seed, FixedOrder.of(chosen, data.sources, config.train.global_batch)
    seed, order = data_seed(view), data.order(view)
    steps = -(-samples // config.train.global_batch)
    return [one for step in range(steps) for one in order.ids(step)][:samples], seed, order


def _length(shown: dict[str, Any]) -> int:
    return sum(len(piece) for piece, _ in shown["text"])


def _data(seen: Sequence[_Seen], opened: Sequence[Any]) -> Facts:
    """Per source: how many samples were drawn of how many, and the sizes of their files' pictures beside those that the model sees."""
    facts = []
    for number, source in enumerate(opened):
        mine = [one for one in seen if one.id.source == number]
        files = [images.decode(data).shape for one in mine for data in one.sample["images"]]
        text = f"{len(mine)} of {len(source):,} samples"
        if files:
            text += f"; pictures of {_sizes([(width, height) for _, height, width in files])}"
        if shown := [(picture.shape[1], picture.shape[0]) for one in mine for picture in one.shown["images"]]:
            text += f", seen as {_sizes(shown)}"
        facts.append((source.name, text))
    return facts


def _sizes(pairs: Sequence[tuple[int, int]]) -> str:
    """ "32x32 px", or several, or from the smallest to the largest area."""
    kinds = Counter(pairs)
    if len(kinds) <= 3:
        return " and ".join(f"{width}x{height}" for width, height in sorted(kinds)) + " px"
    least, most = (pick(kinds, key=lambda pair: (pair[0] * pair[1], pair)) for pick in (min, max))
    return f"{least[0]}x{least[1]} to {most[0]}x{most[1]} px ({len(kinds)} sizes)"


def _figures(seen: Sequence[_Seen]) -> Facts:
    """Range and median of every number that the family notes of its examples."""
    names = dict.fromkeys(name for one in seen for name in one.shown["notes"])
    facts = []
    for name in names:
        values = [one.shown["notes"].get(name) for one in seen]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == len(values):
            least, most = min(numbers), max(numbers)
            spread = f"{least:g}" if least == most else f"{least:g} to {most:g}, median {statistics.median(numbers):g}"
            facts.append((name, f"{spread} per sample"))
    return facts


def _batch(seen: Sequence[_Seen], family: Family, section: Any, inputs: Any, config: RunConfig) -> Facts:
    """The tensors of the first micro-batch, or why there can be none, and the samples from which nothing can be learnt."""
    first = [one.example for one in seen[: config.train.micro_batch or config.train.global_batch]]
    facts = []
    try:
        batch = inputs.collate(first)
    except PlaitError as error:
        facts.append(("batch", f"cannot be made of the first {len(first)}: {error}"))
    else:
        kinds: dict[str, list[str]] = {}
        for name, value in batch.items():
            if isinstance(value, Tensor):
                kinds.setdefault(f"{'x'.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}", []).append(name)
        size = sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
        facts.append(
            (f"batch of {len(first)}", f"{byte_text(size)}: " + "; ".join(f"{', '.join(names)} {kind}" for kind, names in kinds.items()))
        )
    loss = family.Loss(section)
    idle = [
        str(one.sample["id"]) for one in seen if not any(float(value) for value in loss.weights(inputs.collate([one.example])).values())
    ]
    return [*facts, ("nothing to learn", f"{len(idle)} samples: {_some(idle)}")] if idle else facts


def _trouble(seen: Sequence[_Seen], bad: Sequence[Bad], config: RunConfig) -> Facts:
    """Samples that were cut, and those that could not be used."""
    cut = [str(one.sample["id"]) for one in seen if one.cut]
    facts = [("cut", f"{len(cut)} of {len(seen)} to data.max_tokens = {config.data.max_tokens}: {_some(cut)}")] if cut else []
    return [*facts, *(("bad", f"{one.name}: {one.reason}") for one in bad)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_IDS_SHOWN]) + (f" and {len(names) - _IDS_SHOWN} more" if len(names) > _IDS_SHOWN else "")


def _card(one: _Seen, source: str | None) -> Card:
    notes = {"source": source} if source else {}
    notes |= {name: str(value) for name, value in one.shown["notes"].items()}
    if one.cut:
        notes["cut"] = "to max_tokens"
    return Card(one.shown["images"], one.shown["text"], str(one.sample["id"]), None, notes)


def _bad_card(one: Bad, opened: Sequence[Any]) -> Card:
    instead = f"{opened[one.replaced_by.source].name}[{one.replaced_by.index}]"
    return Card([], [(f"Cannot be used: {one.reason}", False)], f"bad: {one.name}", None, {"replaced by": instead})
