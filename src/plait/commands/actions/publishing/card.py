"""Write the model card of a push, README.md: what it is and how it is loaded, stages, data, figures and origin.

It is made once for an item, of what the run had recorded up to its step, so that a push that is repeated sends the same bytes. Figures
stand in it twice: as a table, and as `model-index`, which the Hub shows.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
import yaml
from huggingface_hub import HfApi

from plait import files
from plait.assembly import weight_files
from plait.commands.actions import hub_access
from plait.commands.actions.passport import checked
from plait.commands.actions.publishing import held
from plait.commands.actions.publishing.held import Held
from plait.commands.actions.publishing.outbox import Item, Job
from plait.commands.actions.report import measured, record, tables
from plait.commands.actions.report.record import RunRecord, is_number
from plait.commands.pages.card import clean_name
from plait.commands.pages.report import Table
from plait.config.schema import SourceEntry
from plait.config.sections.adapters import LAYOUT
from plait.engine.evaluation import is_count
from plait.errors import command
from plait.training.figures import picture_use

NAME = "README.md"
_MARK = re.compile(rb"\n<!-- written by plait, xxh3 ([0-9a-f]{16}): a page that is edited is left as it is -->\n\Z")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SLUG = re.compile(r"[^\w/.-]+")
_ASK_S = 20.0
_UNKNOWN = "not recorded"


def write(item: Item, run: Path) -> None:
    """Write the card of an item into its files, if it has none yet. Raises PlaitError where the run's configuration cannot be read."""
    path = item.files / NAME
    if not (path.is_file() and is_ours(path.read_bytes())):  # an export has one of its own
        body = _text(held.of_push(record.read(run), item.job, item.files), item).encode(errors="replace")
        mark = f"\n<!-- written by plait, xxh3 {xxhash.xxh3_64_hexdigest(body)}: a page that is edited is left as it is -->\n"
        path.unlink(missing_ok=True)  # it may be a link to the export's own
        files.write_whole(path, body + mark.encode())


def is_ours(body: bytes) -> bool:
    """Return whether a card is as `write` made it, and nobody has edited it since."""
    mark = _MARK.search(body)
    return mark is not None and xxhash.xxh3_64_hexdigest(body[: mark.start()]) == mark[1].decode()


def _text(of_files: Held, item: Item) -> str:
    run, job, digest = of_files.run, item.job, weight_files.passport_digest(item.files)
    head = yaml.safe_dump(_metadata(of_files, job), sort_keys=False, allow_unicode=True, width=1000)
    tables_of = [_sources(run), *_figures(run), tables.ledger_table(run), tables.starts_table(run)]
    parts = [f"---\n{head}---\n", f"# {_name(job)}\n", _what(run, job), f"{of_files.part}\n" if of_files.part else ""]
    parts += [_peft(item) if job.layout == LAYOUT else _loading(job), "" if of_files.part else _pictures(run)]
    parts += ["## Stages\n", _markdown(tables.stage_table(run))]
    parts += ["## Data, figures and where it comes from\n", *(_markdown(table) for table in tables_of if table is not None)]
    facts = [(name, _without_folders(text)) for name, text in tables.details(run) if name not in ("run", "state")]
    parts += [_markdown(Table("The run", ["", ""], [[*pair] for pair in facts]))]
    parts += [f"{checked.card_line(digest, job.repo)}\n"] if digest is not None else []
    return "\n".join(part for part in parts if part)


def _metadata(of_files: Held, job: Job) -> dict[str, Any]:
    """Return the metadata at the head of the card, which the Hub reads."""
    run = of_files.run
    config, manifest = run.resolved.config, run.manifest
    bases = [str(part["name"]) for part in manifest["base"]] if manifest else []
    told: dict[str, Any] = {"library_name": "peft" if job.layout == LAYOUT else "plait", "tags": ["plait", config.family]}
    if bases := [name for name in dict.fromkeys(bases) if _REPOSITORY.fullmatch(name) and not Path(name).exists()]:
        told["base_model"] = bases
    if data := [name for name in dict.fromkeys(map(_of_hub, _entries(run))) if name is not None]:
        told["datasets"] = data
    if results := _results(of_files, job):
        told["model-index"] = [{"name": _name(job), "results": results}]
    return told


