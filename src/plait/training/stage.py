"""Run one stage: build what it needs, loop over its steps, evaluate and save between them.

A stage is a part of a run with own settings. A plan says what it trains, on which data and how long; a bundle is a model with its family.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from plait.assembly import data_look
from plait.assembly.model import ModelBundle
from plait.config.resolved import keeps_ledger
from plait.data.loading.loader import Loader, StepBatch
from plait.data.loading.token_budget import TokenBudget
from plait.data.order import digest
from plait.engine import nonfinite, optim, source_shares
from plait.engine.checkpoints import chain, checkpoint, disk_errors, failed_writes, reference
from plait.engine.checkpoints.saver import Saver
from plait.engine.guards import GradientWatch, Quarantine
from plait.engine.loop import Loop, Row
from plait.engine.micro_batch import MicroBatchSize
from plait.engine.monitoring.memory_trial import probe_memory, probed_steps
from plait.engine.monitoring.signals import Paused
from plait.engine.monitoring.spikes import SpikeWatch
from plait.engine.parallel import distributed, leaving, replicas
from plait.engine.state import PLANNED, State
from plait.errors import PlaitError, Stopped
from plait.training import changes, summary
from plait.training.blindness import FEWEST_STEPS, Blindness
from plait.training.divergence import stop_if_diverged
from plait.training.features import stage_features
from plait.training.layout import Counters, lay_out
from plait.training.ledger import Ledger
from plait.training.monitor.source_losses import SourceLosses
from plait.training.monitor.stage_monitor import StageMonitor, Watched
from plait.training.probes import ProbeLoss, probe_loss, wants_memory_probe
from plait.training.run_context import RunContext
from plait.training.spikes.black_box import FOLDER, BlackBox, Look
from plait.training.stage_evaluation import StageEvaluation, keep_failure
from plait.training.stage_plan import StagePlan, evaluates

log = logging.getLogger(__name__)

_SHARES_EVERY = 100  # steps between rows with each source's share: there can be dozens of sources


def run_stage(plan: StagePlan, bundle: ModelBundle, state: State, context: RunContext) -> None:
    """Train a stage from the step that `state` is at to the stage's end; do nothing if it is done already.

    Raises Paused after a signal such as SIGTERM, with everything saved; Stopped when a safety check ends the run (both are PlaitErrors);
    Rewind when the run has to be restored from its newest checkpoint.
    """
    if state.stage_done is not None:
        return
    data_look.compare_ranks(plan.data.fingerprints(), context.ranks)
    if not state.stage_step:
        inputs, limits = bundle.inputs(plan.config, train=True), bundle.family.limits(bundle.section)
        data_look.report(plan.config, plan.data.sources, inputs, limits, context.ranks, seed=plan.data_seed)
    micro_batch = MicroBatchSize(context.run, plan.view.name, context.ranks, plan.micro_batch(context.ranks.size))
    if isinstance(plan.slicing, TokenBudget):
        log.info(plan.slicing.describe(plan.order, range(state.stage_step, plan.steps), context.ranks.size, micro_batch.samples))
    with lay_out(plan, bundle, state, context.ranks, micro_batch.samples) as counters:
        state.begin(plan.trained_parameters(bundle.model), plan.config.optim, plan.config.seed, bundle.blocks)
        stage = StageRun(plan, bundle, state, context, micro_batch, counters)
        try:
            stage.run()
        except BaseException:
            failed_writes.close_after_error(stage.saver.close)
            raise
        finally:
            if stage.features is not None:
                stage.features.close()
        stage.saver.close()
    done = f"stage {plan.view.index} {plan.view.name} is done after step {state.step}: {state.stage_done}"
    log.info("\n  ".join([done, *summary.realised(plan.data, state.totals)]))
    if state.stage_done != PLANNED:
        context.tracker.tell("plateau", done)


class StageRun:
    """Runs the stage of `plan` from `state` on. After each step: metrics, an evaluation and a checkpoint if due, perhaps the end."""

    def __init__(
        self, plan: StagePlan, bundle: ModelBundle, state: State, context: RunContext, micro_batch: MicroBatchSize, counters: Counters
    ) -> None:
        config, ranks = plan.config, context.ranks
        self.plan, self.bundle, self.state, self.context = plan, bundle, state, context
        self.micro_batch, self.counters = micro_batch, counters
        self.stop_step = state.stage_start + plan.steps
        self.saved = (state.step, state.evaluated_step, state.stage_done) if state.stage_step else None
        """(step, step last evaluated, reason of the stage's end) at the newest checkpoint, so that none is written twice."""
        self.updated = state.step  # the last that changed the weights
        self.manifest = plan.manifest(bundle.model, state.ever_trained, ranks.size, torch.__version__)
        self.saver = Saver(config.checkpoint.async_save, ranks, context.heartbeat.part)
        self.probe: ProbeLoss = probe_loss(plan, bundle, ranks)
        self.batch: StepBatch | None = None
        """The data of the step that is being computed."""
        self.data_error: PlaitError | None = None
        """Why this rank cannot have its data."""
        self.evaluation = StageEvaluation(plan, bundle, state, context) if evaluates(config) else None
        keep = functools.partial(keep_failure, context, plan)
        self.blindness = Blindness(plan, bundle, state, context, keep) if config.guard.blindness and plan.steps >= FEWEST_STEPS else None
        self.source_losses = SourceLosses(plan, bundle, state, context, keep) if config.track.monitor else None
        self.ledger = Ledger(plan, bundle, state, context) if keeps_ledger(context.resolved.stages, config) else None
        cached, amounts = config.data.feature_cache != "off", (plan.steps - state.stage_step, sum(plan.order.sizes))
        self.features = stage_features.of_stage(config, bundle, plan.loss, ranks, amounts) if cached else None
        self.gradients = GradientWatch(list(plan.trained), stop=config.guard.no_gradient == "stop")
        watched = (context.resolved, plan.view, plan.components, plan.data, plan.loss, state, ranks, context.heartbeat)
        self.monitor = StageMonitor(Watched(*watched, *counters, context.tracker)) if config.track.monitor else None
        self.loop = Loop(
            stage=plan.view.name,
            state=state,
            loss=plan.loss if self.features is None else self.features.loss,
            config=config,
            ranks=ranks,
            quarantine=Quarantine(context.run / "quarantine.jsonl", config.guard.max_bad_fraction),
            hooks=[self.after_step, *context.options.hooks],
            stop=context.signals,
            mark=context.heartbeat.part,
            sources=plan.data.names(),
            skipped=nonfinite.steps_to_skip(context.run, plan.view.name),
            meter=counters.meter,
            spikes=self._spikes() if config.guard.spikes != "ignore" else None,
        )

    def _spikes(self) -> SpikeWatch:
        """Return what finds steps that stand out."""
        plan, context, state = self.plan, self.context, self.state
        box = BlackBox(plan, self.bundle, state, context.ranks, folder=context.run / FOLDER, mark=context.heartbeat.part)
        return SpikeWatch(state, plan.config.guard, context.ranks, context.run, plan.view.name, Look(box, context.tracker))

    def run(self) -> None:
        """Train to the stage's end. After saving, raises Paused if a stop was requested, and PlaitError if data cannot be read."""
        plan, state, context = self.plan, self.state, self.context
        if context.ranks.first:
            self.loop.quarantine.resume(state.step)
            context.tracker.begin(plan.view.name, state.step, self.stop_step)
        summary.announce(plan, self.bundle.model)
        if self.evaluation is not None:
            self.evaluation.compare_ranks()
        if state.stage_step:
            changes.compare(context, plan, self.manifest["data"], state, self.probe, self._require_finite)
        self._conclude_and_save(due=False)
        if state.stage_done is None and not context.signals.agreed:
            if self.evaluation is not None:
                self.evaluation.rehearse()
            if self.ledger is not None and not state.stage_step:
                self.ledger.measure_start()
            if wants_memory_probe(plan, context.ranks):
                self.micro_batch.fit(self._probe_memory, self._drop_gradients)
            self.micro_batch.fit(self._train, self._drop_gradients)
        error = next(filter(None, context.ranks.gather(self.data_error)), None)
        if state.stage_done is None and (error is None or state.stage_step):
            self.save()
        self.saver.wait()
        if error is not None:
            log.info(f"the data failed after step {state.step}, which is saved" if state.stage_step else "the data failed before a step")
            raise error
        if state.stage_done is None:
            reason = leaving.stopped_by(context.ranks.gather(context.signals.received))
            raise Paused(f"stopped by {reason} after step {state.step} of {self.stop_step}, all saved; the same command continues")

    def after_step(self, state: State, row: Row) -> None:
        """Compare replicas if due, record the metrics `row` of a step, evaluate and save if due. Raises Stopped where a check fails."""
        self.context.heartbeat.part("record")
        self.context.accept()
        settings, ranks = self.plan.config, self.context.ranks
        every = settings.guard.replica_check_steps
        if every and state.stage_step % every == 0 and ranks.size > 1 and not distributed.is_sharded(state.model):
            replicas.check(state.step, state.trained(), ranks)
        if self.counters.compilations is not None:
            row |= self.counters.compilations.figures(state.step)
        self.updated = self.updated if row.get("skipped") else state.step
        self.context.tracker.advance(row)
        self._record(row)
        self.gradients(row, last=state.step == self.stop_step)
        every = settings.checkpoint.every_steps
        self._conclude_and_save(due=every is not None and state.stage_step % every == 0)

    def _conclude_and_save(self, *, due: bool) -> None:
        """Evaluate, decide whether the stage ends, and save what must not be lost. A second call at one step changes nothing.

        A restart calls it for what a stop left undone. Raises Stopped where a bench failed and that is to end the run.
        """
        state, improved = self.state, False
        failures: Sequence[str] = ()
        planned, before = state.step >= self.stop_step, state.evaluated_step
        if state.stage_step and (planned or state.evaluated_step != state.step):
            if self.evaluation is None:
                state.evaluated_step, state.stage_done = state.step, PLANNED if planned else None
            else:
                improved, failures = self.evaluation.conclude(planned=planned)
            if state.stage_done and self.ledger is not None and not self.ledger.measure_end():
                state.evaluated_step, state.stage_done = before, None  # a restart concludes again
        if state.stage_done or improved or failures or due:
            self.save()
        if failures and self.plan.config.guard.bench_failure == "stop":
            self.saver.wait()
            raise Stopped(f"{'; '.join(failures)}; everything is saved, and the same command continues (guard.bench_failure is stop)")
        for looking in (self.blindness, self.source_losses):
            if looking is not None and not self.context.signals.agreed:
                looking.look()

    def save(self) -> None:
        """Save the state as a checkpoint, in the background if so configured. Does nothing if a save of this step has begun before.

        Raises Stopped, a PlaitError, before a file is written, if the weights give no finite loss.
        """
        plan, state, bundle = self.plan, self.state, self.bundle
        moment = (state.step, state.evaluated_step, state.stage_done)
        if moment == self.saved:
            return
        self.saved = moment
        self.context.heartbeat.phase("save", state.step)
        self._require_run()
        self.context.accept()
        folder = checkpoint.folder_of(self.context.run, plan.view.index, plan.view.name, state.step)
        kept: dict[str, Any] = {}
        if plan.config.checkpoint.reference:
            heard = reference.named(bundle.model, [] if plan.config.distributed.compile else bundle.blocks)
            state.probe, kept["reference"] = reference.measure(self.probe.measure, self.probe.batches, heard)
            kept["reference"]["frozen"] = reference.frozen(bundle.component_names, bundle.base_hashes, state.ever_trained)
            self.saver.wait()  # the manifest before this one is linked
            kept["chain"] = chain.link(folder, self.context.resumed_from, self.context.resolved.yaml)
        else:
            state.probe = self.probe.measure()
        self._require_finite(state.probe, self.updated)
        kept |= {"base": bundle.family.base(bundle.section), "frozen_xxh3": bundle.frozen_xxh3(state.ever_trained)}
        manifest = {**self.manifest, **kept, "state": state.metadata()}
        if self.monitor is not None:
            self.monitor.keep()
        keep, config, spared = plan.config.checkpoint.keep, self.context.resolved.yaml, state.best["step"] if state.best else None
        state.copied = self.saver.save(folder, state.tensors(), manifest, keep=keep, spared=spared, config=config)

    def _require_run(self) -> None:
        """Raise FileNotFoundError where the run directory is gone, or an empty one is in its place, as after a disk is unmounted."""
        if self.context.ranks.first:
            (self.context.run / disk_errors.LOCK).stat()

    def _require_finite(self, probe: float | None, updated: int | None) -> None:
        """Raise Stopped where the weights give no finite loss. `probe`: the probe loss; `updated`: step of the last update, if any."""
        if self.context.ranks.any(probe is None or not math.isfinite(probe)):
            self.saver.wait()
            stop_if_diverged(self.probe, self.context.ranks, run=self.context.run, updated=updated, step=self.state.step)

    def _loader(self, start_step: int, stop_step: int, **options: Any) -> Loader:
        """Open a loader of this rank's part of the stage's steps from `start_step` up to `stop_step`, counted in the stage."""
        plan, data, ranks = self.plan, self.plan.config.data, self.context.ranks
        return Loader(
            plan.data.sources,
            plan.order,
            seed=plan.data_seed,
            slicing=plan.slicing,
            rank=ranks.rank,
            world_size=ranks.size,
            micro_batch=self.micro_batch.samples,
            workers=data.workers,
            kind=data.worker_kind,
            prefetch=data.prefetch,
            pin=ranks.device.type == "cuda",
            start_step=start_step,
            stop_step=stop_step,
            **options,
        )

    def _train(self) -> None:
        """Take step after step to the end of the stage, or to a stop."""
        inputs = self.bundle.inputs(self.plan.config, train=True)
        inputs = inputs if self.features is None else self.features.inputs(inputs)
        loader = self._loader(self.state.stage_step, self.plan.steps, inputs=inputs, interrupted=self.context.signals.requested)
        with contextlib.closing(loader):
            self.loop.run(self._watched(loader), self.stop_step)

    def _probe_memory(self) -> None:
        """Try the largest micro-batch among some steps, padded to data.max_tokens: what will not fit is known now."""
        data = self.plan.config.data
        pad = "to_max" if data.max_tokens and data.pad != "none" else data.pad
        inputs = self.bundle.inputs(self.plan.config, train=True, pad=pad)
        steps = probed_steps(self.state.stage_step, self.plan.steps, self.plan.config.train.global_batch)
        with contextlib.closing(self._loader(*steps, inputs=inputs)) as loader:
            probe_memory(self.loop, loader)
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        """Drop gradients of a pass that does not count."""
        assert self.state.optimizer is not None
        optim.drop_gradients(self.state.optimizer)

    def _watched(self, loader: Loader) -> Iterator[StepBatch]:
        """Yield the loader's batches, marked in the heartbeat. Where they end early, an empty one tells the other ranks."""
        batches = iter(loader)
        while True:
            self.context.heartbeat.phase("data", self.state.step)
            try:
                self.batch = next(batches, None)
            except PlaitError as error:
                self.batch, self.data_error = None, error
            if self.batch is None:
                if self.state.step < self.stop_step:
                    yield StepBatch(self.state.stage_step, [], [], 0.0)
                return
            self.context.heartbeat.phase("step", self.state.step)
            if self.counters.compilations is not None:
                self.counters.compilations.begin()
            if self.monitor is not None:
                self.monitor.begin(self.batch)
            yield self.batch

    def _record(self, row: Row) -> None:
        """Record the row of a step that is due. It has the digest of the step's samples over all ranks, which is the same on any layout."""
        state, every = self.state, self.plan.config.track.every_steps
        if state.stage_step % every != 0 and state.step != self.stop_step:
            return
        assert self.batch is not None
        self._require_run()
        own = sum(digest(micro.ids) for micro in self.batch.micro if not micro.padding)
        ids = int(self.context.ranks.sum(torch.tensor(float(own), dtype=torch.float64))) & 0xFFFFFFFF
        full = state.stage_step % _SHARES_EVERY < every or state.step == self.stop_step
        row |= summary.place_of(self.plan.order, self.plan.data.sources, state.stage_step - 1)
        row |= self.features.figures() if self.features is not None else {}
        row |= {"ema_decay": state.ema.decay_at(state.stage_step - 1)} if state.ema is not None else {}
        row |= self.monitor.figures(row) if self.monitor is not None else {}
        self.context.tracker.row(row | (source_shares.shares(state.totals) if full else {}) | {"ids": f"{ids:08x}"})
