"""Measure a checkpoint on a bench: what `plait eval` does.

A bench is a metric on some data: `loss`, a metric of the model family (`vqa`) or a dataset with its own (`vqa2:validation`). A figure is a
number that it gives. A row is a dict with one sample's answer and score; answers.py shows them on a page.
"""

import difflib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash
import yaml
from pydantic import ValidationError

from plait import files
from plait.assembly.held_out import ChosenSamples, HeldOutData, benches, benchmark, open_held_out
from plait.assembly.model import ModelBundle
from plait.commands.actions.evaluation import ablations, answers
from plait.commands.actions.evaluation.subject import Saved, Subject
from plait.config import reading
from plait.config.messages import one_line
from plait.config.schema import Evaluate, RunConfig, SourceEntry
from plait.data import paths
from plait.data.sources.open import KINDS
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
FROM_HUB = "hub"
"""What `--data` says of a dataset that is known by name, to read it from the Hub."""
_MARKS = {True: "right", False: "wrong"}


@dataclass(frozen=True)
class EvaluateOptions:
    """How a checkpoint is measured.

    `samples`: at most so many (None: all). `batch`: samples per forward pass. `averaged`: use the EMA weights; `length`: use a post-hoc
    average of this length (a share of the run) instead. `variant`: name of a setting that the family lets evaluation change (`variants` of
    its configuration). `ablate`: name of an input, without which, and with another sample's, the same samples are measured too. `data`: a
    folder or file in place of the run's held-out data, or KIND:PATH, or a list of sources; `split`: of that data. `show`: number of answers
    to print; `pictures`: number of answers shown with pictures. `out`: folder of the results; None: in the run.
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
    out: Path | None = None

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
        }


@dataclass(frozen=True)
class Result:
    """What a bench (metric on some data) gave: its figures by name, and its rows (one per answer; none for the loss)."""

    figures: Mapping[str, float]
    rows: Sequence[Row] = ()


def evaluate(subject: Subject, bench: str, options: EvaluateOptions) -> Mapping[str, float]:
    """Measure `subject`, a checkpoint or a configuration's untrained model, on the bench of this name, and return its figures by name.

    Writes metrics.json, and for benches with answers predictions.json and an HTML page, into RUN/eval/BENCH-step-N or `options.out`. A
    call that was interrupted is continued; if nothing is left to do, no model is built. Raises PlaitError for an unknown bench, split,
    variant or data.
    """
    measurement = _plan(subject, bench, options)
    done = _done(measurement)
    result = _complete(measurement, done)
    if result is not None:
        folder, count = measurement.folder, len(measurement.samples)
        log.info(f"nothing left to do: {folder} has {bench} of this model for all {count} samples")
        _report(measurement, result)
        return result.figures
    with distributed.join() as ranks:
        result = _measure(measurement, ranks.agree(done), ranks)
        if ranks.first:
            _report(measurement, result)
    return result.figures


def _plan(subject: Subject, bench: str, options: EvaluateOptions) -> Measurement:
    """Open the samples, without building a model."""
    config = subject.config
    known = registry.model_config(config.family).variants
    if options.variant is not None and options.variant not in known:
        raise PlaitError(f"family {config.family!r} has no --{options.variant}: it has {', '.join(known) or 'no such switch'}")
    entry = _entry(config, bench, options).model_copy(update={"ablate": options.ablate})
    rule = benches(config, [entry]).get(entry.title)
    data = HeldOutData(config)
    samples = ChosenSamples(*data.of(entry))
    fewer = evaluation.shortfall(entry, len(samples))
    if fewer is not None:
        log.warning(fewer)
    name = f"{entry.bench.replace(':', '-')}-{subject.moment}{options.suffix}{_data_suffix(entry, samples)}"
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
    if len(done) < len(measurement.samples):
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

    figures, rows = evaluation.run_bench(
        bench,
        bundle.model,
        measurement.samples,
        inputs=bundle.inputs(config, train=False),
        batch=measurement.options.batch,
        ranks=ranks,
        precision=config.train.precision,
        moment=measurement.subject.moment,
        done=done,
        keep=keep,
    )
    if bench.pictures is not None and ranks.first:
        bench.pictures(evaluation.usable(rows))
    return Result(figures, rows)


def _done(measurement: Measurement) -> list[Row]:
    """Return what is on disk of this measurement: rows of answers, or, for the loss, its one row of figures."""
    if measurement.bench is None:
        path = measurement.folder / "metrics.json"
        before = json.loads(path.read_bytes()) if path.is_file() else {}
        same = before.get("key") == measurement.identity and before.get("count") == len(measurement.samples)
        return [before["figures"]] if same else []
    path = measurement.folder / ROWS
    written = files.read_rows(path)
    if written and written[0] != measurement.identity:
        log.info(f"{path} is of another model, other data or settings: begun again")
    return written[1:] if written and written[0] == measurement.identity else []


def _entry(config: RunConfig, bench: str, options: EvaluateOptions) -> Evaluate:
    """Return the `evaluate:` entry that a bench's name, `--split` and `--data` mean. Raises PlaitError for an unknown one."""
    name, _, split = bench.partition(":")
    known = {evaluation.LOSS, *registry.benches(config.family)}
    dataset = registry.has_datasets(config.family) and name in registry.datasets(config.family).DATASETS
    if not split and name in known and (options.data is not None or not dataset):
        given = _sources(options.data, options.split, config.data.train) if options.data is not None else []
        if not given and options.split is not None:
            if config.data.held_out_share is not None:
                share = f"{config.data.validation} of the training data"
                raise PlaitError(f"--split {options.split}: what is held out is {share}, without splits; give --data as well")
            given = [one.model_copy(update={"split": options.split}) for one in config.data.validation_sources]
        return Evaluate(bench=name, samples=options.samples, batch=options.batch, data=given)
    if split and options.split not in (None, split):
        raise PlaitError(f"--bench {bench} and --split {options.split} name two splits: keep one")
    if not registry.has_datasets(config.family):
        raise PlaitError(f"--bench {name!r} is unknown: {_hint(name, sorted(known))}")
    catalogue = registry.datasets(config.family)
    if not split and name not in {*catalogue.DATASETS, *catalogue.ALIASES}:
        raise PlaitError(f"--bench {name!r} is unknown: {_hint(name, [*sorted(known), *catalogue.scored()])}")
    split = split or options.split or catalogue.evaluation_split(name)
    _, source = benchmark(config, f"{name}:{split}")
    source = source.model_copy(update={"options": {"hub": True}} if options.data == FROM_HUB else {"path": options.data})
    return Evaluate(bench=f"{name}:{split}", samples=options.samples, batch=options.batch, data=[source])


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _sources(text: str, split: str | None, trained: Sequence[SourceEntry]) -> list[SourceEntry]:
    """Return the sources that `--data` names: a list in YAML, KIND:PATH (dataset:NAME), or a file or folder whose kind can be told.

    A path is read with the template and columns of the first of the run's sources (`trained`) that is of its kind and has any.
    """
    try:
        if text.startswith("["):
            return [SourceEntry.model_validate({"split": split, **row} if split else row) for row in reading.scalar(text)]
        kind, colon, rest = text.partition(":")
        if colon and (rules := KINDS.get(kind)):
            if "name" in rules.needs and not ("path" in rules.needs and paths.local(rest).exists()):
                return [SourceEntry.model_validate({"source": kind, "split": split, "name": rest})]
            return [_as_trained(SourceEntry.model_validate({"source": kind, "split": split, "path": rest}), trained)]
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        reason = one_line(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise PlaitError(f"--data {text!r} is no list of sources: {reason}") from error
    told = _kind_of(paths.local(text))
    if told is None:
        raise PlaitError(
            f"--data {text!r} is no .jsonl, .csv, .parquet, .tar or folder; give one, a list of sources in YAML, or KIND:PATH with "
            f"KIND one of {', '.join(KINDS)}"
        )
    return [_as_trained(SourceEntry(source=told, path=text, split=None if told == "jsonl" else split), trained)]


def _kind_of(path: Path) -> str | None:
    """Return the kind of source that reads a file or folder, None where it cannot be told."""
    if path.suffix in (".jsonl", ".json"):
        return "jsonl"
    if path.suffix in (".csv", ".tsv", ".parquet") or (path.is_dir() and any(path.glob("*.parquet"))):
        return "datasets"
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return "shards"
    return "folder" if path.is_dir() else None


def _as_trained(source: SourceEntry, trained: Sequence[SourceEntry]) -> SourceEntry:
    for number, other in enumerate(trained):
        if other.source == source.source and (other.template or other.columns):
            log.info(f"--data is read with the template and columns of data.train.{number}")
            return source.model_copy(update={"template": other.template, "columns": other.columns})
    return source


def _report(measurement: Measurement, result: Result) -> None:
    """Show the figures and write them down, with the answers and some of their pictures."""
    subject, options, folder = measurement.subject, measurement.options, measurement.folder
    about = _about(measurement)
    figures = dict(result.figures)
    intervals = bootstrap(measurement.bench, result.rows) if measurement.bench is not None else {}
    key = {"count": len(measurement.samples), "figures": figures, "intervals": intervals, "key": measurement.identity}
    about |= measurement.bench.about(evaluation.usable(result.rows)) if measurement.bench is not None else {}
    compared = ablations.compare(measurement.bench, result.rows) if isinstance(measurement.bench, Ablated) else []
    key |= {"ablation": ablations.as_json(compared)} if compared else {}
    files.write_json(folder / "metrics.json", {**about, "samples": options.samples, **figures, **key})
    weights = options.weights if options.weights != AVERAGED or subject.has_averages() else subject.without_averages
    log.info(f"{subject.shown}, {weights}")
    for name in (name for name in about if name not in _IN_FILE):
        log.info(f"  {name:<24} {about[name]}")
    for name, value in figures.items():
        if (name == "loss/loss" and value == figures.get("loss")) or (
            compared and name.rpartition("/")[2] in ablations.names(options.ablate)
        ):
            continue  # the loss itself; what the table below has
        low, high = intervals.get(name, (None, None))
        sure = "" if low is None or high is None else f"  ({shown(name, low)} to {shown(name, high)} with 95 % confidence)"
        log.info(f"  {name:<24} {shown(name, value)}{sure}")
    said = ablations.lines(str(options.ablate), compared, len(evaluation.usable(result.rows)))
    for line in said:
        log.info(f"  {line}")
    about |= {"verdict": said[-1]} if said else {}
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
