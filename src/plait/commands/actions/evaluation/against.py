"""Measure a model and others on the same samples, for `plait eval --against`: baselines in one table, with paired differences.

Others are the model before its first step, the model with one component in random order, and checkpoints of other runs of its family.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait import files
from plait.commands.actions.evaluation import ablations, evaluate, untrained
from plait.commands.actions.evaluation.evaluate import EvaluateOptions, Measured
from plait.commands.actions.evaluation.subject import Base, Exported, Randomised, Saved, Subject, named
from plait.commands.pages.table import render_table
from plait.engine.evaluation import Bench, Row, usable
from plait.errors import PlaitError
from plait.families import registry
from plait.families.ablation import Ablated, of_way
from plait.training.figures.intervals import behind, shown
from plait.training.figures.paired import Difference, differences

log = logging.getLogger(__name__)

BASE, UNTRAINED, RANDOM = "base", "untrained", "random:"
"""Names of baselines: the model before its first step; that of the first run of the chain of `from:`; `random:COMPONENT`, with the values
of that component in random order."""


_WHY: Mapping[type[Subject], str] = {
    Base: "what --base measures has learned nothing yet",
    Exported: "an export does not tell how its run began",
}


@dataclass(frozen=True)
class Compared:
    """Another model's results on the same samples. `gains`: how much better the measured model does, by figure."""

    name: str
    measured: Measured
    gains: Mapping[str, Difference]


def others_of(subject: Subject, names: Sequence[str]) -> dict[str, Subject]:
    """Return the models that `--against` names, by name. Raises PlaitError for one that is unknown, given twice, or of another family.

    A name is "base", "untrained" or "random:COMPONENT", where `subject` is a checkpoint, or names a checkpoint: RUN, RUN@STEP, ...
    """
    others: dict[str, Subject] = {}
    for name in names:
        if name in others:
            raise PlaitError(f"--against names {name!r} twice")
        if (name in (BASE, UNTRAINED) or name.startswith(RANDOM)) and not isinstance(subject, Saved):
            raise PlaitError(f"--against {name} is for a checkpoint of a run; {_WHY[type(subject)]}")
        try:
            others[name] = _model(subject, name)
        except PlaitError as error:
            raise PlaitError(_of(name, error)) from error
        if others[name].config.family != subject.config.family:
            raise PlaitError(
                f"--against {name} is a model of family {others[name].config.family!r}, and what is measured of {subject.config.family!r}: "
                "they have no bench in common"
            )
    return others


def _model(subject: Subject, name: str) -> Subject:
    """Return the model of this name."""
    if isinstance(subject, Saved) and name == BASE:
        return Base(subject.saved.resolved, subject.run)
    if isinstance(subject, Saved) and name == UNTRAINED:
        return untrained.base_of(subject.saved)
    if isinstance(subject, Saved) and name.startswith(RANDOM):
        return Randomised(subject.checkpoint.folder, name.removeprefix(RANDOM))
    return named(name)


def _of(name: str, error: PlaitError) -> str:
    """Return the message of an error that one of the models gave, with the name of that model in front."""
    return str(error) if str(error).startswith(f"--against {name}") else f"--against {name}: {error}"


def compare(subject: Subject, others: Mapping[str, Subject], measured: Sequence[Measured]) -> None:
    """Measure `others` on the samples on which `subject` was `measured`; log and write a table per bench.

    `measured`: one result per bench, whose folder gets against.json, against.html, and below `against` the results of each model. Raises
    PlaitError, after the tables, where a model could not be measured, or has no sample in common with this one that both can use.
    """
    subject.close()
    compared: dict[int, list[Compared]] = {number: [] for number in range(len(measured))}
    failed: dict[str, PlaitError] = {}
    for name, other in others.items():
        for number, own in enumerate(measured):
            options = own.measurement.options
            folder = own.measurement.folder / "against" / re.sub(r"[^\w.-]+", "_", name)
            given = replace(options, out=folder, show=0, ablate=_ablated(other, options))
            try:
                theirs = evaluate.evaluate(other, own.measurement.entry.bench, given, like=own.measurement)
                compared[number].append(Compared(name, theirs, _gains(name, own, theirs)))
            except PlaitError as error:
                if error.exit_code != PlaitError.exit_code:
                    raise  # a stop
                failed.setdefault(name, error)
        other.close()
    for number, own in enumerate(measured):
        if compared[number]:
            _report(own, compared[number])
    if failed:
        others_there = ", ".join(name for name in others if any(one.name == name for listed in compared.values() for one in listed))
        rest = f"; what is above is of {others_there}" if others_there else ""
        raise PlaitError("; ".join(_of(name, error) for name, error in failed.items()) + rest)


