"""Log what differs between a checkpoint and the run that starts from it: settings, learning rate, freezing, data and its order, model.

A bundle is the model with its family (kind of model). A run consists of stages, each with settings of its own. A manifest is a
checkpoint's manifest.json. `allow_inexact`: do not raise for a difference that makes the start inexact.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plait.assembly import saved as saved_models
from plait.assembly.model import ModelBundle
from plait.config.messages import one_line
from plait.config.resolved import ABSENT, Resolved
from plait.config.schema import Optim, RunConfig
from plait.config.sections.continued import Difference
from plait.data.order import segments
from plait.engine import optim, schedule
from plait.engine.checkpoints import checkpoint
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.state import PLANNED, State, with_batch
from plait.errors import PlaitError, command
from plait.training.probes import ProbeLoss
from plait.training.run_context import RunContext
from plait.training.stage_plan import StagePlan, steps_of

log = logging.getLogger(__name__)

LINEAGE = "lineage.json"
"""File in a run directory that records which checkpoint or weights the run was started from, by `from:` or a fork."""
_PROBE_TOLERANCE = 1e-3
_BARS = " ▁▂▃▄▅▆▇█"
_CURVE_COLUMNS = 48


def freezing_changes(manifest: Mapping[str, Any] | None, bundle: ModelBundle, config: RunConfig) -> list[str]:
    """Return a log line per component trained by `config` and not in the checkpoint's stage, or vice versa.

    A component is a part of the model. `manifest`: that of the checkpoint; None for bare weights, which gives []. Raises PlaitError if
    `trainable` names no component.
    """
    if manifest is None:
        return []
    components = bundle.components()
    now = set(optim.select(components, config.trainable, bundle.family.never_trained))
    before = set(manifest["trainable"])
    lines = [f"{name}: trained there, frozen here (its trained weights stay in every checkpoint)" for name in sorted(before - now)]
    return lines + [f"{name}: frozen there, trains here" for name in sorted(now - before)]


def model_changes(folder: Path, bundle: ModelBundle) -> list[str]:
    """Return a log line for each `model:` setting of the bundle that differs in the run to which the checkpoint `folder` belongs.

    Weights may load without an error although such a setting differs. `folder` may also be an exported or consolidated one. [] where its
    settings are not known, or are those of another family. Settings that cannot be read give a line that says so.
    """
    try:
        before = saved_models.model_settings(folder)
    except PlaitError as error:
        return [f"its `model:` settings are not compared: {error}"]
    if before is None or before[0] != bundle.family.name:
        return []
    try:
        section = bundle.family.Config.model_validate(before[1])
    except ValidationError as error:
        return [f"its `model:` settings are not compared, as they are of another version: {one_line(error.errors()[0]['msg'])}"]
    then, now = (_leaves(each.model_dump(mode="json")) for each in (section, bundle.section))
    return [
        f"model.{name}: {json.dumps(then.get(name))} there, {json.dumps(now.get(name))} here"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def _leaves(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten nested settings: {"world": {"tokens": 4}} -> {"world.tokens": 4}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _leaves(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return flat


def describe_changes(before: Resolved, after: Resolved, differences: Sequence[Difference], saved: Path | None) -> str:
    """Describe a changed configuration as indented lines: each changed key, then the old and new learning-rate curve of the current stage.

    `before`, `after`: the configurations; `differences` of them: (key, old value, new value). `saved`: folder of the checkpoint that the
    run continues from; None: no curves. May raise PlaitError, as data is opened where only epochs tell a stage's length.
    """
    lines = [f"  {key}: {json.dumps(old)} -> {json.dumps(new)}" for key, old, new in differences]
    if saved is None or not any(key.startswith(("optim", "train", "stages")) for key, _, _ in differences):
        return "\n".join(lines)
    try:
        manifest = checkpoint.read(saved).manifest
    except PlaitError:  # the start says so, and goes on from another one
        return "\n".join(lines)
    state = manifest["state"]
    if state["stage"] <= len(after.stages):
        view, then = (resolved.stages[state["stage"] - 1] for resolved in (after, before))
        batches = with_batch(state.get("batches", []), state["step"] - state["stage_start"], view.config.train.global_batch)
        lines.append(f"  learning rate then {curve(then.config, manifest['steps'])}")
        lines.append(f"  learning rate now  {curve(view.config, steps_of(view, batches))}")
    return "\n".join(lines)


def without_more_steps(before: Resolved, after: Resolved, binding: Sequence[Difference], saved: Checkpoint) -> list[Difference]:
    """Return the differences `binding`, which would stop a start; [] if they only give the finished current stage more steps.

    They are (key, old value, new value). Logs what more steps change. `saved`: the checkpoint that the start is from; a stage is finished
    when all planned steps are done.
    """
    if not binding or not all(_is_length(key) for key, _, _ in binding):
        return list(binding)
    state, planned = saved.manifest["state"], saved.manifest["steps"]
    if state["stage_done"] != PLANNED or state["stage"] > len(after.stages):
        log.info(f"a stage is given more steps once its planned ones are done; until then a fork can: {_fork(saved.folder, binding)}")
        return list(binding)
    view, done = after.stages[state["stage"] - 1], state["step"] - state["stage_start"]
    steps = steps_of(view, with_batch(state.get("batches", []), done, view.config.train.global_batch))
    if steps <= planned:
        log.info(f"stage {view.name} has done {done} steps, and {steps} are not more; a fork can go back: {_fork(saved.folder, binding)}")
        return list(binding)
    log.info(f"more steps: stage {view.name} was done after {done} and goes on to {steps}")
    log.info(f"  {_describe_rates(before.stages[view.index - 1].config.optim, planned, view.config.optim, steps, done)}")
    lengths = [(old.name, old.config.train, new.config.train) for old, new in zip(before.stages, after.stages, strict=True)]
    if over := [name for name, old, new in lengths[: view.index - 1] if old != new]:
        log.info(f"  stages that are over keep the steps they had: {', '.join(over)}")
    return []


def _fork(saved: Path, binding: Sequence[Difference]) -> str:
    """Return the command of a fork with the changed settings."""
    settings = (f"--{key}={value}" for key, _, value in binding if value not in (None, ABSENT))
    return command("fork", f"{checkpoint.run_of(saved)}@STEP", "NEW", *settings)


def _is_length(key: str) -> bool:
    """Return whether a dotted key is the length of the run or of a stage: train.steps, stages.1.train.epochs."""
    return re.fullmatch(r"(stages\.\d+\.)?train\.(steps|epochs|samples)", key) is not None


def _describe_rates(before: Optim, planned: int, after: Optim, steps: int, done: int) -> str:
    """Say whether the learning rate of the `done` updates is that of a stage of `steps`, and where it goes on."""
    if all(_rates(before, planned, update) == _rates(after, steps, update) for update in range(done)):
        return f"learning rate: that of the {done} steps taken is the same in a stage of {steps} steps"
    last, following = (max(_rates(optim, count, update)) for optim, count, update in ((before, planned, done - 1), (after, steps, done)))
    return (
        f"learning rate: {before.lr * last:.2g} at the last step taken, {after.lr * following:.2g} at the next; the {done} steps taken "
        f"had the curve of {planned} steps, so this is not what {steps} steps in one go would have given"
    )


def _rates(optim: Optim, steps: int, update: int) -> set[float]:
    """Return the learning rates of all components at an update of a stage of `steps`, over their peaks; none where tokens decide."""
    settings = schedule.with_warmup(optim, steps)
    if settings.schedule.units != "steps":
        return {0.0}
    progress = schedule.Progress(update, update + 1, settings.schedule.decay_steps or steps)
    warmups = {schedule.warmup_of(settings, name) for name in (None, *settings.components)}
    return {schedule.factor(settings, progress, warmup) for warmup in warmups}


def curve(config: RunConfig, steps: int) -> str:
    """Return the learning-rate curve over `steps` steps as a line of text, such as "▁▄█▆▃ peak 0.0003, end 0, 1000 steps"."""
    values, end, units = sampled_rates(schedule.with_warmup(config.optim, steps), steps, _CURVE_COLUMNS)
    bars = "".join(_BARS[round(value * (len(_BARS) - 1))] for value in values)
    return f"{bars} peak {config.optim.lr:.2g}, end {config.optim.lr * values[-1]:.2g}, {end} {units}"


def describe_order(saved: Mapping[str, Any], digest: str, batches: Sequence[Sequence[int]]) -> str:
    """Compare the order of a stage's samples with that of the checkpoint whose manifest is `saved`; return a log line.

    `digest`: hash of what decides the order (StagePlan.order_digest). `batches`: [(step of the stage, samples per step from it on)].
    """
    if saved.get("order") != digest:
        return "order    changed: other seed, sources, sizes or weights than then; samples may come twice, or later than others"
    before = saved["state"].get("batches", [])
    if not before or list(map(list, batches)) == before:
        return "order    exact: samples and noise are functions of (seed, step)"
    (step, batch), taken = batches[-1], segments(before[0][1], batches[1:])[-1].before
    return f"order    exact: from step {step} of the stage on {batch} samples a step, not {before[-1][1]}, after the {taken:,} taken before"


def check_fingerprints(saved: Checkpoint, now: Mapping[str, str], run: Path, allow_inexact: bool) -> str:
    """Compare the data's hashes `now`, {source: hash}, with the checkpoint's; return a log line. A source is one dataset.

    Raises PlaitError when they differ, unless the run directory `run` was forked at this step to change its data, or `allow_inexact`.
    """
    before = saved.manifest["data"]
    by_name = {name: (before.get(name, "not there"), now.get(name, "gone")) for name in {**before, **now}}
    changes = [f"{name}: {old} -> {new}" for name, (old, new) in by_name.items() if old != new]
    if not changes:
        return f"data     exact: {', '.join(now)}"
    line = f"the training data is not what {saved.folder} was trained on ({'; '.join(changes)})"
    if not allow_inexact and not _forked_for_data(run, saved.step):
        raise PlaitError(f"{line}; put it back, fork the run with the new data, or add --allow-inexact")
    return f"data     changed: {line}"


def _forked_for_data(run: Path, step: int) -> bool:
    """Return whether the run is a fork at this very step that changed the data."""
    path = run / LINEAGE
    lineage: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {"kind": None}
    return lineage["kind"] == "fork" and lineage["step"] == step and any("data." in f"{key}." for key, _, _ in lineage["differences"])


def compare(
    context: RunContext,
    plan: StagePlan,
    data: Mapping[str, Any],
    state: State,
    probe: ProbeLoss,
    require_finite: Callable[[float | None, int | None], None],
) -> None:
    """Compare a stage's `data` and its probe samples' loss with the checkpoint that the run came back from.

    Both are logged. `require_finite(loss, step of the last update)`: raises where there is no finite loss. Raises PlaitError for other data
    or another model.
    """
    found = context.resumed_from
    if found is not None and found.manifest["state"]["stage"] == plan.view.index:
        log.info(f"  {describe_order(found.manifest, plan.order_digest, state.batches)}")
        log.info(f"  {check_fingerprints(found, data, context.run, context.options.allow_inexact)}")
        if found.manifest["data"] != data:
            return  # other probe samples: their loss says nothing
    loss = probe.measure()
    require_finite(loss, None)
    if loss is not None:
        log.info(f"  {check_probe(state.probe, loss, context.options.allow_inexact)}")


def check_probe(stored: float | None, now: float, allow_inexact: bool) -> str:
    """Compare the loss `now` of a few fixed samples with the checkpoint's, and return a log line.

    `stored`: the latter; None: nothing stored. Raises PlaitError when they differ by more than 0.1 %, which shows that the model is
    another, unless `allow_inexact`.
    """
    if stored is None:
        return f"probe loss {now:.6f}: none stored to compare with"
    if not (math.isfinite(stored) or math.isfinite(now)):
        return f"probe loss {now}, stored {stored}: not compared, one of its samples makes it so"
    if stored == now:
        return f"probe loss {now:.6f}: exact"
    gap = abs(now - stored) / max(abs(stored), 1e-12)
    line = f"probe loss {now:.6f}, stored {stored:.6f}: {gap:.1e} apart"
    if not gap <= _PROBE_TOLERANCE and not allow_inexact:
        raise PlaitError(f"{line}: this is not the model that was saved (code, base weights or data changed); --allow-inexact goes on")
    return f"{line} (another device, thread count or number of ranks)"


def sampled_rates(optim: Optim, steps: int, points: int) -> tuple[list[float], float, str]:
    """Sample the common learning rate, no component's own, at `points` evenly spaced updates of a stage of `steps`, to draw it.

    Returns (rates over the peak, where the curve ends, the unit of that end: "steps" or "tokens").
    """
    settings, warmup = optim.schedule, schedule.warmup_of(optim)
    end = (settings.decay_steps or steps) if settings.units == "steps" else (settings.decay_tokens or 4 * max(warmup, 1))
    updates = [round(i * (end - 1) / (points - 1)) for i in range(points)]
    values = [schedule.factor(optim, schedule.Progress(update, update + 1, end), warmup) for update in updates]
    return values, end, settings.units
