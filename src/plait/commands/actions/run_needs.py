"""List what a run reads and writes, for `plait doctor`: weights, data, what its benches (evaluations) open, and disk space.

A Finding is the result of a check, with a `cure` if something is wrong; a Wanted, a repository of the Hub that the run reads.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from plait.assembly import checkpoint_specs, hub_start
from plait.assembly.data import open_data, open_training
from plait.assembly.held_out import HeldOutData, benches
from plait.commands.actions.findings import Finding
from plait.commands.actions.hub_access import Wanted
from plait.config.resolved import Resolved
from plait.config.schema import Evaluate, ModelSection, SourceEntry
from plait.data.link_lists.refusal import refuse_known
from plait.data.sources.filtered import filtered_text
from plait.data.streaming.opening import LARGE_BYTES, StreamOptions
from plait.engine.checkpoints import checkpoint
from plait.engine.monitoring import alerts
from plait.errors import PlaitError
from plait.families import registry
from plait.training.planning import checkpoint_size
from plait.training.planning.entries import held_out_entries, names_repository, on_hub, training_entries


def names_hub(name: str) -> bool:
    """Return whether a name of weights means a Hub repository. It has a /, does not begin with . ~ or /, and no such path exists."""
    return not name.startswith((".", "~", "/")) and name.count("/") >= 1 and not Path(name).exists()


def weights(resolved: Resolved) -> tuple[list[Finding], list[Wanted]]:
    """Return (a finding per set of weights that is to be in a local folder, the Hub repositories that the run reads).

    Weights are those of the model, of encoders that benches open, and of `from:`. Raises PlaitError for an unknown family.
    """
    config = resolved.config
    family = registry.load(config.family)
    section = family.Config.model_validate(config.model)
    findings, wanted = [], []
    for part in family.base(section):
        name, setting = str(part["name"]), f"model: {part['part']}"
        if name.count("/") == 1 and names_hub(name):
            wanted.append(Wanted(setting, name, part["revision"], part.get("folder") or ""))
        elif "/" in name or name.startswith((".", "~")):
            findings.append(_here(name))
    try:
        entries = [entry for view in resolved.stages for entry in view.config.evaluate]
        encoders = [name for entry in entries for name in _encoders(config.family, section, entry)]
    except PlaitError as error:
        findings.append(Finding("benches", str(error), "mend what the line on benches names"))
        encoders = []
    for name in dict.fromkeys(encoders):
        base, _, revision = name.partition("@")
        if names_hub(base):
            owner, repository, *folder = base.split("/")
            wanted.append(Wanted("evaluate", f"{owner}/{repository}", revision or None, "/".join(folder), library=False))
        elif "/" in name:
            findings.append(_here(name))
    if config.from_:
        path, mark = checkpoint_specs.split(config.from_)
        if path.exists() or not checkpoint_specs.may_be_hub(str(path)):
            findings.append(_checkpoint(config.from_))
        else:
            commit, step = (None, mark) if hub_start.names_step(mark) else (mark or None, "")
            wanted.append(Wanted("from: no folder here", str(path), commit, library=False, start=step))
    return findings, list(dict.fromkeys(wanted))


def _here(name: str) -> Finding:
    """Return whether a folder of weights is here, as the libraries look: none of them takes ~ for the home directory."""
    exists = Path(name).exists()
    return Finding("weights", f"{name} is {'here' if exists else 'not here'}", None if exists else f"save the part as {name}")


def _checkpoint(spec: str) -> Finding:
    path, _ = checkpoint_specs.split(spec)
    try:
        if not path.exists() or checkpoint.is_step(path) or checkpoint.published(checkpoint.run_of(path)):
            checkpoint_specs.locate(spec)  # also verifies its files
    except PlaitError as error:
        return Finding("weights", f"from: {error}", "mend from:")
    return Finding("weights", f"{spec} (from) is here")


def _encoders(family: str, section: ModelSection, entry: Evaluate) -> list[str]:
    """Return the pretrained encoders that an entry's bench opens, by name; none for a bench that the family does not know."""
    bench = registry.benches(family).get(entry.bench)
    return [] if bench is None else [name for name in bench.needs(section) if not name.startswith("tiny")]


def datasets(resolved: Resolved) -> list[Wanted]:
    """Return the Hub datasets that the run is trained or evaluated on, each once. Raises PlaitError for a mixture that cannot be read.

    Those that a family knows by another name (`hub: true`) are not among them.
    """
    found: dict[tuple[str, str | None], Wanted] = {}
    for config in (view.config for view in resolved.stages):
        listed = [*((entry, True) for entry in training_entries(config)), *((entry, False) for entry in held_out_entries(config))]
        for entry, training in listed:
            if names_repository(entry):
                wanted = _dataset(entry, training=training)
                other = found.setdefault((wanted.name, wanted.revision), wanted)
                if wanted.kept is None or (other.kept is not None and wanted.kept > other.kept):
                    found[wanted.name, wanted.revision] = wanted
    return list(found.values())