def _ablated(other: Subject, options: EvaluateOptions) -> str | None:
    """Return the input to leave out with another model: None where it lacks it, as a model without a world does."""
    if options.ablate is None:
        return None
    config = other.config
    section = registry.load(config.family).Config.model_validate(config.model)
    return options.ablate if registry.ablations(config.family)[options.ablate].lacks(section) is None else None


def _single(measured: Measured) -> Bench:
    """Return the bench of a measurement, which answers each sample as it is."""
    bench = measured.measurement.bench
    assert bench is not None, "each bench has rows here"
    return bench.single if isinstance(bench, Ablated) else bench


def _gains(name: str, own: Measured, theirs: Measured) -> dict[str, Difference]:
    """Return how much better the measured model does than another one, by figure, on the samples that both can use."""
    bench = _single(own)
    pairs: list[dict[str, Row]] = [
        {"own": a, "other": b} for a, b in zip(own.result.rows, theirs.result.rows, strict=True) if "bad" not in a and "bad" not in b
    ]
    if not pairs:
        raise PlaitError(f"--against {name}: of {len(own.result.rows)} samples there is none that both models can use")

    def figures_of(chosen: Sequence[Mapping[str, Row]], way: str) -> dict[str, float]:
        return of_way(bench, [pair[way] for pair in chosen], "on")

    rows = [pair["own"] for pair in pairs]
    shares = ablations.shares_of([figures_of(pairs, way) for way in ("own", "other")], rows)
    found = differences(
        pairs, {"gain": ("own", "other")}, figures_of, lower=bench.lower, behind=lambda name: behind(name, rows) if name in shares else None
    )
    return {figure: gains["gain"] for figure, gains in found.items()}


def _report(own: Measured, compared: Sequence[Compared]) -> None:
    """Log the table of a bench, and write it beside the results of the measured model."""
    main = next(iter(of_way(_single(own), usable(own.result.rows), "on")), None)
    if main is None or _single(own).describes:
        log.info(f"bench {own.measurement.entry.title} measures nothing that could be compared")
        return
    folder, title = own.measurement.folder, own.measurement.entry.title
    points = any("correct" in row for row in own.result.rows)
    ablates = own.measurement.options.ablate is not None
    rows = [["", main, "measured - it", *["on - off"] * ablates]]
    rows.append(["measured", shown(main, own.result.figures[main]), "", *[_worth(own, points)] * ablates])
    for other in compared:
        gain = other.gains[main].text(points=points) if main in other.gains else ""
        rows.append([other.name, shown(main, other.measured.result.figures[main]), gain, *[_worth(other.measured, points)] * ablates])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    sentence = _sentence(main, compared)
    for row in rows:
        log.info("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    log.info(f"  {sentence}")
    for other in compared:
        if isinstance(other.measured.measurement.subject, Base):
            log.info(f"  {other.name} is {other.measured.measurement.subject.shown}")
    if own.first:
        files.write_json(folder / "against.json", {"bench": title, "figure": main, **_models(own, compared), "sentence": sentence})
        details = [("measured", own.measurement.subject.shown), ("samples", f"{len(own.result.rows):,}")]
        details += [(other.name, other.measured.measurement.subject.shown) for other in compared]
        files.write_whole(folder / "against.html", render_table(f"{title}: baselines", details, rows, sentence).encode())
        log.info(f"  written to {folder / 'against.json'} and {folder / 'against.html'}")


def _worth(measured: Measured, points: bool) -> str:
    """Return what the input that is left out is worth to a model, "" where it has none."""
    bench = measured.measurement.bench
    found = ablations.compare(bench, measured.result.rows) if isinstance(bench, Ablated) else []
    return found[0].differences["on-off"].text(points=points) if found else ""


def _sentence(figure: str, compared: Sequence[Compared]) -> str:
    """Return in words which models the measured one beats, loses to, or is level with."""
    verbs = {1: "beats", 0: "is level with", -1: "loses to"}
    signs = {sign: [other.name for other in compared if figure in other.gains and other.gains[figure].sign == sign] for sign in verbs}
    parts = [f"{verbs[sign]} {', '.join(names)}" for sign, names in signs.items() if names]
    return f"{figure}: the measured model {'; '.join(parts)}"


def _models(own: Measured, compared: Sequence[Compared]) -> dict[str, Any]:
    """Return JSON values of the measured model and of the others by name: their figures, and the gains of the measured one over them."""
    others = {}
    for other in compared:
        measurement = other.measured.measurement
        gains = {figure: gain.plain() for figure, gain in other.gains.items()}
        others[other.name] = {
            "model": measurement.subject.shown,
            "figures": dict(other.measured.result.figures),
            "gains": gains,
            "folder": str(measurement.folder),
        }
    return {"measured": {"model": own.measurement.subject.shown, "figures": dict(own.result.figures)}, "others": others}
