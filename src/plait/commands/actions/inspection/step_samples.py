"""What `plait data step` does: list the samples of one step of a run, as text, JSON or a page with pictures.

The samples are found again from seed and step (run_steps.py); those that could not be used are replaced as the run's quarantine.jsonl says.
A row of metrics.jsonl holds a hash of the samples that the run trained on, to which they are compared.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.assembly.data import TrainingData, data_seed
from plait.commands.actions.inspection.inspect_data import card_of
from plait.commands.actions.inspection.run_steps import StepPlace, consumed, micro_batch_of, place_of, replacements
from plait.commands.actions.inspection.seen_samples import StageSamples, assets_of, ordered, showing
from plait.commands.pages import gallery
from plait.commands.pages.card import Card
from plait.config.resolved import Resolved
from plait.config.secrets import masked
from plait.data import image_files
from plait.data.order import SampleId, Slices, digest
from plait.data.sources.contract import read
from plait.engine.checkpoints import folders
from plait.engine.monitoring.json_output import show_json
from plait.errors import BadSample, PlaitError, sample_errors
from plait.keys import key

log = logging.getLogger(__name__)

_TEXT_SHOWN = 60  # characters of the answer in the list


@dataclass(frozen=True)
class StepSample:
    """One sample of a step. `wanted`: its id in the order; `used`: the id that took its place, the same if it could be used.

    `name`, `pictures` (sizes as "640x480") and `text` (the last answer) are of the one that was used; `fault`: why it cannot be read now.
    `reason`: why the wanted one could not be used; None where it could.
    """

    rank: int
    micro_batch: int
    source: str
    wanted: SampleId
    used: SampleId
    name: str
    pictures: Sequence[str]
    text: str
    reason: str | None
    fault: str | None


def show(
    resolved: Resolved,
    run: Path | None,
    step: int,
    *,
    stage: str | None = None,
    ranks: int | None = None,
    as_json: bool = False,
    page: Path | None = None,
) -> None:
    """List the samples of step `step` of a run (from 1), or of its stage named `stage`.

    `page`: a new folder to draw them in, None for none. `run`: its directory; None for a configuration that has not been run. `ranks`: show
    them as divided over so many. Raises PlaitError for a step that there is not, and, in the end, where the run trained on other samples
    than the data now gives.
    """
    if page is not None and page.exists() and not (page.is_dir() and not any(page.iterdir())):
        raise PlaitError(f"{page} is not empty; give --out a new folder" if page.is_dir() else f"{page} is no folder; give --out a new one")
    place = place_of(resolved, run, step, stage=stage, ranks=ranks)
    data, order, slicing = ordered(place.view, place.batches)
    ids, size = order.ids(place.stage_step), micro_batch_of(place, run)
    slices = [slicing(ids, rank, place.ranks, size) for rank in range(place.ranks)]
    replaced = replacements(run, place.step)
    used = consumed([one for of_rank in slices for members, padding in of_rank if not padding for one in members], replaced)
    samples = list(_samples(place, data, slices, used, replaced))
    found = digest(used) & 0xFFFFFFFF
    recorded = None if place.row is None else str(place.row["ids"])
    fault = _difference(place, data, f"{found:08x}", recorded)
    if as_json:
        show_json(_as_dict(place, samples, run, size, f"{found:08x}", recorded))
    else:
        log.info("\n".join([*_heading(place, size, f"{found:08x}", recorded), *_table(samples)]))
    if page is not None:
        _draw(resolved, place, samples, page, quiet=as_json)
    if fault is not None:
        raise PlaitError(fault)


def page_folder(step: int) -> Path:
    """Return the folder of a step's page: `step-N`, or the first of step-N-2, step-N-3, ... that does not exist."""
    return folders.unused(Path(f"step-{step}"))


def _samples(
    place: StepPlace,
    data: TrainingData,
    slices: Sequence[Slices],
    used: Sequence[SampleId],
    replaced: Mapping[tuple[int, int], Sequence[Mapping[str, Any]]],
) -> Iterator[StepSample]:
    """Yield the samples of a step in the order of ranks and micro-batches. `slices`: of each rank."""
    names, seed = data.names(), data_seed(place.view)
    position, seen = 0, Counter[tuple[int, int]]()
    for rank, of_rank in enumerate(slices):
        for number, (members, padding) in enumerate(of_rank):
            for wanted in () if padding else members:
                one, position = used[position], position + 1
                rows = replaced.get(wanted[:2], ())
                row = rows[seen[wanted[:2]]] if seen[wanted[:2]] < len(rows) else None
                seen[wanted[:2]] += 1
                source, pictures, text, fault = data.sources[one.source], list[str](), "", None
                name = f"{source.name}[{one.index}]"
                try:
                    with sample_errors:
                        sample = read(source, one.index, key(seed, "sample", *one))
                        name, text = str(sample["id"]), _answer(sample)
                        pictures = ["x".join(map(str, image_files.size(image))) for image in sample["images"]]
                except BadSample as error:
                    name, fault = error.sample or name, masked(str(error))
                reason = None if row is None else str(row["reason"])
                yield StepSample(
                    rank, number, names[one.source], wanted, used=one, name=name, pictures=pictures, text=text, reason=reason, fault=fault
                )


