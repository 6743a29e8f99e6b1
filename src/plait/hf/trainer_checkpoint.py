"""What a trainer's checkpoint-STEP folder holds of plait, and how one is continued.

The weights that train are in model.safetensors, by plait's names, so that the folder is also one that `from:` takes; averages lie in a
folder beside it; plait-trainer.json tells which stage, data and order it is of. Optimizer, schedule and random numbers are transformers'.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait import files
from plait.assembly import weight_files
from plait.config.messages import with_type
from plait.config.resolved import difference, dump
from plait.config.schema import RunConfig
from plait.config.sections import continued
from plait.engine.averages import Ema
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.every_rank import on_every_rank
from plait.engine.parallel.placing import load_weights
from plait.engine.precision import set_precision
from plait.errors import PlaitError
from plait.hf import checkpoint_files
from plait.hf.checkpoint_files import TOLD
from plait.hf.trained_stage import Stage

log = logging.getLogger(__name__)

_WEIGHTS, _LAST = "model.safetensors", "trainer_state.json"
"""Files of a checkpoint: its weights, and what transformers keeps of the training."""
MOMENTS = ("optimizer.pt", "scheduler.pt")
"""Files from which training continues without DeepSpeed."""
_AVERAGES = "averages"
_LENGTH = ("train.steps", "train.epochs", "train.samples")


def chosen(resume: object, out: Path, ranks: Ranks, needed: tuple[str, ...] = ()) -> Path | None:
    """Return the checkpoint to continue from: the folder `resume`, or with True the newest whole one in `out`; rank 0 looks.

    None where none is asked for. `needed`: files that it must have beside its weights. Raises PlaitError, on all ranks, where there is
    none, or where it is not whole: a file of its list is missing, torn or changed.
    """
    if resume is None or resume is False:
        return None
    if not isinstance(resume, str | Path | bool):
        raise PlaitError(f"resume_from_checkpoint is to be a checkpoint-STEP folder or True, and is {with_type(resume)}")
    looked = on_every_rank(ranks, lambda: _look(resume, out, needed) if ranks.first else (None, []))
    folder, faults = looked[0]
    if resume is not True and faults:
        raise PlaitError(faults[0])
    for fault in faults if ranks.first else ():
        log.warning(f"passed over: {fault}")
    if folder is None:
        raise PlaitError(f"resume_from_checkpoint: {out} holds no whole checkpoint; leave it out to begin at step 0")
    return folder


def _look(resume: str | Path | bool, out: Path, needed: tuple[str, ...]) -> tuple[Path | None, list[str]]:
    """Return the first whole checkpoint of those that are meant, and why those before it are not."""
    if isinstance(resume, bool):
        found = sorted(
            (folder for folder in out.glob("checkpoint-*") if checkpoint_files.step_of(folder) >= 0),
            key=checkpoint_files.step_of,
            reverse=True,
        )
    else:
        found = [files.expanded(resume)]
        if not found[0].is_dir():
            return None, [f"resume_from_checkpoint: {resume} is no folder: give a checkpoint-STEP folder, or True for the newest whole one"]
    faults: list[str] = []
    for folder in found:
        if (fault := weight_files.list_fault(folder, (TOLD, _WEIGHTS, _LAST, *needed))) is None:
            return folder, faults
        faults.append(fault)
    return None, faults


def save(stage: Stage, folder: Path, gathered: Mapping[str, Tensor] | None) -> None:
    """Write the weights that ever trained, their averages and what they are of into `folder`, a checkpoint that is being made.

    `gathered`: the model's weights, where ranks shared them; None: they are in the model.
    """
    state, folder_of_averages = stage.state, folder / _AVERAGES
    folder.mkdir(parents=True, exist_ok=True)
    weights: Mapping[str, Tensor] = dict(stage.bundle.model.named_parameters())
    if gathered is not None:
        weights = {name.removeprefix("model."): value for name, value in gathered.items()}
    _write(folder / _WEIGHTS, {name: weights[name] for name in sorted(state.ever_trained)})
    if state.ema is not None:
        folder_of_averages.mkdir(exist_ok=True)
        _write(folder_of_averages / "ema.safetensors", state.ema.average)
    files.write_json(folder / TOLD, {**_identity(stage), "totals": state.totals, "settings": dump(stage.config)})


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})


def _identity(stage: Stage) -> dict[str, Any]:
    """Return what must be the same to continue, by what it is called in a message."""
    plan = stage.plan
    return {
        "stage": plan.view.name,
        "order of the data": plan.order_digest,
        "data": plan.data.fingerprints(),
        "frozen weights": stage.bundle.frozen_xxh3(stage.state.ever_trained | plan.trained_names),
    }


def restore(folder: Path, stage: Stage) -> None:
    """Load the weights, averages and counters of a checkpoint. Raises PlaitError where it is damaged, or of another stage or data."""
    state = stage.state
    try:
        told = json.loads((folder / TOLD).read_bytes())
        before = RunConfig.model_validate(told["settings"])
        totals = {str(name): float(value) for name, value in told["totals"].items()}
        weights = load_file(folder / _WEIGHTS)
        averages = folder / _AVERAGES / "ema.safetensors"
        average = load_file(averages) if averages.is_file() else {}
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlaitError(f"{folder} is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    if before.optim.ema is not None and not average:
        raise PlaitError(
            f"{folder} has no averages, {averages.relative_to(folder)}, and was trained with optim.ema: begin from its weights"
        )
    constant = stage.config.optim.schedule.name == "constant"
    changed = continued.binding(difference(before, stage.config))
    if changed := [item for item in changed if not (constant and item[0] in _LENGTH)]:
        shown = "; ".join(f"{key}: {then} -> {now}" for key, then, now in changed)
        raise PlaitError(f"{folder} was trained with other settings ({shown}): undo that, or begin from its weights with from")
    for name, now in _identity(stage).items():
        if told.get(name) != now:
            raise PlaitError(
                f"{folder} was trained with another {name}: {told.get(name)} there, {now} here; it cannot be continued exactly"
            )
    load_weights(stage.bundle.model, weights)
    set_precision(stage.bundle.model, state.ever_trained | stage.plan.trained_names, stage.config.train.precision)
    if average and stage.config.optim.ema is not None:
        device = stage.ranks.device
        average = {name: value.to(device) for name, value in average.items()}
        state.ema = Ema(stage.config.optim.ema.decay, stage.config.optim.ema.warmup_steps, average)
    state.totals = totals
    if stage.ranks.first:
        log.info(f"continuing from {folder}")
