"""Measure a checkpoint on a bench: what `plait eval` does.

A bench is a metric on some data: `loss`, a metric of the model family (`vqa`) or a dataset with its own (`vqa2:validation`). A figure is a
number that it gives. A row is a dict with one sample's answer and score; answers.py shows them on a page.
"""

import functools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash

from plait import files
from plait.assembly import sample_losses
from plait.assembly.held_out import ChosenSamples, HeldOutData, benches, open_held_out
from plait.assembly.model import ModelBundle
from plait.commands.actions.evaluation import ablations, again, answers, named_data
from plait.commands.actions.evaluation.subject import Saved, Subject
from plait.config.schema import Evaluate, RunConfig
from plait.engine import evaluation
from plait.engine.evaluation import Bench, Row
from plait.engine.held_out_loss import held_out_loss
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.families import registry
from plait.families.ablation import Ablated
from plait.training.figures.intervals import bootstrap, shown

log = logging.getLogger(__name__)

AVERAGED, LAST = "averaged weights", Saved.without_averages  # names of weights in reports
ROWS = "predictions.jsonl"
"""The file of rows, written as they are computed, after a line that identifies the measurement. A repeated call continues it."""
_IN_FILE = ("run", "step", "checkpoint", "bench", "date")
"""Keys of metrics.json that are not printed."""
_MARKS = {True: "right", False: "wrong"}


@dataclass(frozen=True)
class EvaluateOptions:
    """How a checkpoint is measured.

    `samples`: at most so many (None: all). `batch`: samples per forward pass. `averaged`: use the EMA weights; `length`: use a post-hoc
    average of this length (a share of the run) instead. `variant`: name of a setting that the family lets evaluation change (`variants` of
    its configuration). `ablate`: name of an input, without which, and with another sample's, the same samples are measured too. `data`: a
    folder or file in place of the run's held-out data, or KIND:PATH, or a list of sources; `split`: of that data; `rollout`: folders of
    predicted futures, in place of those of that data. `show`: number of answers
    to print; `pictures`: number of answers shown with pictures. `out`: folder of the results; None: in the run. `by_sample`:
    the bench `loss` takes each sample by itself, and has a row for each.
    """

    samples: int | None = None
    batch: int = 16
    show: int = 3
    pictures: int = 200
    averaged: bool = True
    length: float | None = None
    variant: str | None = None
    ablate: str | None = None
    data: str | None = None
    split: str | None = None
    rollout: tuple[str, ...] = ()
    out: Path | None = None
    by_sample: bool = False

    @property
    def weights(self) -> str:
        """Return a name of the weights that are measured, for reports: "averaged weights", "last weights", "averages of length 0.07"."""
        return f"averages of length {self.length:g}" if self.length is not None else AVERAGED if self.averaged else LAST

    @property
    def suffix(self) -> str:
        """Return the end of the result folder's name, which depends on variant and weights: "", "-raw", "-VARIANT-length-0.07"."""
        weights = f"-length-{self.length:g}" if self.length is not None else "" if self.averaged else "-raw"
        return (f"-ablate-{self.ablate}" if self.ablate else "") + (f"-{self.variant}" if self.variant else "") + weights


@dataclass(frozen=True)
class Measurement:
    """One bench, a metric with its way of answering, on one loaded model: its settings, samples and folder for results.

    `entry`: the bench's settings, an item of `evaluate:` in a configuration; `subject`: the model, with its run and configuration.
    """

    subject: Subject
    entry: Evaluate
    bench: Bench | None
    """The function that answers and scores; None for the bench `loss`."""
    data: HeldOutData
    """Opens the data of `entry`."""
    samples: ChosenSamples
    folder: Path
    options: EvaluateOptions

    @property
    def identity(self) -> dict[str, Any]:
        """Return what results on disk must agree with to be continued: {"checkpoint": hash, "weights", "bench", "data", "variant"}."""
        return {
            "checkpoint": self.subject.identity(),
            "weights": self.options.weights,
            "bench": self.entry.title,
            "data": [source.fingerprint for source in self.samples.opened],
            "variant": self.options.variant,
            **({"random_numbers": "of the held-out loss"} if self.entry.bench == evaluation.LOSS and self.bench is not None else {}),
        }


