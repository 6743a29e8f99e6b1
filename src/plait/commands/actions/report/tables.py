"""Make the tables of a run's page: stages, held-out figures, measurements, starts, data, faults, and where the time went."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plait.commands.actions.findings import gigabytes
from plait.commands.actions.report.record import RunRecord, is_number
from plait.commands.actions.runs import prune
from plait.commands.pages.axes import number
from plait.commands.pages.report import Part, Table, Tile
from plait.engine.checkpoints import checkpoint
from plait.engine.evaluation import is_count
from plait.engine.monitoring import screen
from plait.training.figures import forgetting

_MOST_ROWS = 20
"""Rows of a list of events that are shown; more are counted."""
_PARTS = {
    "data": "waiting for data",
    "start": "beginning of steps",
    "copy": "copies to the device",
    "forward": "forward",
    "backward": "backward",
    "update": "update",
    "record": "metrics, callbacks",
    "evaluate": "evaluations",
    "save": "checkpoints",
    "other": "setting up",
}
"""Words for the parts of a step, as rows have them under `spent`."""
_VERSIONS = ("plait", "python", "torch", "transformers", "diffusers", "numpy")
"""Packages whose versions a page tells; a checkpoint's manifest has all."""


def stage_table(record: RunRecord) -> Table:
    """Return the table of stages: a row per stage of the configuration, also those that have not begun."""
    rows = []
    for view in record.resolved.stages:
        config, manifest, progress = view.config, record.manifests.get(view.index), record.progress.get(view.index)
        trains = {name: one["trains"] for name, one in manifest["components"].items() if one["trains"]} if manifest else {}
        what = ", ".join(f"{name} {count:,}" for name, count in trains.items()) or ", ".join(config.trainable)
        figures = [f"{one.name} {number(one.best)} at {one.step:,}" for one in progress.figures[:2]] if progress else []
        rows.append(
            [
                view.name,
                progress.steps if progress else "not begun",
                what,
                f"{config.train.global_batch:,}",
                f"{config.optim.lr:g}",
                config.train.precision,
                ", ".join(figures),
                progress.time if progress else "",
                str(manifest["state"]["stage_done"] or "") if manifest else "",
            ]
        )
    head = ["stage", "steps", "trains", "batch", "rate", "precision", "best held out", "time", "ended"]
    return Table("", head, rows, frozenset({1, 3, 4, 7}))


def held_out_table(record: RunRecord) -> Table | None:
    """Return the table of the figures that evaluations during the run gave: first, best and last; None where there are none.

    Which value is the best is known of the figures that `plait stages` shows; of others the column is empty.
    """
    best = {figure.name: figure for of in record.progress.values() for figure in of.figures}
    rows = []
    for name in dict.fromkeys(name for row in record.held_out for name in row if name.startswith("eval/") and is_number(row[name])):
        figure, points = name.removeprefix("eval/"), record.series(name)
        if is_count(figure) or (figure.startswith("loss/") and points == record.series("eval/loss")):
            continue
        if not any(value for _, value in points):
            continue
        known = best.get(figure)
        top = f"{number(known.best)} at {known.step:,}" if known else ""
        rows.append([figure, number(points[0][1]), top, number(points[-1][1]), _interval(record, figure), f"{points[-1][0]:,.0f}"])
    return (
        Table("Figures while training", ["figure", "first", "best", "last", "95 %", "at step"], rows, frozenset({1, 2, 3, 4, 5}))
        if rows
        else None
    )


def _interval(record: RunRecord, figure: str) -> str:
    """Return the interval of a figure's last value, "" where it has none."""
    row = next((row for row in reversed(record.held_out) if is_number(row.get(f"eval/{figure}"))), {})
    pair = row.get("intervals", {}).get(figure)
    return f"{number(pair[0])} to {number(pair[1])}" if isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) else ""


def ledger_table(record: RunRecord) -> Table | None:
    """Return the table of what each stage gained and forgot, on the same held-out samples; None where none was measured."""
    if not record.ledger:
        return None
    rows = [forgetting.Entry(**{name: entry[name] for name in forgetting.Entry._fields}).cells() for entry in record.ledger]
    head = ["stage", "bench", "against", "before", "after", "difference", "95 %", "verdict"]
    return Table("Gained and forgotten", head, rows, frozenset({3, 4, 5, 6}), "On the same held-out samples before and after each stage.")


def starts_table(record: RunRecord) -> Table | None:
    """Return the table of starts from something that was saved; None for a run that was never continued and began from nothing."""
    rows = []
    for start in record.starts:
        kept = Counter(str(row.get("verdict", "?")) for row in start.get("rows", []) if isinstance(row, dict))
        lost = [str(line) for line in start.get("inexact", [])]
        tensors = ", ".join(f"{count} {verdict}" for verdict, count in kept.items())
        rows.append([_moment(start.get("time_s")), _below(start["from"], record.path), tensors, "; ".join(lost) or "exact"])
    return Table("Starts", ["when", "from", "groups of tensors", "what was lost"], rows) if rows else None