def _name(job: Job) -> str:
    return job.repo.rpartition("/")[2]


def _entries(run: RunRecord) -> list[SourceEntry]:
    begun = [view for view in run.resolved.stages if view.index in run.progress]
    return [entry for view in begun for entry in view.config.data.train]


def _of_hub(entry: SourceEntry) -> str | None:
    """Return the dataset of the Hub that a source reads by its name; None for files, and for what only a family knows the files of."""
    return entry.name if entry.source == "datasets" and entry.name and _REPOSITORY.fullmatch(entry.name) else None


def _results(of_files: Held, job: Job) -> list[dict[str, Any]]:
    """Return the figures as a model index has them: those of `plait eval`, and those that training measured at the step of the push.

    They are of the weights that are loaded by default, with all inputs; others are in the tables, where they are marked.
    """
    run = of_files.run
    results = []
    for bench, data, values, intervals in [*_measured(of_files), *_held_out(run, job)]:
        metrics: list[dict[str, Any]] = []
        for name, value in values.items():
            if held.is_variant(run, name):
                continue
            ends = intervals.get(name) if isinstance(intervals, Mapping) else None
            sure = {"args": {"interval_95": [float(end) for end in ends]}} if ends is not None else {}
            metrics.append({"type": name.rpartition("/")[2] or name, "name": name, "value": float(value), **sure})
        if metrics:
            results.append(
                {
                    "task": {"type": "other", "name": bench},
                    "dataset": {"name": data, "type": _SLUG.sub("-", data).strip("-")},
                    "metrics": metrics,
                }
            )
    return results


_Result = tuple[str, str, dict[str, float], Mapping[str, Any]]
"""(bench, what it was measured on, figures, intervals by figure)."""


def _measured(of_files: Held) -> list[_Result]:
    found: list[_Result] = []
    for folder, told in of_files.run.measured:
        if held.is_of(told, of_files.run, of_files.weights):
            values = {name: value for name, value in told["figures"].items() if is_number(value) and not is_count(name)}
            intervals = told.get("intervals")
            data = _without_folders(str(told.get("data", "held-out data")))
            result = (measured.bench_of(told, folder), data, values, intervals if isinstance(intervals, dict) else {})
            found += [result] if result not in found else []  # without averages the last weights are measured in both ways
    return found


def _held_out(run: RunRecord, job: Job) -> list[_Result]:
    """Return the figures that evaluations in training gave at the step of the push, one result for each bench."""
    values: dict[str, dict[str, float]] = {}
    intervals: dict[str, Any] = {}
    for row in run.held_out:
        for name, value in row.items() if row["step"] == job.step else ():
            figure = name.removeprefix("eval/")
            if name.startswith("eval/") and is_number(value) and not is_count(figure):
                values.setdefault(figure.partition("/")[0], {})[figure] = value
                intervals[figure] = row.get("intervals", {}).get(figure)
    return [(bench, "held-out data of the run", figures, intervals) for bench, figures in values.items()]


def _what(run: RunRecord, job: Job) -> str:
    manifest = run.manifest
    trained = {name: one["trains"] for name, one in manifest["components"].items() if one["trains"]} if manifest else {}
    what = ", ".join(f"{name} ({count:,} parameters)" for name, count in trained.items())
    bases = ", ".join(f"{part['part']} {_without_folders(str(part['name']))}" for part in manifest["base"]) if manifest else ""
    form = f"an export in the layout {job.layout}" if job.layout else "its trained weights, and their averages where it keeps them"
    lines = [
        f"A model of family `{run.resolved.config.family}` that plait trained: {job.title}, "
        f"run {job.identity}. This repository holds {form}; no optimizer state.",
        f"Trained in this stage: {what or 'nothing'}. Over: {bases or 'no pretrained weights'}.",
    ]
    return "\n\n".join(lines) + "\n"


