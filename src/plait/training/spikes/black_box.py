"""Look into a step that stands out, before its update, and keep what is found in RUN/spikes/step-N, a folder that appears whole.

It has spike.json (the step's figures and those before it, the cause, norms by module, a replay in float32, every sample's loss and part of
the gradient) and the samples with the largest part, as text and PNG. A stage is a part of a run; a bundle, a model with its family.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from plait import files
from plait.assembly.data import TrainingData
from plait.assembly.model import ModelBundle
from plait.config.resolved import StageView
from plait.config.schema import RunConfig
from plait.data.image_files import decode_rgb
from plait.data.loading.loader import Loader, MicroBatch
from plait.data.order import Ordering, SampleId
from plait.data.sources.contract import read
from plait.engine.checkpoints.folders import new_folder
from plait.engine.loss import Loss, StepBatch
from plait.engine.monitoring.spikes import WATCHED
from plait.engine.monitoring.tracking import Tracker
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.every_rank import on_every_rank
from plait.engine.parallel.rank_failures import reason_of
from plait.engine.state import State
from plait.errors import BadSample, PlaitError, Stopped, sample_errors
from plait.keys import key
from plait.training.spikes.cause import Before, cause_of
from plait.training.spikes.passes import MOST_APART, Passes, Replay, norms_by_module

log = logging.getLogger(__name__)

FOLDER = "spikes"
"""The folder of black boxes in a run directory."""
FILE = "spike.json"
_SHOWN = 16
"""Samples that are kept with text and pictures, at most: those with the largest part of the gradient."""


class Plan(Protocol):
    """What is asked of the plan of a stage."""

    @property
    def view(self) -> StageView:
        """Return the stage's number, name and configuration."""

    @property
    def config(self) -> RunConfig:
        """Return the stage's configuration."""

    @property
    def data(self) -> TrainingData:
        """Return its sources."""

    @property
    def data_seed(self) -> int:
        """Return the seed of the order and augmentation of its samples."""

    @property
    def order(self) -> Ordering:
        """Return the order of its samples."""

    @property
    def loss(self) -> Loss:
        """Return the loss that is trained."""


class Finding(NamedTuple):
    """What a look into a step found: the `cause`, as text; `content`, that of spike.json."""

    cause: str
    content: dict[str, Any]