@dataclass(frozen=True)
class Result:
    """What a bench (metric on some data) gave: its figures by name, and its rows (one per answer; none for the loss)."""

    figures: Mapping[str, float]
    rows: Sequence[Row] = ()


@dataclass(frozen=True)
class Measured:
    """A measurement that was made, and what it gave. `first`: whether this is the rank that writes reports."""

    measurement: Measurement
    result: Result
    first: bool

    def written(self, *names: str) -> dict[str, Any]:
        """Return what is in metrics.json of its `folder`, and in the other JSON files of these names, each under its own."""
        folder = self.measurement.folder
        more = {name: json.loads((folder / f"{name}.json").read_bytes()) for name in names if (folder / f"{name}.json").is_file()}
        return {"folder": str(folder), **json.loads((folder / "metrics.json").read_bytes()), **more}


def evaluate(subject: Subject, bench: str, options: EvaluateOptions, like: Measurement | None = None) -> Measured:
    """Measure `subject`, a checkpoint or a configuration's untrained model, on the bench of this name. `like`: on the samples of that one.

    Writes metrics.json, and for benches with answers predictions.json and an HTML page, into RUN/eval/BENCH-step-N or `options.out`. A
    call that was interrupted is continued; if nothing is left to do, no model is built. Raises PlaitError for an unknown bench, split,
    variant or data.
    """
    measurement = _plan(subject, bench, options, like)
    done = _done(measurement)
    result = _complete(measurement, done)
    if result is not None:
        folder, count = measurement.folder, len(measurement.samples)
        log.info(f"nothing left to do: {folder} has {bench} of this model for all {count} samples")
        _report(measurement, result)
        return Measured(measurement, result, first=os.environ.get("RANK", "0") == "0")
    with distributed.join() as ranks:
        result = _measure(measurement, ranks.agree(done), ranks)
        if ranks.first:
            _report(measurement, result)
        return Measured(measurement, result, first=ranks.first)


def _plan(subject: Subject, bench: str, options: EvaluateOptions, like: Measurement | None) -> Measurement:
    """Open the samples, without building a model."""
    config = subject.config
    known = registry.model_config(config.family).variants
    if options.variant is not None and options.variant not in known:
        raise PlaitError(f"family {config.family!r} has no --{options.variant}: it has {', '.join(known) or 'no such switch'}")
    if like is not None:
        entry = like.entry
    else:
        given = named_data.Given(options.data, options.split, subject.trained_sources)
        entry = named_data.entry_of(config, bench, given, samples=options.samples, batch=options.batch)
        entry = named_data.with_futures(config, entry, options.rollout) if options.rollout else entry
    entry = entry.model_copy(update={"ablate": options.ablate})
    rule = benches(config, [entry]).get(entry.title)
    by_sample = rule is None and options.by_sample
    if by_sample:
        family = registry.load(config.family)
        rule = sample_losses.bench(family.Loss(family.Config.model_validate(config.model)))
    data = like.data if like is not None else HeldOutData(config)
    samples = like.samples if like is not None else ChosenSamples(*data.of(entry), seed=sample_losses.seed_of(entry, config))
    fewer = evaluation.shortfall(entry, len(samples)) if like is None else None
    if fewer is not None:
        log.warning(fewer)
    name = f"{entry.bench.replace(':', '-')}{'-by-sample' * by_sample}-{subject.moment}{options.suffix}{_data_suffix(entry, samples)}"
    return Measurement(
        subject=subject,
        entry=entry,
        bench=rule,
        data=data,
        samples=samples,
        folder=options.out or subject.run / "eval" / name,
        options=options,
    )


def _data_suffix(entry: Evaluate, samples: ChosenSamples) -> str:
    """Return the end of the result folder's name. Other data than the run's or a dataset's own has names and a hash in it."""
    if not entry.data or (":" in entry.bench and entry.data[0].path is None):
        return ""
    names = "+".join(re.sub(r"[^\w.-]+", "_", source.name) for source in samples.opened)
    return f"-{names[:40]}-{xxhash.xxh3_64_hexdigest(repr([source.fingerprint for source in samples.opened]).encode())[:6]}"


