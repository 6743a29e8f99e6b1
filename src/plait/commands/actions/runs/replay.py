"""What `plait ckpt replay` does: train again, in memory, from the checkpoint before a step to that step, and look into it.

The order of samples and all noise are functions of the seed and the step, so it is the step that the run had; nothing of the run changes.
What is found is that of a spike (`plait.training.spikes`). A stage is a part of a run.
"""

import contextlib
import json
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plait import files
from plait.assembly import overwritten
from plait.assembly.model import ModelBundle, build_model
from plait.assembly.run_configuration import open_accepted, open_of_checkpoint
from plait.assembly.saved import check_frozen
from plait.config.resolved import Resolved
from plait.data.loading.loader import Loader
from plait.data.loading.token_budget import TokenBudget
from plait.engine import nonfinite
from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.compilation import choice
from plait.engine.guards import Quarantine
from plait.engine.loop import Loop, Row
from plait.engine.loss import StepBatch
from plait.engine.micro_batch import Exceeded, MicroBatchSize
from plait.engine.monitoring.signals import Signals
from plait.engine.monitoring.spikes import SpikeWatch
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import GROUPS, PLANNED, State
from plait.errors import PlaitError, Recurring, Stopped
from plait.training import from_weights, start
from plait.training.layout import Counters, lay_out
from plait.training.spikes.black_box import FILE, BlackBox, size_of
from plait.training.stage_plan import StagePlan, plan_stage

log = logging.getLogger(__name__)

FOLDER = "replays"
"""The folder of replayed steps in a run directory."""
_SAMPLES_TOLD = 3
_SAME = 1e-4
"""Largest difference of a loss, as a share, that other ranks or threads explain."""


class _Reached(Exception):
    """Raised in the step that is replayed, before its update, with its metrics."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row


@dataclass
class _Reach:
    """Ends the step that is replayed before its update, once `watch` (None: the run had none) has compared it with those before."""

    watch: SpikeWatch | None

    def stands_out(self, row: Row) -> bool:
        """Return True, so that the loop asks for a response."""
        if self.watch is not None:
            self.watch.stands_out(row)
        return True

    def respond(self, row: Row, batch: StepBatch) -> tuple[Row, bool]:
        """Raise _Reached with the step's metrics."""
        raise _Reached(row)


def replay(run: Path, step: int, out: Path | None) -> None:
    """Train again up to step `step` (from 1) of `run`, look into it, and print its cause.

    `out`: the folder of what is found; None: RUN/replays. Raises PlaitError for a run that has not had the step, and Stopped where memory
    runs out or a signal comes.
    """
    saved = [folder for folder in checkpoint.published(run) if checkpoint.step_of(folder) >= step]
    resolved = open_of_checkpoint(run, saved[-1]) if saved else open_accepted(run)
    recorded = {row["step"]: row for row in files.read_rows(run / "metrics.jsonl", files.STEP_KINDS) if "loss" in row}
    if not saved and step > max(recorded, default=0):
        raise PlaitError(f"{run} has not had step {step}: its last recorded one is {max(recorded, default=0)}")
    before = _newest_before(run, step)
    target = (out or run / FOLDER).absolute()
    with Signals() as signals, distributed.join(resolved.config.distributed.device) as ranks, tempfile.TemporaryDirectory() as temporary:
        if ranks.size > 1:
            raise PlaitError("ckpt replay runs in one process: start it without --nproc and torchrun")
        again = _Again(run, Path(temporary), resolved, ranks, signals, recorded)
        found = again.look(before, step, target)
    told = json.loads(found.read_text(encoding="utf-8"))
    samples = sorted(told.get("samples", []), key=size_of, reverse=True)
    lines = [f"step {step}: {told['cause']}", f"  {again.compared()}"]
    for row in [row for row in samples if "loss" in row][:_SAMPLES_TOLD]:
        norm = f", gradient norm {float(row['gradient_norm']):.4g}" if "gradient_norm" in row else ""
        lines.append(f"  {row['sample']}: loss {float(row['loss']):.4g}{norm}")
    log.info("\n".join([*lines, f"all of it: {found.parent}"]))


