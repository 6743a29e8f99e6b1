"""Measure a checkpoint on a bench: what `plait eval` does."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from plait import files
from plait.assembly import parts, saved
from plait.commands.pages import gallery
from plait.config import reading
from plait.config.schema import Evaluate, RunConfig, Source, SourceKind
from plait.data import images, paths
from plait.engine import evaluation
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.parallel import distributed
from plait.errors import PlaitError
from plait.families import registry

AVERAGED, LAST = "averaged weights", "last weights"
ROWS = "predictions.jsonl"
"""Answers as they come: a first line that says what they are answers of, then a row each. A second call goes on from it."""


@dataclass(frozen=True)
class Options:
    """How a checkpoint is measured. `data`: a folder or file in place of the run's held-out data, or KIND:PATH, or a list of sources."""

    samples: int | None = None
    batch: int = 16
    show: int = 3
    pictures: int = 48
    averaged: bool = True
    length: float | None = None
    high_res: bool = False
    data: str | None = None
    split: str | None = None
    out: Path | None = None


def evaluate(path: Path, bench: str, options: Options) -> dict[str, float]:
    """Measure the checkpoint at `path` on a bench of its family (`vqa`), a dataset with its own rule (`vqa2:validation`), or `loss`.

    Writes metrics.json, and for benches with answers predictions.json and a page with pictures, into RUN/eval/BENCH-step-N or `out`. What a
    call that was ended had answered is kept; with nothing left to do it says so, and builds no model.
    """
    found, config = saved.settings(path)
    entry = _entry(config, bench, options)
    rule = parts.benches(config, [entry]).get(entry.bench)
    data = parts.HeldData(config)
    samples = parts.Chosen(*data.of(entry))
    folder = options.out or found.folder.parent.parent / "eval" / _title(entry.bench, found.step, options)
    key = {
        "checkpoint": files.xxh3(found.folder / "manifest.json"),
        "weights": _kind(options),
        "bench": entry.bench,
        "data": [source.fingerprint for source in samples.opened],
        "high_res": options.high_res,
    }
    done = _done(folder, key, len(samples) if rule is None else None)
    figures: dict[str, float] | None = None
    rows: list[dict[str, Any]] = []
    if rule is None and done:
        figures = done[0]
    elif rule is not None and len(done) >= len(samples):
        rows = done[: len(samples)]
        figures = evaluation.summary(rule, rows)
    if figures is not None:
        print(f"nothing left to do: {folder} has {bench} of this checkpoint for all {len(samples)} samples")
        _report(folder, found, entry, key, figures, rows, samples, options)
        return figures
    with distributed.join() as ranks:
        done = ranks.agree(done)
        built, found, config = saved.open_checkpoint(path, ranks, averaged=options.averaged, length=options.length)
        if options.high_res:
            built.section, max_tokens = _high_resolution(built)
            config = config.model_copy(update={"data": config.data.model_copy(update={"max_tokens": max_tokens})})
        if rule is None:
            held = parts.held_out(built, config, ranks, data)
            loss = built.family.Loss(built.section)
            figures = evaluation.held_out_loss(built.model, loss, held.batches(entry), ranks, config.train.precision)
        else:
            figures, rows = _examine(rule, built, config, samples, done, folder, key, options, found.step, ranks)
        if ranks.first:
            _report(folder, found, entry, key, figures, rows, samples, options)
    return figures


