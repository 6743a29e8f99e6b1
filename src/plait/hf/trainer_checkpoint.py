"""What a trainer's checkpoint-STEP folder holds of plait, how one is continued, and how a trained model is exported.

The weights that train are in model.safetensors, by plait's names, so that the folder is also one that `from:` takes; averages lie in a
folder beside it; plait-trainer.json tells which stage, data and order it is of. Optimizer, schedule and random numbers are transformers'.
"""

import contextlib
import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait import files
from plait.assembly import exported, saved
from plait.assembly.model import ModelBundle
from plait.commands.actions import export as exporting
from plait.config.resolved import difference, dump
from plait.config.schema import RunConfig
from plait.config.sections.adapters import LAYOUT
from plait.engine.averages import Ema
from plait.engine.checkpoints import rundir
from plait.engine.precision import set_precision
from plait.engine.state import load_weights
from plait.errors import PlaitError
from plait.families import offers
from plait.hf.trained_stage import Stage

log = logging.getLogger(__name__)

_TOLD, _WEIGHTS, _LAST = "plait-trainer.json", "model.safetensors", "trainer_state.json"
"""Files of a checkpoint: what it is of, its weights, and the one that is written last."""
_AVERAGES = "averages"
_LENGTH = ("train.steps", "train.epochs", "train.samples")


def chosen(resume: str | bool | None, out: Path) -> Path | None:
    """Return the checkpoint to continue from: the folder `resume`, or with True the newest whole one in `out`.

    None where none is asked for. Raises PlaitError where there is none, or it is not whole.
    """
    if resume is None or resume is False:
        return None
    found = [Path(resume)] if resume is not True else sorted(out.glob("checkpoint-*"), key=_step, reverse=True)
    for folder in found:
        lacking = [name for name in (_TOLD, _WEIGHTS, _LAST) if not (folder / name).is_file()]
        if not lacking:
            return folder
        fault = f"{folder} lacks {', '.join(lacking)}: it is no whole checkpoint of a trainer of plait"
        if resume is not True:
            raise PlaitError(fault)
        log.warning(f"passed over: {fault}")
    raise PlaitError(f"resume_from_checkpoint: {out} holds no whole checkpoint; leave it out to begin at step 0")


def _step(folder: Path) -> int:
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


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
    files.write_json(folder / _TOLD, {**_identity(stage), "totals": state.totals, "settings": dump(stage.config)})


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
        told = json.loads((folder / _TOLD).read_bytes())
        before = RunConfig.model_validate(told["settings"])
        totals = {str(name): float(value) for name, value in told["totals"].items()}
        weights = load_file(folder / _WEIGHTS)
        averages = folder / _AVERAGES / "ema.safetensors"
        average = load_file(averages) if averages.is_file() else {}
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlaitError(f"{folder} is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    constant = stage.config.optim.schedule.name == "constant"
    changed = rundir.binding(difference(before, stage.config))
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


@contextlib.contextmanager
def averaged(stage: Stage) -> Iterator[None]:
    """Put the averaged weights, if there are any, in place of those that train, while the `with` lasts."""
    ema, parameters = stage.state.ema, dict(stage.bundle.model.named_parameters())
    if ema is None:
        yield
        return
    ema.swap(parameters)
    try:
        yield
    finally:
        ema.swap(parameters)


def export(stage: Stage, out: Path) -> None:
    """Write the model into the folder `out`, on rank 0, in the layout that holds all of it.

    Where adapters alone were trained these are written, else they are merged, in a copy. An earlier export in `out` is replaced once the
    new one is whole. All ranks call this. Raises PlaitError for a family without layouts, and where `out` is neither free nor an export.
    """
    error = None
    if stage.ranks.first:
        try:
            _export(stage, out)
        except PlaitError as raised:
            error = str(raised)
    if (error := stage.ranks.agree(error)) is not None:
        raise PlaitError(error)


def _export(stage: Stage, out: Path) -> None:
    bundle, config, trained = stage.bundle, stage.config, stage.state.ever_trained | stage.plan.trained_names
    publisher, alone = offers.publisher(config.family), bundle.adapters is not None and trained <= bundle.adapters.names
    layout = LAYOUT if alone else bundle.section.whole or next(iter(publisher.exports if publisher else ()), None)
    if layout is None:
        raise PlaitError(f"save_model: family {config.family!r} has no layout that other software reads; a checkpoint has its weights")
    fresh = out.with_name(f"{out.name}.new")
    if fresh.exists():
        shutil.rmtree(fresh)
    replaced = (out / saved.MODEL_SETTINGS).is_file() or (alone and (out / "adapter_config.json").is_file())
    if out.exists() and not replaced and not (out.is_dir() and not any(out.iterdir())):
        raise PlaitError(f"save_model: {out} holds something else than an export: give another folder")
    with averaged(stage):
        if not alone:
            bundle, config, trained = exported.merged(_copied(bundle), config, trained)
        exporting.write_model(bundle, config, trained, layout, fresh)
    if out.exists():
        shutil.rmtree(out)
    fresh.rename(out)
    log.info(f"the model, as {layout}: written to {out}")


def _copied(bundle: ModelBundle) -> ModelBundle:
    """Return a copy of a model with adapters, which merging changes and training needs as it is; any other model itself."""
    if bundle.adapters is None:
        return bundle
    model = copy.deepcopy(bundle.model)
    layers = {component: {name: model.get_submodule(name) for name in names} for component, names in bundle.adapters.layers.items()}
    return replace(bundle, model=model, adapters=replace(bundle.adapters, model=model, layers=layers))