def _newest_before(run: Path, step: int) -> Checkpoint | None:
    """Return the newest intact checkpoint before the step; None: there is none, and the run is trained again from its beginning."""
    folders = [folder for folder in checkpoint.published(run) if checkpoint.step_of(folder) < step]
    for folder in folders:
        faults = integrity.verify(folder)
        if not faults:
            return checkpoint.read(folder)
        log.info(f"passed over: {faults[0]}")
    return None


@contextlib.contextmanager
def _out_of_memory() -> Iterator[None]:
    """End the block in one line where memory runs out. Raises Stopped."""
    try:
        yield
    except Exceeded as error:
        raise Stopped(f"out of memory ({error}): a smaller train.micro_batch in the run's config.yaml needs less") from error


class _Again:
    """Trains a run again in memory. `temporary`: a folder for what the loop writes. `recorded`: the run's rows of metrics by step."""

    def __init__(
        self, run: Path, temporary: Path, resolved: Resolved, ranks: Ranks, signals: Signals, recorded: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self.run, self.temporary, self.resolved, self.ranks, self.signals, self.recorded = (
            run,
            temporary,
            resolved,
            ranks,
            signals,
            recorded,
        )
        self.differences: list[float] = []
        """Of each recorded step on the way: how far its loss is from the recorded one, as a share."""

    def look(self, before: Checkpoint | None, step: int, target: Path) -> Path:
        """Train from the checkpoint `before`, or the beginning, to step `step`, and look into it; returns the file below `target`."""
        state, bundle = self._begin(before)
        log.info(f"from {'the beginning' if before is None else before.folder} on, {step - state.step} steps, in memory")
        for view in self.resolved.stages[state.stage - 1 :]:
            decided = choice.decide(view, self.ranks, before.manifest if before is not None else None)
            plan = plan_stage(decided, bundle, state.batches_in(view.index, view.config.train.global_batch))
            state.enter(view.index, view.config.train.global_batch, plan.steps)
            if state.stage_done is None:
                found = self._stage(plan, bundle, state, step, target)
                if found is not None:
                    return found
                state.stage_done = PLANNED
        raise PlaitError(f"{self.run} has no step {step}: its stages end after step {state.step}")

    def _begin(self, before: Checkpoint | None) -> tuple[State, ModelBundle]:
        """Return the state at the checkpoint, or at the run's beginning, and the model. Raises PlaitError if its frozen weights differ."""
        config = self.resolved.config
        first = self.resolved.stages[0]

        def shapes() -> overwritten.Shapes:
            if before is not None:
                return overwritten.shapes_of(before)
            return overwritten.shapes_of_start(config, self.temporary, self.ranks) if config.from_ else {}

        bundle = build_model(config, self.run, self.ranks, shapes)
        state = State(bundle.model)
        if before is not None:
            start.check_complete(before)
            start.check_stage(before, self.resolved.stages)
            check_frozen(before, bundle, first.config.seed)
            state.restore(before.manifest["state"], {group: before.stored(group) for group in GROUPS})
            for view in self.resolved.stages[: state.stage - (state.stage_done is None)]:
                start.round_frozen(bundle.model, state.ever_trained, view.config.train.precision)
        elif config.from_:
            from_weights.begin_from(state, bundle, first, run=self.temporary, ranks=self.ranks, allow_inexact=True)
        return state, bundle

    def _stage(self, plan: StagePlan, bundle: ModelBundle, state: State, step: int, target: Path) -> Path | None:
        """Train the stage to its end, or to the step that is looked into; then returns the file of what is found."""
        micro_batch = MicroBatchSize(self.run, plan.view.name, self.ranks, plan.micro_batch(1)).samples
        last = step - 1 - state.stage_start
        with lay_out(plan, bundle, state, self.ranks, micro_batch) as counters:
            state.begin(plan.trained_parameters(bundle.model), plan.config.optim, plan.config.seed, bundle.blocks)
            watch = self._watch(plan, state)
            with _out_of_memory(), self._batches(plan, bundle, state.stage_step, min(last, plan.steps), micro_batch) as batches:
                self._loop(plan, state, counters, watch).run(batches, state.stage_start + plan.steps)
            if self.signals.agreed or state.stage_step < min(last, plan.steps):
                raise Stopped(f"stopped after step {state.step}, before step {step}; nothing of the run has changed")
            if last >= plan.steps:
                return None
            what, row = self._reached(plan, bundle, state, counters, micro_batch)
            box = BlackBox(plan, bundle, state, self.ranks, folder=target, mark=lambda part: None)
            _, fault = box.write(what, row)
            if fault:
                raise PlaitError(f"{box.folder_of(step)} cannot be written: {fault}")
            return box.folder_of(step) / FILE

    def _reached(self, plan: StagePlan, bundle: ModelBundle, state: State, counters: Counters, micro_batch: int) -> tuple[str, Row]:
        """Compute the gradient of the step that is looked into; returns why it is looked into, and the step's metrics."""
        loop = self._loop(plan, state, counters, _Reach(self._watch(plan, state)))
        try:
            with _out_of_memory(), self._batches(plan, bundle, state.stage_step, state.stage_step + 1, micro_batch) as batches:
                loop.run(batches, state.stage_start + plan.steps)
        except _Reached as reached:
            return "replayed", reached.row
        except Recurring as error:  # its loss or gradient is not finite, or it has bad samples beyond the limit
            return str(error).partition(";")[0], {}
        raise Stopped(f"stopped in step {state.step}; nothing of the run has changed")

    @contextlib.contextmanager
    def _batches(self, plan: StagePlan, bundle: ModelBundle, first: int, end: int, micro_batch: int) -> Iterator[Loader]:
        """Yield a loader of the stage's steps from `first` up to `end`, which is excluded."""
        inputs, data = bundle.inputs(plan.config, train=True), plan.config.data
        if isinstance(plan.slicing, TokenBudget):
            plan.slicing.ahead(plan.order, range(first, end))
        loader = Loader(
            plan.data.sources,
            plan.order,
            inputs,
            seed=plan.data_seed,
            slicing=plan.slicing,
            micro_batch=micro_batch,
            workers=data.workers,
            kind=data.worker_kind,
            prefetch=data.prefetch,
            start_step=first,
            stop_step=end,
            interrupted=self.signals.requested,
        )
        with contextlib.closing(loader):
            yield loader

    def _watch(self, plan: StagePlan, state: State) -> SpikeWatch | None:
        """Return what compares the stage's steps, as the run did. A step that the run has gone back from is on its list already."""
        guard = plan.config.guard
        if guard.spikes == "ignore":
            return None
        told = guard.model_copy(update={"spikes": "skip" if guard.spikes == "skip" else "tell"})
        return SpikeWatch(state, told, self.ranks, self.temporary, plan.view.name, lambda what, row, batch: "as the run has told")

    def _loop(self, plan: StagePlan, state: State, counters: Counters, spikes: SpikeWatch | _Reach | None) -> Loop:
        """Return the loop of the stage, as the run had it, but that it writes nothing of the run, and passes over no step with _Reach."""
        config, listed = plan.config, nonfinite.steps_to_skip(self.run, plan.view.name)
        if isinstance(spikes, _Reach):
            listed = frozenset()
            config = config.model_copy(update={"guard": config.guard.model_copy(update={"non_finite": "stop"})})
        return Loop(
            stage=plan.view.name,
            state=state,
            loss=plan.loss,
            config=config,
            ranks=self.ranks,
            quarantine=Quarantine(self.temporary / "quarantine.jsonl", 1.0),
            hooks=[self._compare],
            stop=self.signals,
            mark=lambda part: None,
            sources=plan.data.names(),
            skipped=listed,
            meter=counters.meter,
            spikes=spikes,
        )

    def _compare(self, state: State, row: Row) -> None:
        """Compare a step's loss with that which the run recorded."""
        past = self.recorded.get(state.step)
        if past is not None and math.isfinite(float(past["loss"])) and math.isfinite(row["loss"]):
            self.differences.append(abs(row["loss"] - float(past["loss"])) / max(abs(float(past["loss"])), torch.finfo(torch.float32).tiny))

    def compared(self) -> str:
        """Return how the losses on the way compare with those that the run recorded."""
        if not self.differences:
            return "no step on the way has a recorded loss to compare with"
        count, most = len(self.differences), max(self.differences)
        if most == 0:
            return f"the {count} recorded losses on the way are the same, to the bit"
        same = "as of another number of ranks or threads" if most < _SAME else "this is not the step that the run had"
        return f"the {count} recorded losses on the way differ by up to {most:.2g} of their size, {same}"
