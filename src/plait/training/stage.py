"""One stage of a run: what trains, on which data, until when; and what happens between two steps."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plait import __version__
from plait.assembly import parts
from plait.assembly.parts import AnyOrder, FixedOrder, Parts
from plait.config.conflicts import schedule_conflicts
from plait.config.resolved import StageView
from plait.config.schema import RunConfig
from plait.data.loading.loader import Loader, StepBatch
from plait.data.order import SampleId, digest
from plait.engine import blocks, evaluation, micro_batch, nonfinite, optim, out_of_memory, plateau, replicas, schedule, source_shares
from plait.engine.checkpoints import checkpoint
from plait.engine.checkpoints.checkpoint import Checkpoint
from plait.engine.evaluation import Evaluations
from plait.engine.flops import Meter
from plait.engine.guards import Quarantine
from plait.engine.loop import Loop, Loss, Row
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.signals import Paused, Signals
from plait.engine.monitoring.tracking import Tracker
from plait.engine.parallel import distributed, memory_estimate, strategy
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.memory_estimate import Storage
from plait.engine.precision import caution, set_precision
from plait.engine.state import State
from plait.errors import PlaitError, Stopped
from plait.training import start
from plait.training.summary import announce, realised, titles

_PROBE_SAMPLES = 4
_SHARES_EVERY = 100  # steps between rows that say what each of several sources gave: there can be dozens of them
_PROBED_SAMPLES = 64  # at least a step's; the largest micro-batch of them is tried for memory
Named = dict[str, dict[str, nn.Parameter]]


@dataclass
class Stage:
    """One stage of a run: its data, optimizer and loop, and what happens between two steps."""

    view: StageView
    built: Parts
    state: State
    run: Path
    ranks: Ranks
    tracker: Tracker
    signals: Signals
    allow_inexact: bool
    heart: Heartbeat
    since: Checkpoint | None = None
    """The checkpoint that the run came back from, when it did."""

    def train(self) -> None:
        """Run the stage from where the state is to its end."""
        config, built, state, ranks = self.view.config, self.built, self.state, self.ranks
        components = built.family.components(built.model)
        trained = optim.select(components, config.trainable, built.family.never_trained)
        optim.check_components(config.optim, components)
        self.benches = parts.benches(config, config.evaluate)
        opened, weights = parts.training(config)
        seed, order = parts.stage_order(self.view, opened, weights)
        steps = planned_steps(config, order)
        self.stop = state.stage_start + steps
        if state.stage_done == plateau.PLANNED and state.step < self.stop:
            state.stage_done = None  # its budget has grown since
        if state.stage_done is not None:
            return
        self.saved: tuple[int, int, str | None] | None = (state.step, state.judged, state.stage_done) if state.stage_step else None
        self.cut = cut(config, ranks)
        fits = micro_batch.noted(self.run, self.view.name, ranks.size)
        self.cut["micro_batch"] = min(self.cut["micro_batch"], fits or self.cut["micro_batch"])
        components, trained = self.wrap(trained)
        state.begin(trained, config.optim, config.seed)
        self.loss: Loss = built.family.Loss(built.section)
        schedule.check(config.optim.schedule, self.loss.counts, config.family)
        self.inputs = built.inputs(config, train=False)
        self.judge = self._evaluations()
        self.saver = checkpoint.Saver(config.checkpoint.async_save, ranks)
        self.facts = self._facts(trained, components, opened)
        self.probe = self._probe_batch(opened)
        quarantine = Quarantine(self.run / "quarantine.jsonl", config.guard.max_bad_fraction)
        if ranks.first:
            quarantine.resume(state.step)
            self.tracker.begin(self.view.name, state.step, self.stop)
            announce(self.view, trained, components, opened, steps, weights, order.counts)
        if state.stage_step:
            self._compare()
        feed = functools.partial(Loader, opened, order, seed=seed)
        with contextlib.closing(self.saver), blocks.compiling(config.distributed):
            loop = Loop(state, self.loss, config, ranks, quarantine, [self.after], asked=self.signals.asked, mark=self.heart.part)
            loop.stage, loop.skipped, loop.sources = self.view.name, nonfinite.listed(self.run, self.view.name), list(self.facts["data"])
            if self.conclude(state) or state.stage_done:
                self.save(state)
            if state.stage_done is None and not self.judge.interrupted:
                self.fitting(lambda: self.probe_memory(loop, feed))
                self.fitting(lambda: self.steps(loop, feed))
            if state.stage_done is None:
                self.save(state)
            self.saver.wait()
            if state.stage_done is None:
                raise Paused(
                    f"stopped by {self.signals.received} after step {state.step} of {self.stop}, all saved; the same command continues"
                )
        if ranks.first:
            done = f"stage {self.view.index} {self.view.name} is done after step {state.step}: {state.stage_done}"
            print("\n  ".join([done, *realised(self.facts["data"], weights, state.totals)]))

    def wrap(self, trained: Named) -> tuple[Named, Named]:
        """Lay the model out over devices for what trains in this stage; returns its components and what trains, as parameters there."""
        config, built, state = self.view.config, self.built, self.state
        units, names = built.family.blocks(built.model), {name for part in trained.values() for name in part}
        state.pause()
        built.sharding.unwrap()
        self.meter = Meter(self.ranks.device, config.train.precision)
        self.compilations = blocks.prepare(units, config.distributed, self.meter)
        if self.ranks.first and (said := caution(config.train.precision, self.ranks.device)):
            print(said)
        set_precision(built.model, state.ever_trained | names, config.train.precision)
        weights = memory_estimate.weigh(built.model, names, state.ever_trained, units)
        storage = Storage.of(config.train.precision, averages=optim.averages(config.optim))
        micros = math.ceil(config.train.global_batch / (self.cut["micro_batch"] * self.ranks.size))
        layout, why = strategy.choose(config.distributed, weights, storage, self.ranks, accumulating=micros > 1)
        if self.ranks.size > 1 and self.ranks.first:
            print(why)
        built.sharding.wrap(units, names, layout, self.ranks)
        components = built.family.components(built.model)
        return components, optim.select(components, config.trainable, built.family.never_trained)

    def steps(self, loop: Loop, feed: Callable[..., Loader]) -> None:
        """Step after step to the end of the stage, or of this process's time."""
        interrupted = self.signals.asked if self.ranks.size == 1 else _never
        place = {"start_step": self.state.stage_step, "stop_step": self.stop - self.state.stage_start}
        inputs = self.built.inputs(self.view.config, train=True)
        with contextlib.closing(feed(inputs, **place, interrupted=interrupted, **self.cut)) as loader:
            loop.run(self.watched(loader), self.stop)

    def probe_memory(self, loop: Loop, feed: Callable[..., Loader]) -> None:
        """Forward and backward of the largest micro-batch among some steps, padded to data.max_tokens: what will not fit is known now."""
        config, built, state = self.view.config, self.built, self.state
        wanted = config.guard.memory_probe
        if wanted == "never" or (wanted == "auto" and self.ranks.device.type == "cpu"):
            return
        assert state.optimizer is not None
        pad = "to_max" if config.data.max_tokens and config.data.pad != "none" else config.data.pad
        inputs = built.family.Inputs(built.section, built.assets, max_tokens=config.data.max_tokens, pad=pad, train=True)
        last = state.stage_step + max(1, _PROBED_SAMPLES // config.train.global_batch)
        place = {"start_step": state.stage_step, "stop_step": min(last, self.stop - state.stage_start)}
        with contextlib.closing(feed(inputs, **place, **self.cut)) as loader:
            micros = [micro for batch in loader for micro in batch.micro]
        state.model.train()
        with micro_batch.reserved(state.trained().values(), state.optimizer):
            largest = max(micros, key=lambda micro: micro_batch.size(micro.batch))
            loop.accumulate(state.model, [largest], dict.fromkeys(self.loss.coefficients, 1.0))
        self.forget()

    def fitting(self, work: Callable[[], None]) -> None:
        """Do it, and where memory runs out, again with half the micro-batch: from the step at hand, nothing of which has happened yet."""
        while (said := self.exceeded(work)) is not None:
            self.forget()
            self.cut["micro_batch"] = micro_batch.halved(self.cut["micro_batch"], said)
            if self.ranks.first:
                micro_batch.note(self.run, self.view.name, self.ranks.size, self.cut["micro_batch"])
                print(
                    f"out of memory ({said}): on with micro_batch {self.cut['micro_batch']} and more accumulation: the gradient is the same"
                )

    def exceeded(self, work: Callable[[], None]) -> str | None:
        """Do it; what was said when memory ran out on a rank, or None.

        Raises Stopped when this rank cannot tell the others, who wait in a collective: the next start has the smaller micro-batch.
        """
        try:
            work()
        except out_of_memory.Exceeded as error:
            return str(error)
        except out_of_memory.Waited as error:
            smaller = micro_batch.halved(self.cut["micro_batch"], str(error))
            micro_batch.note(self.run, self.view.name, self.ranks.size, smaller)
            raise Stopped(f"out of memory ({error}); the same command continues, with micro_batch {smaller}") from error
        return None

    def forget(self) -> None:
        """Drop gradients of a pass that does not count."""
        for value in self.state.trained().values():
            value.grad = None

    def watched(self, loader: Loader) -> Iterator[StepBatch]:
        """The loader's batches, with the heartbeat told when one is waited for and when it is at work."""
        batches = iter(loader)
        while True:
            self.heart.phase("data", self.state.step)
            batch = next(batches, None)
            if batch is None:
                return
            self.batch = batch
            self.heart.phase("step", self.state.step)
            if self.compilations is not None:
                self.compilations.begin()
            yield batch

    def _ids(self) -> str:
        """The digest of the step's samples over all ranks, replacements included: the same on any layout."""
        own = sum(digest(micro.ids) for micro in self.batch.micro if not micro.padding)
        return f"{int(self.ranks.sum(torch.tensor(float(own), dtype=torch.float64))) & 0xFFFFFFFF:08x}"

    def after(self, state: State, row: Row) -> None:
        """Between two steps: metrics, held-out figures, the end of the stage, a checkpoint."""
        settings = self.view.config
        compare = settings.guard.replica_check_steps
        if compare and state.stage_step % compare == 0 and self.ranks.size > 1 and not distributed.is_sharded(state.model):
            replicas.check(state.step, state.trained(), self.ranks)
        if self.compilations is not None:
            for line in self.compilations.end():
                print(f"step {state.step}: {line}") if self.ranks.first else None
            row |= {"recompiles": self.compilations.again}
        tracked = settings.track.every_steps
        if state.stage_step % tracked == 0 or state.step == self.stop:
            full = state.stage_step % _SHARES_EVERY < tracked or state.step == self.stop
            self.tracker.row(row | (source_shares.shares(state.totals) if full else {}) | {"ids": self._ids()})
        improved = self.conclude(state)
        every = settings.checkpoint.every_steps
        if state.stage_done or improved or (every is not None and state.stage_step % every == 0):
            self.save(state)

    def conclude(self, state: State) -> bool:
        """Take the held-out figures that are due at this step, and decide whether the stage ends. Returns whether they are the best so far.

        A restart calls it for what a stop left undone; twice at one step changes nothing.
        """
        settings = self.view.config
        if (state.judged == state.step < self.stop) or state.stage_step == 0:
            return False
        planned = state.step >= self.stop
        due = self.judge.entries if planned else self.judge.due(state)
        if due:
            self.heart.phase("evaluate", state.step)
        figures = self.judge.run(state, due)
        improved = _note(state, figures, settings)
        rule = settings.train.plateau
        reason = plateau.PLANNED if planned else rule and plateau.flat(state.history, rule)
        if reason and not planned and not self.judge.interrupted:
            self.judge.run(state, [entry for entry in self.judge.entries if entry not in self.judge.due(state)])
        if not self.judge.interrupted:
            state.judged, state.stage_done = state.step, reason or None
        return improved

    def save(self, state: State) -> None:
        """Write a checkpoint of this moment, unless that is where the run came from."""
        moment = (state.step, state.judged, state.stage_done)
        if moment == self.saved:
            return
        self.saved = moment
        self.heart.phase("save", state.step)
        folder = checkpoint.folder_of(self.run, self.view.index, self.view.name, state.step)
        state.probe = self._probe_loss()
        frozen = {"base": self.built.family.base(self.built.section), "frozen_xxh3": self.built.frozen_xxh3(state.ever_trained)}
        content = {**self.facts, **frozen, "state": state.facts()}
        spared = state.best["step"] if state.best else None
        self.saver.save(folder, state.tensors(), content, self.view.config.checkpoint.keep, spared)

    def _evaluations(self) -> Evaluations:
        config = self.view.config
        held_out = parts.held_out(self.built, config, self.ranks)
        precision = config.train.precision
        return Evaluations(
            config.evaluate,
            held_out,
            self.loss,
            self.benches,
            self.inputs,
            self.ranks,
            precision,
            self._asked,
            self.tracker.row,
            self.tracker.pictures,
            gathered=self.built.sharding.gathered,
        )

    def _asked(self) -> bool:
        """Between two parts of an evaluation: whether to stop."""
        self.heart.part("next")
        return self.signals.asked()

    def _probe_batch(self, opened: list[Any]) -> list[Any]:
        ids = tuple(SampleId(0, i, 0) for i in range(min(_PROBE_SAMPLES, len(opened[0]))))
        order = FixedOrder.of(ids, opened, _PROBE_SAMPLES)
        with Loader(opened, order, self.inputs, seed=self.view.config.seed, workers=0, stop_step=1) as loader:
            return list(loader)

    def _probe_loss(self) -> float | None:
        alone = Ranks(0, 1, self.ranks.device)
        self.built.model.eval()
        weights = evaluation.total_weights(self.loss, self.probe[0].micro, alone)
        if not any(weights.values()):
            return None
        return evaluation.held_out_loss(self.built.model, self.loss, self.probe, alone, self.view.config.train.precision)["loss"]

    def _facts(self, trained: dict[str, Any], components: dict[str, Any], opened: list[Any]) -> dict[str, Any]:
        """What each checkpoint of the stage says besides its state."""
        ever = self.state.ever_trained
        return {
            "stage": self.view.name,
            "trainable": list(trained),
            "steps": self.stop - self.state.stage_start,
            "components": {name: contents(part, trained.get(name, {}), ever) for name, part in components.items()},
            "data": fingerprints(opened),
            "world": self.ranks.size,
            "versions": {"plait": __version__, "torch": torch.__version__},
        }

    def _compare(self) -> None:
        """Hold the data and the probe samples' loss against what the checkpoint says, and report."""
        if self.since is not None and self.since.manifest["stage"] == self.view.name:
            line = start.check_data(self.since, self.facts["data"], self.run, self.allow_inexact)
            print(f"  {line}") if self.ranks.first else None
            if self.since.manifest["data"] != self.facts["data"]:
                return  # other probe samples: their loss says nothing
        now = self._probe_loss()
        if now is not None:
            line = start.check_probe(self.state.probe, now, self.allow_inexact)
            print(f"  {line}") if self.ranks.first else None


def _never() -> bool:
    """Several ranks stop together, at a step's end; one that left its data wait alone would leave the others hanging."""
    return False


def _note(state: State, figures: dict[str, float], settings: RunConfig) -> bool:
    """Remember the figures that may end the stage or be the best; returns whether there is a new best."""
    rule, wanted = settings.train.plateau, settings.checkpoint.best
    if rule and rule.metric in figures:
        state.history = [item for item in state.history if item[0] != state.stage_step] + [(state.stage_step, figures[rule.metric])]
    if wanted is None or wanted not in figures:
        return False
    sign = 1.0 if settings.checkpoint.better == "lower" else -1.0
    if state.best is not None and sign * figures[wanted] >= sign * state.best["value"]:
        return False
    state.best = {"metric": wanted, "value": figures[wanted], "step": state.step}
    return True


def contents(part: dict[str, Any], trained: dict[str, Any], ever: set[str]) -> dict[str, Any]:
    """What a checkpoint says of one component: its values, how many of them train now, and the names of its weights that are saved."""
    values = (sum(value.numel() for value in some.values()) for some in (part, trained))
    return dict(zip(("values", "trains"), values, strict=True)) | {"weights": sorted(ever & part.keys())}


def fingerprints(opened: list[Any]) -> dict[str, str]:
    """The content of each source by its name among them."""
    return dict(zip(titles(opened), (source.fingerprint for source in opened), strict=True))


def planned_steps(config: RunConfig, order: AnyOrder) -> int:
    """Optimizer steps of a stage from its budget in steps, epochs or samples (rounded up to whole steps).

    Raises PlaitError when warm-up would not end before the stage does.
    """
    budget = config.train
    if budget.steps is not None:
        steps = budget.steps
    else:
        steps = order.steps(budget.epochs) if budget.epochs is not None else math.ceil((budget.samples or 0) / budget.global_batch)
    for path, said in schedule_conflicts(config.optim, steps):
        raise PlaitError(f"{'.'.join(map(str, path))} {said}")
    return steps


def cut(config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """How this rank takes its part of each global batch: never a change of what the batch is."""
    micro = config.train.micro_batch or math.ceil(config.train.global_batch / ranks.size)
    data = config.data
    workers = {"workers": data.workers, "kind": data.worker_kind, "prefetch": data.prefetch, "pin": ranks.device.type == "cuda"}
    return {"rank": ranks.rank, "world_size": ranks.size, "micro_batch": micro, **workers}
