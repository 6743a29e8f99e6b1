"""`plait stages`: the stages of a run from its files alone: how far each is, why it ended, what it trains, how good it became."""

import fcntl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait import files
from plait.assembly.configuration import open_run_config
from plait.config.resolved import StageView
from plait.config.schema import RunConfig
from plait.engine.checkpoints import checkpoint

_GAP_S = 600.0
"""Two rows further apart than this (and than ten of their steps) have a stop between them, which is no training time."""

Row = Mapping[str, Any]


def show(run: Path) -> None:
    """Print one block per stage of the run, and what it came from. Raises PlaitError when `run` is no run directory."""
    resolved = open_run_config(run)
    rows = files.read_rows(run / "metrics.jsonl")
    manifests = _manifests(run)
    now = max([*manifests, *(row["stage"] for row in rows if "stage" in row), 0])
    newest = manifests.get(max(manifests, default=0))
    running = _held(run)
    for view in resolved.stages:
        facts = manifests.get(view.index)
        print(f"stage {view.index} {view.name}: {_state(view.index, now, facts, running)}")
        print(f"  trains     {_trains(view.config, facts, newest)}")
        for name, text in _progress(view, rows, facts) if view.index <= now else []:
            print(f"  {name:<10} {text}")


def _progress(view: StageView, rows: Sequence[Row], facts: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    own = [row for row in rows if row.get("stage") == view.index]
    trained = [row for row in own if "loss" in row]
    before = max((row["step"] for row in rows if row.get("stage", view.index) < view.index), default=0)
    start = facts["state"]["stage_start"] if facts else before
    saved_step = facts["state"]["step"] if facts else None
    done = max([saved_step or start, *(row["step"] for row in trained)]) - start
    planned = facts["steps"] if facts else view.config.train.steps
    of, last = f" of {planned:,}" if planned else "", "none saved here" if saved_step is None else f"last saved at {saved_step:,}"
    lines = [("steps", f"{done:,}{of}, from step {start:,}; {last}")]
    lines += [("held out", text) for text in _held_out(own, view.config)]
    return [*lines, ("hours", f"{hours(trained, start):.3g}")]


def _state(index: int, now: int, facts: Mapping[str, Any] | None, running: bool) -> str:
    if facts is not None and facts["state"]["stage_done"]:
        return f"done: {facts['state']['stage_done']}"
    if index != now:
        return "not begun" if index > now else "done in the run it was forked from, or its checkpoints were removed"
    return "running" if running else "stopped; `plait train` goes on"


def _manifests(run: Path) -> dict[int, dict[str, Any]]:
    """The newest manifest of each stage."""
    found: dict[int, dict[str, Any]] = {}
    for folder in checkpoint.published(run):
        manifest = checkpoint.read(folder).manifest
        found.setdefault(int(manifest["state"]["stage"]), manifest)
    return found


def _trains(config: RunConfig, facts: Mapping[str, Any] | None, newest: Mapping[str, Any] | None) -> str:
    """Components with counts: as the stage's checkpoints say; for a stage without any, whole components by another stage's."""
    if facts is not None:
        parts = facts["components"]
        total = sum(part["values"] for part in parts.values())
        counts = {name: part["trains"] for name, part in parts.items() if part["trains"]}
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        return f"{shown} ({sum(counts.values()) / total:.2%} of {total:,})"
    sizes = {name: part["values"] for name, part in newest["components"].items()} if newest else {}
    return ", ".join(f"{name} {sizes[name]:,}" if name in sizes else name for name in config.trainable)


def _held_out(rows: Sequence[Row], config: RunConfig) -> list[str]:
    """The best held-out loss, and the best of the figure that `checkpoint.best` follows when that is another."""
    wanted = {"loss": "lower", config.checkpoint.best or "loss": config.checkpoint.better if config.checkpoint.best else "lower"}
    lines = []
    for name, better in wanted.items():
        values = [(row[f"eval/{name}"], row["step"]) for row in rows if isinstance(row.get(f"eval/{name}"), float)]
        if values:
            value, step = min(values) if better == "lower" else max(values, key=lambda item: (item[0], -item[1]))
            lines.append(f"best {name} {value:.4g} at step {step:,}, last {values[-1][0]:.4g}")
    return lines or ["no held-out figure yet"]


def hours(rows: Sequence[Row], start: int) -> float:
    """Training time of a stage that began at step `start`, by its rows; evaluations and saves between two count, stops do not."""
    seconds, before = 0.0, None
    for row in rows:
        alone = float(row["step_s"]) * (row["step"] - (before["step"] if before else start))
        passed = row["time_s"] - before["time_s"] if before else alone
        seconds += passed if passed <= max(_GAP_S, 10 * alone) else alone
        before = row
    return seconds / 3600


def _held(run: Path) -> bool:
    """Whether a process trains this run now: its lock is taken."""
    path = run / "lock"
    if not path.is_file():
        return False
    with open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