def _complete(measurement: Measurement, done: Sequence[Row]) -> Result | None:
    """Return the result where nothing is left to be measured."""
    if measurement.bench is None:
        return Result(done[0]) if done else None
    if len(done) < len(measurement.samples) or any(map(again.wanting, done[: len(measurement.samples)])):
        return None
    rows = measurement.bench.finish(done[: len(measurement.samples)])
    return Result(evaluation.summary(measurement.bench, rows), rows)


def _measure(measurement: Measurement, done: Sequence[Row], ranks: Ranks) -> Result:
    """Build the model and measure what is not done yet."""
    options = measurement.options
    bundle, config = measurement.subject.open(ranks, averaged=options.averaged, length=options.length)
    if options.variant is not None:
        section, max_tokens = bundle.section.variant(options.variant)
        bundle = replace(bundle, section=section)
        config = config.model_copy(update={"data": config.data.model_copy(update={"max_tokens": max_tokens})})
    if measurement.bench is None:
        batches = open_held_out(bundle, config, ranks, measurement.data).batches(measurement.entry)
        return Result(held_out_loss(bundle.model, bundle.loss(), batches, ranks, config.train.precision))
    return _answer(measurement, measurement.bench, bundle, config, done, ranks)


def _answer(measurement: Measurement, bench: Bench, bundle: ModelBundle, config: RunConfig, done: Sequence[Row], ranks: Ranks) -> Result:
    """Answer the samples that `done` has no row for; rows are kept on disk as they come."""
    path = measurement.folder / ROWS
    if ranks.first and not done:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        files.append_rows(path, [measurement.identity])
    if ranks.first and done:
        files.keep_rows(path, lambda row: True)  # a last line that was cut short
        log.info(f"{path} has {len(done)} of {len(measurement.samples)} answers: going on from there")

    def keep(rows: Sequence[Row]) -> None:
        if ranks.first:
            files.append_rows(path, rows)

    run = functools.partial(
        evaluation.run_bench,
        bench,
        bundle.model,
        inputs=bundle.inputs(config, train=False),
        batch=measurement.options.batch,
        ranks=ranks,
        precision=config.train.precision,
        moment=measurement.subject.moment,
    )
    figures, rows = run(measurement.samples, done=_mended(measurement, bench, done, ranks, run), keep=keep)
    if bench.pictures is not None and ranks.first:
        bench.pictures(evaluation.usable(rows))
    return Result(figures, rows)


def _mended(measurement: Measurement, bench: Bench, done: Sequence[Row], ranks: Ranks, run: Callable[..., Any]) -> Sequence[Row]:
    """Ask again for the rows of `done` whose samples could not be used. Returns the rows to go on from, which are on disk by then."""
    samples, portion = measurement.samples, evaluation.PORTION_BATCHES * measurement.options.batch * ranks.size
    asked, beyond = done[: len(samples)], done[len(samples) :]
    if not (count := sum(map(again.wanting, asked))):
        return done

    def ask(positions: Sequence[int]) -> Sequence[Row]:
        chosen = replace(samples, ids=[samples.ids[position] for position in positions])
        return again.raw_rows(lambda keep: run(chosen, keep=keep, partial=True))

    path, kept = measurement.folder / ROWS, again.kept(bench, asked, len(samples), portion)
    if ranks.first:
        log.info(f"{count} of {len(asked)} samples could not be used before: trying them again")
        again.rewrite(path, [measurement.identity, *kept, *beyond])
    for rows in again.ask_again(bench, kept, portion, ask):
        kept = rows
        if ranks.first:
            again.rewrite(path, [measurement.identity, *kept, *beyond])
    return kept


def _done(measurement: Measurement) -> list[Row]:
    """Return what is on disk of this measurement: rows of answers, or, for the loss, its one row of figures."""
    if measurement.bench is None:
        path = measurement.folder / "metrics.json"
        before = json.loads(path.read_bytes()) if path.is_file() else {}
        same = before.get("key") == measurement.identity and before.get("count") == len(measurement.samples)
        if same and "bad_samples" in before["figures"]:
            log.info(f"{path}: bad_samples {before['figures']['bad_samples']:.0f}: measured again")
            return []
        return [before["figures"]] if same else []
    path = measurement.folder / ROWS
    written = files.read_rows(path)
    if written and written[0] != measurement.identity:
        log.info(f"{path} is of another model, other data or settings: begun again")
    return written[1:] if written and written[0] == measurement.identity else []


