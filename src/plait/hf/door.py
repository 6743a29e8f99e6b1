"""Make a Trainer of transformers for a configuration, `plait.hf.trainer`."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from plait.api.configuration import load_config
from plait.assembly import data_look, overwritten
from plait.assembly.data import check_data
from plait.assembly.model import build_model
from plait.config.messages import CONFIGURATION, LIST, TEXT, Wanted, check_arguments, optional
from plait.config.resolved import Resolved, StageView, folder
from plait.config.schema import RunConfig, Track
from plait.config.sections.guard import Guard
from plait.data.formats.index import cache_folder
from plait.engine import blocks
from plait.engine.compilation import choice
from plait.engine.parallel import hosted
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.every_rank import on_every_rank
from plait.engine.precision import caution, set_precision
from plait.engine.state import State
from plait.errors import PlaitError
from plait.hf import arguments, passed_arguments
from plait.hf.batches import HostRanks
from plait.hf.stage_trainer import StageTrainer
from plait.hf.trained_stage import Stage
from plait.training import from_weights
from plait.training.stage_plan import plan_stage

log = logging.getLogger(__name__)


def trainer(
    config: Resolved | str | Path | Mapping[str, Any],
    *,
    args: Mapping[str, Any] | None = None,
    stage: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **overrides: Any,
) -> StageTrainer:
    """Return a transformers.Trainer over the model, inputs, data, losses, optimizer and schedule of a configuration.

    `config`: what `load_config` returned, or takes; `overrides`: settings, as of `load_config`. `args`: fields of TrainingArguments by
    name; one with a counterpart, such as `learning_rate`, sets that. `stage`: which of several stages; a later one begins `from:` weights.
    `callbacks`: of transformers. Each process calls this. Raises PlaitError for faults, and for what a Trainer cannot do.
    """
    check_arguments(
        "plait.hf.trainer",
        config=(config, Wanted((Resolved, *CONFIGURATION.kinds), f"{CONFIGURATION.words}, or what load_config returned")),
        args=(args, optional(Wanted((Mapping,), "a dict of fields of TrainingArguments: of an object none knows which were given"))),
        stage=(stage, optional(TEXT)),
        callbacks=(callbacks, LIST),
    )
    passed_arguments.check_callbacks(callbacks)
    given = dict(args or {})
    arguments.check_packages(given)
    size = arguments.processes()
    overrides |= arguments.settings_of(given, size)
    if isinstance(config, Resolved):
        resolved = load_config(yaml.safe_load(config.yaml), **overrides) if overrides else config
    else:
        resolved = load_config(config, **overrides)
    view = _view(resolved, stage)
    made = arguments.training_arguments(view.config, given, size)
    ranks = HostRanks.of(made.process_index, made.world_size, made.device)
    for line in [*resolved.warnings, *_left_out(view.config)] if ranks.first else ():
        log.warning(line)
    out = on_every_rank(ranks, lambda: passed_arguments.output_folder(made.output_dir))[0]
    with arguments.whole_models(made):
        opened = _open(view, out, ranks)
    if made.deepspeed:
        hosted.release(opened.bundle.model)  # DeepSpeed broadcasts all of a model, from GPU to GPU
    hosted.leave_out(opened.bundle.model)
    made.output_dir, made.max_steps = str(out), opened.plan.steps
    return StageTrainer(opened, made, callbacks)


def _view(resolved: Resolved, stage: str | None) -> StageView:
    """Return the stage to train, without what a Trainer does not keep. Raises PlaitError where none can be chosen, or it cannot train."""
    names = [view.name for view in resolved.stages]
    if stage is None and len(names) > 1:
        raise PlaitError(f"the configuration has the stages {', '.join(names)}, and a trainer trains one: say stage={names[0]!r}")
    if stage is not None and stage not in names:
        raise PlaitError(f"trainer(stage={stage!r}): the configuration has no such stage; it has {', '.join(names)}")
    view = resolved.stages[names.index(stage) if stage else 0]
    if view.index > 1 and view.config.from_ is None:
        before = names[view.index - 2]
        raise PlaitError(
            f"stage {view.name!r} comes after {before!r}: give its weights, **{{'from': ...}}, a run or a trainer's checkpoint"
        )
    config, schedule = view.config, view.config.optim
    refused = {
        "train.precision fp16": config.train.precision == "fp16",
        "train.plateau": config.train.plateau is not None,
        "optim.offload": schedule.offload,
        "optim.name adamw8bit": schedule.name == "adamw8bit",
    }
    for setting, is_set in refused.items():
        if is_set:
            raise PlaitError(f"{setting} has no counterpart in a Trainer of transformers: leave it out, or use `plait train`")
    if schedule.ema is not None and schedule.ema.post_hoc:
        ema = schedule.ema.model_copy(update={"post_hoc": False})
        return replace(view, config=config.model_copy(update={"optim": schedule.model_copy(update={"ema": ema})}))
    return view


def _left_out(config: RunConfig) -> list[str]:
    """Return a line that names the settings that a Trainer does without, though the configuration sets them; or none."""
    ema, changed = config.optim.ema, []
    kept = {"max_bad_fraction", "no_gradient", "no_input", "every_steps", "tensorboard"}
    for name, section, default in (("guard", config.guard, Guard()), ("track", config.track, Track())):
        keys = [key for key in type(default).model_fields if getattr(section, key) != getattr(default, key)]
        changed += [f"{name}.{key}" for key in keys if key not in kept]
    given = {
        "evaluate": config.evaluate,
        "checkpoint.best": config.checkpoint.best,
        "checkpoint.mirror": config.checkpoint.mirror,
        "optim.ema.post_hoc": ema is not None and ema.post_hoc,
        "data.feature_cache": config.data.feature_cache != "off",
        "distributed.strategy": config.distributed.strategy not in ("auto", "ddp"),
        "hub": config.hub,
        "alert": config.alert.wanted,
    }
    names = [*(name for name, is_set in given.items() if is_set), *changed]
    return [f"a Trainer of transformers does without {', '.join(names)}, which `plait train` has"] if names else []


def _open(view: StageView, out: Path, ranks: Ranks) -> Stage:
    """Build the model and plan the stage; returns it with the model set up. Raises PlaitError for data and weights that do not fit."""
    if view.config.distributed.compile == "auto":
        view = choice.decide(view, ranks, None)
    config = view.config
    if (out / "config.yaml").exists():
        raise PlaitError(f"{out} is a run of plait, which `plait train` continues: give args={{'output_dir': ...}} another folder")
    check_data([view])
    bundle = build_model(config, out, ranks, lambda: overwritten.shapes_of_start(config, out, ranks) if config.from_ else {})
    state = State(bundle.model)
    if config.from_:
        from_weights.begin_from(state, bundle, view, run=out, ranks=ranks, allow_inexact=False)
    plan = plan_stage(view, bundle)
    state.enter(view.index, config.train.global_batch, plan.steps)
    data_look.compare_ranks(plan.data.fingerprints(), ranks)
    inputs, limits = bundle.inputs(plan.config, train=True), bundle.family.limits(bundle.section)
    data_look.report(plan.config, plan.data.sources, inputs, limits, ranks, seed=plan.data_seed)
    for line in bundle.adapters.begin(state.ever_trained, plan.trained_names) if bundle.adapters is not None else ():
        log.info(line)
    if warning := caution(config.train.precision, ranks.device):
        log.info(warning)
    rest = bundle.family.recomputed(bundle.model)
    changes = contextlib.ExitStack()
    changes.enter_context(blocks.residual_stream(bundle.blocks, config.train.residual_dtype))
    kept = cache_folder(folder(config.data.cache))
    changes.enter_context(blocks.changed(bundle.blocks, config.distributed, cache=kept, recomputed=rest))
    set_precision(bundle.model, state.ever_trained | plan.trained_names, config.train.precision)
    for name, parameter in bundle.model.named_parameters():
        parameter.requires_grad_(name in plan.trained_names)
    return Stage(plan, bundle, state, ranks, out, changes)