def _dataset(entry: SourceEntry, *, training: bool) -> Wanted:
    """Return the Hub dataset of an entry, and how much of it is kept where it is streamed. `training`: whether it is trained on."""
    revision, stream = entry.options.get("revision"), entry.options.get("stream", "auto")
    streamed = stream is True or (training and stream == "auto")
    kept = int(float(entry.options.get("cache_gb") or StreamOptions.cache_gb) * 1e9) if streamed else None
    named = Wanted("data", str(entry.name), None if revision is None else str(revision), None, "dataset", library=False)
    return replace(named, kept=kept, least=0 if stream is True else LARGE_BYTES)


def data(resolved: Resolved) -> Iterator[Finding]:
    """Open each training dataset of all stages once, and yield one finding: their number and samples, or the first error.

    Datasets of the Hub are not opened, because that would download them. Raises nothing for a dataset that cannot be opened.
    """
    opened: dict[str, tuple[int, int]] = {}
    remote: set[str] = set()
    left_out: list[str] = []
    try:
        for config in (view.config for view in resolved.stages):
            entries = training_entries(config)
            for entry in entries:
                refuse_known(entry)
            remote |= {str(entry.name) for entry in entries if on_hub(entry)}
            if config.data.mixture is not None and not any(map(on_hub, entries)):
                sources = open_training(config).sources
                opened[repr((config.data.mixture, config.data.without))] = (len(sources), sum(map(len, sources)))
                continue
            for entry in entries:
                if not on_hub(entry) and (name := repr(entry.model_copy(update={"weight": 1.0}))) not in opened:
                    source = open_data(config, [entry], "train")[0]
                    opened[name] = (1, len(source))
                    left_out += [f"; {source.name} {filtered_text(source)}"] if source.filtered else []
    except PlaitError as error:
        yield Finding("data", str(error), "mend data.train: see the line on data")
        return
    count, samples = (sum(values) for values in zip((0, 0), *opened.values(), strict=True))
    left = f"; {len(remote)} on the Hub not opened, which would download {'them' if len(remote) > 1 else 'it'}" if remote else ""
    yield Finding("data", f"{count} source{'s' * (count != 1)} of all stages open, with {samples:,} samples{left}{''.join(left_out)}")


def bench_data(resolved: Resolved) -> Iterator[Finding]:
    """Open the held-out data of every bench of all stages, and yield one finding: the samples of each, or the first error.

    Nothing is yielded without benches. Datasets of the Hub are not opened, because that would download them.
    """
    taken: list[str] = []
    for config in (view.config for view in resolved.stages):
        try:
            benches(config, config.evaluate)
            held_out = HeldOutData(config)
            for entry in config.evaluate:
                shared = [entry for entry in training_entries(config) if config.data.share_of(entry)]
                held = [*config.data.validation_sources, *shared]
                remote = any(map(on_hub, entry.data or ([] if ":" in entry.bench else held)))
                taken.append(f"{entry.bench} " + ("on the Hub, not opened" if remote else f"{len(held_out.of(entry)[1]):,} samples"))
        except PlaitError as error:
            yield Finding("benches", str(error), "mend evaluate: see the line on benches")
            return
    if taken:
        yield Finding("benches", f"have their data: {'; '.join(dict.fromkeys(taken))}")


def services(resolved: Resolved) -> Iterator[Finding]:
    """Check that a run's alerts could be sent, and that its tracking services and adapters have their packages. Nothing is sent."""
    alert, track = resolved.config.alert, resolved.config.track
    if alert.wanted:
        try:
            alerts.check(alert)
            yield Finding("alerts", f"{', '.join([*alert.urls, *(['a command'] if alert.command else [])])} told of {', '.join(alert.on)}")
        except PlaitError as error:
            yield Finding("alerts", str(error), "mend alert: see the line on alerts")
    for name, settings in (("wandb", track.wandb), ("mlflow", track.mlflow), ("trackio", track.trackio)):
        if settings is not None and importlib.util.find_spec(name) is None:
            yield Finding("trackers", f"{name} is not installed, and would get no rows", f"pip install 'plait[{name}]'")
    adapters = resolved.config.adapters.values()
    needed = {"peft": bool(adapters), "bitsandbytes": any(adapter.quantize is not None for adapter in adapters)}
    for name in (name for name, wanted in needed.items() if wanted and importlib.util.find_spec(name) is None):
        extra = "adapters" if name == "peft" else "qlora"
        yield Finding("adapters", f"{name} is not installed, which makes them", f"pip install 'plait[{extra}]'")


def checkpoints(resolved: Resolved) -> tuple[int, int]:
    """Return (the largest number of checkpoints that a run keeps in all stages, their bytes plus those of one more being written).

    Builds the model on the meta device. Raises PlaitError if its sizes are not known, such as those of a Hub model that is not accessible.
    """
    return checkpoint_size.needed(checkpoint_size.of_run(resolved))