def _report(measurement: Measurement, result: Result) -> None:
    """Show the figures and write them down, with the answers and some of their pictures."""
    subject, options, folder = measurement.subject, measurement.options, measurement.folder
    about = _about(measurement)
    figures = dict(result.figures)
    intervals = bootstrap(measurement.bench, result.rows) if measurement.bench is not None else {}
    key = {"count": len(measurement.samples), "figures": figures, "intervals": intervals, "key": measurement.identity}
    about |= measurement.bench.about(evaluation.usable(result.rows)) if measurement.bench is not None else {}
    compared = ablations.compare(measurement.bench, result.rows) if isinstance(measurement.bench, Ablated) else []
    said = ablations.sentences(str(options.ablate), compared)
    key |= {"ablation": ablations.as_json(compared), "verdict": " ".join(said)} if compared else {}
    files.write_json(folder / "metrics.json", {**about, "samples": options.samples, **figures, **key})
    weights = options.weights if options.weights != AVERAGED or subject.has_averages() else subject.without_averages
    log.info(f"{subject.shown}, {weights}")
    for name in (name for name in about if name not in _IN_FILE):
        log.info(f"  {name:<24} {about[name]}")
    for name, value in figures.items():
        if (name == "loss/loss" and value == figures.get("loss")) or (
            compared and name.rpartition("/")[2] in ablations.names(options.ablate) and not evaluation.is_count(name)
        ):
            continue  # the loss itself; what the table below has
        low, high = intervals.get(name, (None, None))
        sure = "" if low is None or high is None else f"  ({shown(name, low)} to {shown(name, high)} with 95 % confidence)"
        log.info(f"  {name:<24} {shown(name, value)}{sure}")
    for line in [*ablations.lines(str(options.ablate), compared), *said]:
        log.info(f"  {line}")
    if isinstance(measurement.bench, Ablated) and not compared:
        log.info(f"  bench {measurement.entry.bench} measures nothing that could be compared")
    about |= {"verdict": " ".join(said)} if said else {}
    if result.rows:
        _report_answers(measurement, result, about, intervals, weights)
    log.info(f"written to {folder}")


def _about(measurement: Measurement) -> dict[str, Any]:
    """Return what the figures are of: run, step, checkpoint, bench, data and date."""
    every = sum(len(source) for source in measurement.samples.opened)
    names = ", ".join(source.name for source in measurement.samples.opened)
    path = measurement.folder / "metrics.json"
    before = json.loads(path.read_bytes()) if path.is_file() else {}
    measured = before.get("key") == measurement.identity and before.get("count") == len(measurement.samples)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "run": str(measurement.subject.run),
        "step": measurement.subject.step,
        "checkpoint": measurement.subject.shown,
        "bench": measurement.entry.title,
        "data": f"{names}: {len(measurement.samples):,} of {every:,} samples",
        "date": before.get("date", now) if measured else now,
    }


def _report_answers(
    measurement: Measurement, result: Result, about: Mapping[str, Any], intervals: Mapping[str, tuple[float, float]], weights: str
) -> None:
    """Write all answers, put them on a page, and show the first few."""
    folder, options, rows = measurement.folder, measurement.options, result.rows
    files.write_json(folder / "predictions.json", list(rows))
    details = {name: str(value) for name, value in about.items() if name not in ("bench", "date")} | {"weights": weights}
    details |= {"variant": options.variant} if options.variant else {}
    details["date"] = f"{datetime.fromisoformat(about['date']):%Y-%m-%d %H:%M} UTC"
    sheet, page = answers.write(
        folder,
        f"{about['bench']}: {Path(about['run']).name}, step {about['step']:,}",
        details=list(details.items()),
        figures=result.figures,
        intervals=intervals,
        rows=rows,
        samples=measurement.samples,
        pictures=options.pictures,
    )
    log.info(f"  sheet and page           {sheet} and {page}")
    answered = [row for row in rows if "answer" in row or "bad" in row]
    for row in sorted(answered, key=lambda row: bool(row.get("correct")))[: options.show]:  # the wrong ones first
        mark = _MARKS.get(row["correct"], "") if "correct" in row else row.get("bad", "")
        log.info(f"  {row['id']}: {row.get('question', '')} -> {row.get('answer', '')!r} (gold {row.get('gold', '')!r}) {mark}")