def _examine(
    rule: Any,
    built: parts.Parts,
    config: RunConfig,
    samples: parts.Chosen,
    done: list[dict[str, Any]],
    folder: Path,
    key: Mapping[str, Any],
    options: Options,
    step: int,
    ranks: distributed.Ranks,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures and rows of a bench: the rows in `done`, and those still to be answered, which are kept as they come."""
    if ranks.first and not done:
        (folder / ROWS).unlink(missing_ok=True)
        files.append_rows(folder / ROWS, [key])
    if ranks.first and done:
        files.keep_rows(folder / ROWS, lambda row: True)  # a last line that was cut short
        print(f"{folder / ROWS} has {len(done)} of {len(samples)} answers: going on from there")
    keep = (lambda new: files.append_rows(folder / ROWS, new)) if ranks.first else (lambda new: None)
    inputs, drawn = built.inputs(config, train=False), rule.pictures
    if drawn is not None:
        inputs.moment = f"step-{step:08d}"
    figures, rows = evaluation.run_bench(
        rule, built.model, samples, inputs, options.batch, ranks, config.train.precision, done=done, keep=keep
    )
    if drawn is not None and ranks.first:
        drawn(rows)
    return figures, rows


def _title(bench: str, step: int, options: Options) -> str:
    """The folder's name: another measurement has another one."""
    return f"{bench.replace(':', '-')}-step-{step:08d}" + ("-high-res" if options.high_res else "") + _suffix(options)


def _suffix(options: Options) -> str:
    return f"-length-{options.length:g}" if options.length is not None else "" if options.averaged else "-raw"


def _kind(options: Options) -> str:
    """Which weights are measured."""
    return f"averages of length {options.length:g}" if options.length is not None else AVERAGED if options.averaged else LAST


def _done(folder: Path, key: Mapping[str, Any], loss_samples: int | None) -> list[dict[str, Any]]:
    """What is there already of the measurement `key`: rows of answers, or, for the loss of so many samples, its one row of figures."""
    if loss_samples is not None:
        path = folder / "metrics.json"
        before = json.loads(path.read_bytes()) if path.is_file() else {}
        same = before.get("key") == key and before.get("count") == loss_samples
        return [before["figures"]] if same else []
    written = files.read_rows(folder / ROWS)
    if written and written[0] != key:
        print(f"{folder / ROWS} is of another checkpoint, other data or settings: begun again")
    return written[1:] if written and written[0] == key else []


def _entry(config: RunConfig, bench: str, options: Options) -> Evaluate:
    """The `evaluate:` entry that a bench's name, `--split` and `--data` mean."""
    name, _, split = bench.partition(":")
    benches = {evaluation.LOSS, *registry.benches(config.family)}
    if not split and name in benches:
        given = _sources(options.data, options.split) if options.data is not None else []
        if not given and options.split is not None:
            given = [one.model_copy(update={"split": options.split}) for one in config.data.validation]
        return Evaluate(bench=name, samples=options.samples, batch=options.batch, data=given)
    if split and options.split not in (None, split):
        raise PlaitError(f"--bench {bench} and --split {options.split} name two splits: keep one")
    if not registry.has_datasets(config.family):
        raise PlaitError(f"--bench {name!r} is unknown: {_hint(name, sorted(benches))}")
    known = registry.datasets(config.family)
    if not split and name not in {*known.DATASETS, *known.ALIASES}:
        raise PlaitError(f"--bench {name!r} is unknown: {_hint(name, [*sorted(benches), *known.scored()])}")
    split = split or options.split or known.evaluation_split(name)
    _, source = parts.exam(config, f"{name}:{split}")
    source = source.model_copy(update={"path": options.data})
    return Evaluate(bench=f"{name}:{split}", samples=options.samples, batch=options.batch, data=[source])


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _sources(text: str, split: str | None) -> list[Source]:
    """The sources that `--data` means: a list in YAML, KIND:PATH (dataset:NAME), or a file or folder whose kind can be told."""
    try:
        if text.startswith("["):
            return [Source.model_validate({"split": split, **row} if split else row) for row in reading.scalar(text)]
        kind, colon, rest = text.partition(":")
        if colon and kind in get_args(SourceKind):
            where = {"name": rest} if kind in ("dataset", "datasets") else {"path": rest}
            return [Source.model_validate({"source": kind, "split": split, **where})]
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise PlaitError(f"--data {text!r} is no list of sources: {reason}") from error
    path = paths.local(text)
    if path.suffix in (".jsonl", ".json"):
        return [Source(source="jsonl", path=text)]
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return [Source(source="shards", path=text, split=split)]
    if path.is_dir():
        return [Source(source="folder", path=text, split=split)]
    kinds = ", ".join(get_args(SourceKind))
    raise PlaitError(
        f"--data {text!r} is no .jsonl, .tar or folder; give one, a list of sources in YAML, or KIND:PATH with KIND one of {kinds}"
    )


def _high_resolution(built: parts.Parts) -> tuple[Any, int]:
    family = built.config.family
    if not registry.has_datasets(family):
        raise PlaitError(f"family {family!r} has no --high-res: its pictures have one size")
    return registry.datasets(family).high_resolution(built.section)


def _report(
    folder: Path,
    found: Checkpoint,
    entry: Evaluate,
    key: Mapping[str, Any],
    figures: Mapping[str, float],
    rows: Sequence[dict[str, Any]],
    samples: parts.Chosen,
    options: Options,
) -> None:
    """Print the figures and write them down, with the answers and some of their pictures."""
    told = {"checkpoint": str(found.folder), "bench": entry.bench, "samples": options.samples}
    files.write_json(folder / "metrics.json", {**told, **figures, "count": len(samples), "figures": dict(figures), "key": dict(key)})
    kind = _kind(options)
    print(f"{found.folder}, {kind if kind != AVERAGED or found.saved('ema') else LAST}")
    print("\n".join(f"  {name:<24} {value:.4f}" for name, value in figures.items()))
    if rows:
        _answers(folder, entry.bench, rows, samples, options)
    print(f"written to {folder}")


def _answers(folder: Path, bench: str, rows: Sequence[dict[str, Any]], samples: parts.Chosen, options: Options) -> None:
    files.write_json(folder / "predictions.json", list(rows))
    cards = [card(row, samples, place) for place, row in enumerate(rows[: options.pictures])]
    sheet, page = gallery.write(folder, f"{bench}: {len(rows)} held-out answers", cards)
    print(f"  pictures and answers     {sheet} and {page}")
    for row in [row for row in rows if "answer" in row or "bad" in row][: options.show]:
        mark = {True: "right", False: "wrong"}.get(row.get("correct"), row.get("bad", ""))  # type: ignore[arg-type]
        print(f"  {row['id']}: {row.get('question', '')} -> {row.get('answer', '')!r} (gold {row.get('gold', '')!r}) {mark}")


def card(row: dict[str, Any], samples: parts.Chosen, place: int) -> gallery.Card:
    """One answer beside its pictures, with its score; a drawn one is shown last. Of a sample that cannot be read, why."""
    if "bad" in row:
        return gallery.Card(pictures=[], text=[(str(row["bad"]), False)], title=str(row["id"]))
    drawn = [Path(row["picture"]).read_bytes()] if "picture" in row else []
    pictures = [images.decode(data).permute(1, 2, 0).numpy() for data in [*samples[place]["images"], *drawn]]
    text = [(row.get("question", row.get("caption", "")), False)]
    if "answer" in row:
        text += [("\n", False), (str(row["answer"]), True), (f"\ngold: {row.get('gold', '')}", False)]
    return gallery.Card(pictures=pictures, text=text, title=str(row["id"]), verdict=row.get("correct"), notes=_notes(row))


def _notes(row: dict[str, Any]) -> dict[str, str]:
    return {"score": f"{row['score']:.3f}"} if isinstance(row.get("score"), float) else {}