def _loading(job: Job) -> str:
    spec = job.repo if job.branch is None else f"{job.repo}@{job.branch}"
    more = f" (`@{job.branch}` is the newest of this stage, and `{job.repo}` alone the newest of all)" if job.branch else ""
    lines = ["## How to load it\n", f"A run begins with these weights by `from: {spec}`{more}:\n"]
    lines += [f"```bash\n{command('train', 'CONFIG', f'--from={spec}')}\n```\n"]
    if job.layout:
        lines += [f"The files are those of `{command('export', 'RUN', 'DIR', '--to', job.layout)}`, and load as they do.\n"]
    return "\n".join(lines)


def _peft(item: Item) -> str:
    """Return how adapters are loaded, which are no start of a run: each folder of them over the model that they were trained on."""
    revision = f', revision="{item.job.branch}"' if item.job.branch is not None else ""
    lines = ["from peft import PeftModel\n"]
    for path in sorted([*item.files.glob("adapter_config.json"), *item.files.glob("*/adapter_config.json")]):
        told = json.loads(path.read_bytes())
        commit = f" at {told['revision']}" if told.get("revision") else ""
        folder = "" if path.parent == item.files else f', subfolder="{path.parent.name}"'
        lines.append(f"# base: the model of {_without_folders(str(told.get('base_model_name_or_path')))}{commit}, as its library loads it")
        lines.append(f'model = PeftModel.from_pretrained(base, "{item.job.repo}"{folder}{revision})')
    code = "\n".join(lines)
    start = "No run of plait begins with them: that takes a push of the checkpoint itself, without `--to`."
    return f"## How to load it\n\nThese are adapters alone, for peft:\n\n```python\n{code}\n```\n\n{start}\n"


def _pictures(run: RunRecord) -> str:
    """Return what is known of whether the model uses its inputs: the last look in training, and the verdicts of `plait eval --ablate`."""
    looks, lines = run.looks, list[str]()
    if looks:
        row = looks[-1]
        lines.append(f"At step {row['step']:,} pictures make {picture_use.verdict(row)}: {picture_use.sentence(row)}.")
    lines += [f"{told.get('bench')}: {told['verdict']}" for _, told in run.measured if told.get("verdict")]
    body = "\n\n".join(lines) or "It was not measured what inputs are worth (`plait eval RUN --bench NAME --ablate image`)."
    return f"## What it makes of its inputs\n\n{clean_name(body)}\n"


def _figures(run: RunRecord) -> Sequence[Table | None]:
    return tables.held_out_table(run), measured.measured_table(run)


def _sources(run: RunRecord) -> Table:
    """Return the table of training data, with the fingerprint of its content and its licence, where the Hub names one."""
    rows: list[list[str]] = []
    for view in run.resolved.stages:
        manifest = run.manifests.get(view.index)
        if view.index in run.progress:
            prints = [*manifest["data"].values()] if manifest else []
            known = prints if len(prints) == len(view.config.data.train) else [_UNKNOWN] * len(view.config.data.train)
            for entry, content in zip(view.config.data.train, known, strict=True):
                name = entry.name or _without_folders(entry.path or "")
                rows.append([view.name, entry.source, name, f"{entry.weight:g}", str(content), _licence(_of_hub(entry))])
    return Table("Training data", ["stage", "source", "name", "weight", "fingerprint", "licence"], rows)


def _licence(name: str | None) -> str:
    """Return the licence that the Hub names for a dataset."""
    if name is None:
        return _UNKNOWN
    try:
        return hub_access.licence(HfApi().dataset_info(name, timeout=_ASK_S))
    except Exception:  # noqa: BLE001  a card says what is known, and waits for nothing
        return _UNKNOWN


def _without_folders(text: str) -> str:
    """Return a text in which a path on this machine is its last part alone."""
    return re.sub(r"(?<![\w/.:])~?/(?:[^\s/,;]+/)+([^\s/,;]+)", r"\1", text)


def _markdown(table: Table) -> str:
    """Return a table as Markdown, below its title."""
    rows = [table.head, *table.rows]
    cells = [[_without_folders(clean_name(str(cell))).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rules = ["---:" if number in table.figures else "---" for number in range(len(table.head))]
    lines = ["| " + " | ".join(row) + " |" for row in (cells[0], rules, *cells[1:])]
    return "\n".join([*([f"**{table.title}**\n"] if table.title else []), *lines, "", *([f"{table.note}\n"] if table.note else [])])