def _below(text: str, run: Path) -> str:
    """Return a checkpoint's folder without the run's own path before it."""
    return text.removeprefix(f"{run}/").removeprefix(f"{run.resolve()}/")


def data_table(record: RunRecord) -> Table:
    """Return the table of data: each source of each stage, its fingerprint, and its share of the samples so far.

    Rows that are the same in all stages stand once.
    """
    shares = next((row for row in reversed(record.trained) if any(name.startswith("share/") for name in row)), {})
    newest, rows = max(record.progress, default=0), list[list[str]]()
    for view in record.resolved.stages:
        data, manifest = view.config.data, record.manifests.get(view.index)
        prints = [*manifest["data"].items()] if manifest else []
        named = prints if len(prints) == len(data.train) else [("", "")] * len(data.train)
        for entry, (title, content) in zip(data.train, named, strict=True):
            drawn = shares.get(f"share/{title}/samples") if view.index == newest and shares.get("stage") == newest else None
            share = f"{drawn:.1%}" if is_number(drawn) else ""
            rows.append([view.name, "training", entry.source, entry.name or entry.path or title, f"{entry.weight:g}", share, str(content)])
        rows += [[view.name, "held out", entry.source, entry.name or entry.path or "", "", "", ""] for entry in data.validation_sources]
        rows += [[view.name, "held out", data.shares, "", "", "", ""]] if data.shares else []
    counts = Counter(tuple(row[1:]) for row in rows)
    many = len(record.resolved.stages)
    alike = [["all", *row] for row, count in counts.items() if count == many > 1]
    rows = alike + [row for row in rows if counts[tuple(row[1:])] < many or many == 1]
    return Table("", ["stage", "use", "source", "path or name", "weight", "drawn", "fingerprint"], rows, frozenset({4, 5}))


def quarantine_table(record: RunRecord) -> Table | None:
    """Return the table of samples that could not be used, by reason; None where there is none."""
    counts = Counter(str(row.get("reason", "no reason is recorded")) for row in record.quarantine)
    examples = {str(row.get("reason", "no reason is recorded")): str(row.get("sample", "")) for row in reversed(record.quarantine)}
    rows = [[reason, f"{count:,}", examples[reason]] for reason, count in counts.most_common(_MOST_ROWS)]
    more = f" {len(counts) - _MOST_ROWS} more reasons are in quarantine.jsonl." if len(counts) > _MOST_ROWS else ""
    note = f"{len(record.quarantine):,} samples could not be used, and were replaced.{more}"
    return Table("Quarantine", ["reason", "samples", "such as"], rows, frozenset({1}), note) if rows else None


def warnings_table(record: RunRecord) -> Table | None:
    """Return the table of warnings, skipped steps and benches that failed; None where there was none."""
    rows = [[f"{step:,}", kind, text.removeprefix(f"step {step}: ")] for step, kind, text in events(record)]
    note = f"The last {_MOST_ROWS} of {len(rows):,}." if len(rows) > _MOST_ROWS else ""
    return Table("Warnings", ["step", "kind", "what"], rows[-_MOST_ROWS:], frozenset({0}), note) if rows else None


def events(record: RunRecord) -> list[tuple[int, str, str]]:
    """Return (step, kind, text) of each warning, step without an update, and bench that failed, by step."""
    found = [(row["step"], "warning", str(text)) for row in record.rows for text in _list(row.get("warnings"))]
    found += [(row["step"], "no update", "the step was passed over") for row in record.trained if row.get("skipped")]
    found += [(row["step"], "failed", f"bench {row['bench']}: {row['reason']}") for row in record.failures]
    return sorted(found)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def time_parts(record: RunRecord) -> list[Part]:
    """Return where the time of the run went: parts of a step, and what lies between steps; [] without a step."""
    spent = seconds_by_part(record)
    total = sum(spent.values())
    return [
        Part(name, value / total, f"{_duration(value)}, {value / total:.1%}") for name, value in spent.items() if total > 0 and value > 0
    ]


def seconds_by_part(record: RunRecord) -> dict[str, float]:
    """Return the seconds of the run by part of a step, in words, and by what lies between steps.

    From what rows have under `spent`, where they have it; else steps, waiting for data, and the rest of the clock's time while it ran.
    """
    spent: dict[str, float] = {}
    for row in record.trained:
        told = row.get("spent")
        for name, seconds in (
            told.get("seconds", {}).items() if isinstance(told, Mapping) and isinstance(told.get("seconds"), Mapping) else ()
        ):
            if is_number(seconds):
                part = _PARTS.get(name, name)
                spent[part] = spent.get(part, 0.0) + seconds
    return spent or dict(_clocked(record))