def _answer(sample: Mapping[str, Any]) -> str:
    """Return the last text of the assistant in a sample's first conversation, else its last text."""
    turns = sample["messages"]
    return next((turn["content"] for turn in reversed(turns) if turn["role"] == "assistant"), turns[-1]["content"] if turns else "")


def _difference(place: StepPlace, data: TrainingData, found: str, recorded: str | None) -> str | None:
    """Return why the samples are not those that the run trained on; None if nothing says so."""
    saved = {} if place.manifest is None else place.manifest["data"]
    changed = [name for name, value in data.fingerprints().items() if name in saved and saved[name] != value]
    if recorded is not None and found != recorded:
        why = f", as {', '.join(changed)} changed" if changed else "; were settings of the data, the seed or weights changed?"
        return f"step {place.step} had other samples than these: metrics.jsonl has the hash {recorded} of them, these have {found}{why}"
    if changed:
        return f"{', '.join(changed)} changed since the run was trained: its samples at step {place.step} may have been others than these"
    return None


def _heading(place: StepPlace, micro_batch: int, found: str, recorded: str | None) -> list[str]:
    stage = f"step {place.stage_step + 1:,} of stage {place.view.index} ({place.view.name})"
    ranks = f"{place.ranks} rank{'s' * (place.ranks > 1)}"
    packed = place.view.config.data.pack_tokens
    cut = f"micro-batches of {micro_batch}" if packed is None else f"rows of at most {packed:,} tokens"
    lines = [f"step {place.step:,}, {stage}: {place.global_batch} samples on {ranks}, {place.ranks_from}, in {cut}"]
    if recorded is None:
        lines.append(f"hash {found}; metrics.jsonl has no row of this step to compare it with")
    elif recorded == found:
        lines.append(f"hash {found}, as in metrics.jsonl: the run trained on these samples")
    if place.row is not None and place.row.get("skipped"):
        lines.append("the step ended without an update: its loss or gradient was not finite")
    return lines


def _table(samples: Sequence[StepSample]) -> list[str]:
    rows = [("rank", "micro-batch", "source", "index", "epoch", "sample", "pictures", "text")]
    for one in samples:
        text = " ".join(one.text.split()) if one.fault is None else f"cannot be read now: {one.fault}"
        text = text if len(text) <= _TEXT_SHOWN or one.fault else f"{text[:_TEXT_SHOWN]}..."
        cells = (str(one.rank), str(one.micro_batch), one.source, str(one.used.index), str(one.used.epoch), one.name)
        rows.append((*cells, " ".join(one.pictures), text))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows]
    bad = [one for one in samples if one.reason is not None]
    return [*lines, *(f"{one.source}[{one.wanted.index}] could not be used ({one.reason}): {one.name} took its place" for one in bad)]


def _as_dict(
    place: StepPlace, samples: Sequence[StepSample], run: Path | None, micro_batch: int, found: str, recorded: str | None
) -> dict[str, Any]:
    rows = [
        {
            "rank": one.rank,
            "micro_batch": one.micro_batch,
            "source": one.source,
            "index": one.used.index,
            "epoch": one.used.epoch,
            "id": one.name,
            "pictures": list(one.pictures),
            "text": one.text,
            "replaces": None if one.reason is None else {"index": one.wanted.index, "reason": one.reason},
            "fault": one.fault,
        }
        for one in samples
    ]
    return {
        "run": None if run is None else str(run),
        "step": place.step,
        "stage": place.view.name,
        "stage_step": place.stage_step + 1,
        "ranks": place.ranks,
        "micro_batch": micro_batch,
        "hash": found,
        "recorded_hash": recorded,
        "samples": rows,
    }


def _draw(resolved: Resolved, place: StepPlace, samples: Sequence[StepSample], folder: Path, *, quiet: bool) -> None:
    """Draw the samples as the model sees them into `folder`. Raises PlaitError for a family that cannot show its examples."""
    family = showing(resolved)
    section = family.Config.model_validate(resolved.config.model)
    with assets_of(resolved.config) as assets:
        opened = StageSamples.of(place.view, family, section, assets, "train")
        cards = [_card(opened, one) for one in samples]
    title = f"step {place.step}, stage {place.view.index} ({place.view.name}): its samples as the model sees them"
    details = [("ranks", f"{place.ranks}, {place.ranks_from}"), ("samples", f"{len(samples)}")]
    sheet, page = gallery.write(folder, title, cards, legend=family.legend, details=details)
    if not quiet:
        log.info(f"written to {sheet} and {page}")


def _card(opened: StageSamples, one: StepSample) -> Card:
    """Return the card of a sample, encoded with its own seed; of one that cannot be used now, a card with the reason."""
    where = f"rank {one.rank}, micro-batch {one.micro_batch}"
    notes = {"place": where, "source": f"{one.source}[{one.used.index}], epoch {one.used.epoch}"}
    notes |= {} if one.reason is None else {"in place of": f"{one.source}[{one.wanted.index}]: {one.reason}"}
    try:
        seen = opened.encode(one.used)
    except BadSample as error:
        return Card([], [(f"Cannot be used now: {masked(str(error))}", False)], one.name, None, notes)
    card = card_of(seen, None, None)
    return Card(card.pictures, card.text, card.title, None, {**notes, **card.notes}, card.labels)
