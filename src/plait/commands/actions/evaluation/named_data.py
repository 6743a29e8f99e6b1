"""Find what `plait eval` measures on: the `evaluate:` entry that a bench's name and the options `--data` and `--split` mean."""

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import ValidationError

from plait.assembly.exported import read_as
from plait.assembly.held_out import benchmark
from plait.config import reading
from plait.config.messages import one_line
from plait.config.schema import Evaluate, RunConfig, SourceEntry
from plait.data import paths
from plait.data.sources.open import KINDS
from plait.engine import evaluation
from plait.errors import PlaitError
from plait.families import offers, registry
from plait.families.idle_options import no_futures

log = logging.getLogger(__name__)

FROM_HUB = "hub"
"""What `--data` says of a dataset that is known by name, to read it from the Hub."""


class Given(NamedTuple):
    """The options `--data` and `--split`; `trained`: the run's training sources, None where an export does not tell them."""

    data: str | None
    split: str | None
    trained: Sequence[SourceEntry] | None


def entry_of(config: RunConfig, bench: str, given: Given, *, samples: int | None, batch: int) -> Evaluate:
    """Return the `evaluate:` entry that a bench's name, `--data` and `--split` mean. Raises PlaitError for an unknown one.

    `samples`: at most so many (None: all); `batch`: at a time.
    """
    data, split, _ = given
    name, _, part = bench.partition(":")
    known = {evaluation.LOSS, *registry.benches(config.family)}
    dataset = offers.has_datasets(config.family) and name in offers.datasets(config.family).DATASETS
    if not part and name in known and (data is not None or not dataset):
        sources = _sources(data, split, given.trained) if data is not None else []
        if not sources and split is not None:
            if share := config.data.shares:
                raise PlaitError(f"--split {split}: what is held out is {share}, without splits; give --data as well")
            sources = [one.model_copy(update={"split": split}) for one in config.data.validation_sources]
        if not (sources or config.data.holds_out):
            raise PlaitError(f"--bench {name}: there is no held-out data with this model: give some with --data")
        return Evaluate(bench=name, samples=samples, batch=batch, data=sources)
    if part and split not in (None, part):
        raise PlaitError(f"--bench {bench} and --split {split} name two splits: keep one")
    if not offers.has_datasets(config.family):
        raise PlaitError(f"--bench {name!r} is unknown: {_hint(name, sorted(known))}")
    catalogue = offers.datasets(config.family)
    if not part and name not in {*catalogue.DATASETS, *catalogue.ALIASES}:
        raise PlaitError(f"--bench {name!r} is unknown: {_hint(name, [*sorted(known), *catalogue.scored()])}")
    part = part or split or catalogue.evaluation_split(name)
    _, source = benchmark(config, f"{name}:{part}")
    source = source.model_copy(update={"options": {"hub": True}} if data == FROM_HUB else {"path": data})
    return Evaluate(bench=f"{name}:{part}", samples=samples, batch=batch, data=[source])


def with_futures(config: RunConfig, entry: Evaluate, folders: Sequence[str]) -> Evaluate:
    """Return an `evaluate:` entry whose sources have the predicted futures in `folders`, one for each source, in order.

    Raises PlaitError for another number of folders, one that is not there, and a model that sees no futures.
    """
    if (reason := no_futures(config.family, config.model)) is not None:
        raise PlaitError(f"--rollout changes nothing: {reason}; leave it out")
    if not entry.data and (share := config.data.shares):
        raise PlaitError(f"--rollout: what is held out is {share}, whose futures those are")
    sources = entry.data or config.data.validation_sources
    if len(folders) != len(sources):
        raise PlaitError(f"--rollout names {len(folders)} folders for {len(sources)} sources of data: name one for each, in order")
    if missing := [folder for folder in folders if not paths.local(folder).is_dir()]:
        raise PlaitError(f"--rollout: there is no folder {missing[0]}; `plait data rollout` makes one")
    rolled = [one.model_copy(update={"rollout": str(paths.local(folder))}) for one, folder in zip(sources, folders, strict=True)]
    return entry.model_copy(update={"data": rolled})


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _sources(text: str, split: str | None, trained: Sequence[SourceEntry] | None) -> list[SourceEntry]:
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
    told = None if text in KINDS and not paths.local(text).exists() else _kind_of(paths.local(text))
    if told is None and text in KINDS:
        return _sources(f"{text}:", split, trained)
    if told == "jsonl" and split is not None:
        raise PlaitError(f"--split {split}: {text} has no splits; leave it out")
    if told is None:
        raise PlaitError(
            f"--data {text!r} is no .jsonl, .csv, .parquet, .tar or folder; give one, a list of sources in YAML, or KIND:PATH with "
            f"KIND one of {', '.join(KINDS)}"
        )
    return [_as_trained(SourceEntry(source=told, path=text, split=split), trained)]


def _kind_of(path: Path) -> str | None:
    """Return the kind of source that reads a file or folder, None where it cannot be told."""
    if path.suffix in (".jsonl", ".json"):
        return "jsonl"
    if path.suffix in (".csv", ".tsv", ".parquet") or (path.is_dir() and any(path.glob("*.parquet"))):
        return "datasets"
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return "shards"
    return "folder" if path.is_dir() else None


def _as_trained(source: SourceEntry, trained: Sequence[SourceEntry] | None) -> SourceEntry:
    """Return `source` with the template and columns of the first of `trained` of its kind that has any; None: it is told that none are."""
    if trained is None and not KINDS[source.source].own_text:
        form = f"[{{source: {source.source}, path: {source.path}, template: {{user: ...}}, columns: {{...}}}}]"
        log.warning(
            "this export does not tell the template and columns of its run (it is an older one, or of save_pretrained): --data is read "
            f"without; where the run has some, give them: --data='{form}'"
        )
    for number, other in enumerate(trained or ()):
        if other.source == source.source and other.own_text is not None:
            log.info(f"--data is read with the template and columns of data.train.{number}")
            return read_as(source, other)
    return source