def _duration(seconds: float) -> str:
    return screen.clock(seconds) if seconds >= 60 else f"{seconds:.1f} s"


def _clocked(record: RunRecord) -> Iterator[tuple[str, float]]:
    """Yield (part, seconds) of a run whose rows do not say it: from the time of the recorded steps."""
    step_s = wait_s = 0.0
    before = 0
    for row in record.trained:
        if is_number(row.get("step_s")) and is_number(row.get("data_wait_s")):
            count = row["step"] - before
            step_s, wait_s = step_s + count * row["step_s"], wait_s + count * row["data_wait_s"]
        before = row["step"]
    yield "steps", step_s
    yield "waiting for data", wait_s
    yield "evaluations, checkpoints and the rest", max(0.0, record.listed.seconds - step_s - wait_s)


def disk_table(record: RunRecord) -> Table | None:
    """Return the table of the checkpoints that are there, with their bytes; None without one."""
    best = {one["state"]["best"]["step"] for one in record.manifests.values() if one["state"]["best"]}
    rows = [
        [folder.parent.name, f"{(step := checkpoint.step_of(folder)):,}", gigabytes(prune.size_of(folder)), "best" if step in best else ""]
        for folder in record.checkpoints
    ]
    return Table("Checkpoints", ["stage", "step", "size", ""], rows, frozenset({1, 2})) if rows else None


def tiles(record: RunRecord) -> list[Tile]:
    """Return the figures at the head of the page."""
    trained = record.trained
    shown = list[Tile]()
    last = [row["loss"] for row in trained[-max(1, len(trained) // 50) :] if is_number(row["loss"])]
    if last:
        shown.append(
            Tile(
                "training loss",
                number(statistics.fmean(last)),
                "the last step" if len(last) == 1 else f"mean of the last {len(last)} records",
            )
        )
    figures = record.listed.figures
    for figure in figures[:2]:
        sure = f"{number(figure.interval[0])} to {number(figure.interval[1])}, " if figure.interval else ""
        shown.append(Tile(f"best {figure.name}, held out", number(figure.best), f"{sure}step {figure.step:,}"))
    shown.append(Tile("steps", f"{record.last_step:,}", f"in {screen.clock(record.listed.seconds)}"))
    totals = trained[-1] if trained else {}
    tokens = f"{number(float(totals['tokens']))} tokens" if is_number(totals.get("tokens")) else ""
    if is_number(totals.get("samples")):
        shown.append(Tile("samples", number(float(totals["samples"])), tokens))
    speeds = [row["samples_per_s"] for row in trained if is_number(row.get("samples_per_s"))]
    if speeds:
        shown.append(Tile("samples per second", number(statistics.median(speeds)), "median"))
    return shown


def _moment(time_s: Any) -> str:
    """Return a Unix time as text, "" where it is none."""
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC" if is_number(time_s) else ""


def details(record: RunRecord) -> list[tuple[str, str]]:
    """Return facts about a run's environment: family, versions, ranks, base weights, and where it began."""
    manifest, config = record.manifest, record.resolved.config
    rows = [("family", config.family), ("run", str(record.path.resolve()))]
    if manifest:
        total = sum(one["values"] for one in manifest["components"].values())
        ever = f"{len(manifest['state']['trained']):,} tensors trained now or ever"
        rows.append(("parameters", f"{total:,}; {ever}"))
        rows += [
            ("base", f"{part['part']}: {part['name']}{' @ ' + part['revision'] if part['revision'] else ''}") for part in manifest["base"]
        ]
        known = manifest.get("versions", {})
        rows += [("versions", ", ".join(f"{name} {known[name]}" for name in _VERSIONS if name in known))]
        rows += [("ranks", f"{manifest['ranks']}")]
    told: Mapping[str, Any] = next((row["spent"] for row in reversed(record.trained) if isinstance(row.get("spent"), Mapping)), {})
    rows += [("device", str(told["device"]))] if "device" in told else []
    rows.append(("seed", f"{config.seed}"))
    if record.lineage is not None:
        kind = "a fork of" if record.lineage.get("kind") == "fork" else "began from"
        rows.append(("origin", f"{kind} {record.lineage.get('from')}, step {record.lineage.get('step')}"))
    begun = [row["time_s"] for row in record.trained if is_number(row.get("time_s"))]
    rows += [("trained", f"{_moment(min(begun))} to {_moment(max(begun))}")] if begun else []
    rows.append(("state", record.listed.state))
    return rows