class BlackBox:
    """Looks into steps of a stage, and writes what it finds to `folder`/step-N. `mark`: called as each pass begins, for the watchdog."""

    def __init__(self, plan: Plan, bundle: ModelBundle, state: State, ranks: Ranks, *, folder: Path, mark: Callable[[str], None]) -> None:
        self.plan, self.bundle, self.state, self.ranks, self.folder, self.mark = plan, bundle, state, ranks, folder, mark

    def folder_of(self, step: int) -> Path:
        """Return the folder of the step `step` of the run, from 1."""
        return self.folder / f"step-{step:08d}"

    def has_room(self) -> bool:
        """Return whether this step may be looked into: `guard.spike_boxes` others were not, or this one was before."""
        folder = self.folder_of(self.state.step + 1)
        others = [path for path in folder.parent.glob("step-*") if path != folder]
        return bool(self.ranks.agree(len(others) < self.plan.config.guard.spike_boxes))

    def write(self, what: str, row: Mapping[str, Any]) -> tuple[str, str]:
        """Look into the present step, before its update, and write its folder; returns (the cause, why it is not written or "").

        All ranks call this. `what`: what stands out; `row`: the step's metrics. What fails in the look is told as the cause.
        """
        try:
            finding = self._find(what, row)
        except Stopped:
            raise
        except Exception as error:
            if self.ranks.size > 1 and not isinstance(error, PlaitError):
                raise  # of one rank alone, while the others wait for it
            finding = Finding(f"not known, as the replay failed: {reason_of(error)}", self._content(what, row) | {"samples": self._ids()})
        finally:
            self.state.model.train()
        fault = on_every_rank(self.ranks, lambda: self._keep(finding) if self.ranks.first else "")[0]
        return finding.cause, fault

    def _content(self, what: str, row: Mapping[str, Any]) -> dict[str, Any]:
        state = self.state
        place = {"step": state.step + 1, "stage": self.plan.view.name, "stage_step": state.stage_step}
        return {**place, "what": what, "figures": dict(row), "before": {name: list(values) for name, values in state.recent.items()}}

    def _ids(self) -> list[dict[str, Any]]:
        """Return the names of the step's samples, before bad ones were replaced."""
        ids = self.plan.order.ids(self.state.stage_step)
        return [{"sample": self._name(sample), **sample._asdict()} for sample in ids]

    def _find(self, what: str, row: Mapping[str, Any]) -> Finding:
        """Compute the figures of the step's samples, and of those of the step before, with the present weights."""
        state, trained = self.state, self.state.trained()
        modules = self._modules(trained)
        config = self.plan.config
        seed = key(config.seed, "replay")
        replay = Replay(
            state.model, self.plan.loss, self.ranks, trained, modules, precision=config.train.precision, seed=seed, mark=self.mark
        )
        of_step = self._gradients(trained, modules)
        now = self._passes(replay, state.stage_step)
        before = self._before(replay, row) if state.stage_step else None
        cause = cause_of(now.rows, now.modules, before)
        if now.norm is None:
            cause += f"; gradients of single samples are not known, as weights are sharded and the step has more than {MOST_APART} samples"
        weights = norms_by_module(trained, modules)
        norms = {
            name: {
                "weight_norm": norm,
                "gradient_norm": now.modules.get(name),
                "gradient_norm_of_the_step_before": None if before is None else before.modules.get(name),
                "clipped_gradient_norm": of_step.get(name),
            }
            for name, norm in weights.items()
        }
        replayed: dict[str, Any] = {"precision": now.precision, "loss": now.loss, "grad_norm": now.norm}
        if before is not None:
            replayed["of_the_step_before"] = {"now": dict(before.now), "then": dict(before.then), "samples": [*before.rows]}
        more = {"cause": cause, "replay": replayed, "modules": norms, "samples": now.rows}
        return Finding(cause, self._content(what, row) | more)

    def _before(self, replay: Replay, row: Mapping[str, Any]) -> Before:
        """Return the figures that the samples of the step before have with the present weights, and those that they had then."""
        passes = self._passes(replay, self.state.stage_step - 1)
        now = {"loss": passes.loss, **({} if passes.norm is None else {"grad_norm": passes.norm})}
        then = {name: self.state.recent[name][-2] for name in now if len(self.state.recent.get(name, ())) > 1}
        return Before(passes.rows, then, now, passes.modules)

    def _modules(self, trained: Mapping[str, Any]) -> dict[str, str]:
        """Return the module of each trained parameter by name: its block (layer), or its component where it is in none."""
        blocks = {id(block) for block in self.bundle.blocks}
        prefixes = [name for name, module in self.bundle.model.named_modules() if id(module) in blocks]
        components = {name: component for component, names in self.bundle.component_names.items() for name in names}
        return {name: max((p for p in prefixes if name.startswith(f"{p}.")), key=len, default=components[name]) for name in trained}

    def _gradients(self, trained: Mapping[str, Any], modules: Mapping[str, str]) -> dict[str, float]:
        """Return the norm of the step's own gradient by module, after clipping."""
        return norms_by_module({name: value.grad for name, value in trained.items() if value.grad is not None}, modules)

    def _passes(self, replay: Replay, step: int) -> Passes:
        """Read this rank's samples of step `step` of the stage again, and pass each of them through the model."""

        def samples() -> list[MicroBatch]:
            plan, ranks = self.plan, self.ranks
            loader = Loader(
                plan.data.sources,
                plan.order,
                self.bundle.inputs(plan.config, train=True),
                seed=plan.data_seed,
                rank=ranks.rank,
                world_size=ranks.size,
                micro_batch=1,
                workers=0,
                start_step=step,
                stop_step=step + 1,
            )
            with contextlib.closing(loader):
                mine.extend(micro for batch in loader for micro in batch.micro if not micro.padding)
            return mine

        mine: list[MicroBatch] = []
        on_every_rank(self.ranks, lambda: len(samples()))
        return replay.run(mine, [self._name(micro.ids[0]) for micro in mine])

    def _name(self, sample: Any) -> str:
        return f"{self.plan.data.names()[sample.source]}:{sample.index}"

    def _keep(self, finding: Finding) -> str:
        """Write the folder whole; one of the same step, from before the run was continued, makes room. Returns why it cannot, or ""."""
        target = self.folder_of(int(finding.content["step"]))
        try:
            files.remove(target)
            self._fill(target, finding)
        except (OSError, PlaitError) as error:
            return (error.strerror if isinstance(error, OSError) else None) or reason_of(error)
        return ""

    def _fill(self, target: Path, finding: Finding) -> None:
        with new_folder(target) as folder:
            rows = finding.content.get("samples", [])
            ordered = sorted(rows, key=size_of, reverse=True)
            for row in ordered[:_SHOWN]:
                row.update(self._shown(SampleId(row["source"], row["index"], row["epoch"]), folder))
            files.write_whole(folder / FILE, json.dumps(_plain(finding.content), indent=1, default=str, allow_nan=False) + "\n")

    def _shown(self, sample_id: SampleId, folder: Path) -> dict[str, Any]:
        """Write a sample's pictures below `folder` as PNG; returns what is told of it: id, text, notes, names of the files."""
        family, inputs = self.bundle.family, self.bundle.inputs(self.plan.config, train=True)
        sample_key = key(self.plan.data_seed, "sample", *sample_id)
        try:
            with sample_errors:
                sample = read(self.plan.data.sources[sample_id.source], sample_id.index, sample_key)
                told: dict[str, Any] = {"id": sample["id"], "text": "\n".join(message["content"] for message in sample["messages"])}
                pictures: Sequence[np.ndarray] = [decode_rgb(image) for image in sample["images"]]
                if family.inspect is not None:
                    seen = family.inspect(inputs, sample, inputs.encode(sample, sample_key))
                    told |= {"seen": ["".join(piece for piece, _ in seen["text"]), seen["notes"]]}
                    pictures = seen["images"]
        except BadSample as error:
            return {"unreadable": str(error)}
        names = [f"{sample_id.source}-{sample_id.index}-{number}.png" for number in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            Image.fromarray(picture).save(folder / name)
        return told | {"pictures": names}


def size_of(row: Mapping[str, Any]) -> float:
    """Return the norm of a sample's part of the gradient, or else its loss, if any; infinite for what is not finite."""
    value = float(row.get("gradient_norm", row.get("loss", 0.0)))
    return value if math.isfinite(value) else math.inf


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite as text, as in metrics.jsonl."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Look:
    """Looks into a step that stands out with `box`, and records a row of it in `tracker`. Called on all ranks."""

    def __init__(self, box: BlackBox, tracker: Tracker) -> None:
        self.box, self.tracker = box, tracker

    def __call__(self, what: str, row: Mapping[str, Any], batch: StepBatch) -> str:
        """Return the cause and where it is kept, as text. `what`: what stands out; `row`: the step's metrics; `batch`: its samples."""
        box, state = self.box, self.box.state
        if box.has_room():
            cause, fault = box.write(what, row)
            folder = f"{FOLDER}/step-{state.step + 1:08d}"
            where = f"{cause}; {folder} cannot be written: {fault}" if fault else f"{cause}; {folder} has all"
        else:
            names = [f"{box.plan.data.names()[i.source]}:{i.index}" for micro in batch.micro if not micro.padding for i in micro.ids]
            shown = " ".join(name for part in box.ranks.gather(names) for name in part)
            where = f"not looked into, as guard.spike_boxes others were; samples {shown}"
        figures = {f"spike/{name}": row[name] for name in WATCHED}
        line = f"step {state.step + 1} stands out: {what}; {where}"
        self.tracker.row({"step": state.step + 1, "stage": state.stage, **figures, "warnings": [line]})
        return where
