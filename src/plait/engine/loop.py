"""The training loop, on one page: steps, parameters and gradients, for any model and any data.

A loss is numerators and weights (denominators) per named term. The weights of the whole global batch are summed over micro-batches and
ranks first; then backward runs on ranks * sum(coefficient * numerator / weight), so that the mean over ranks that DDP takes gives the
gradient of one global batch, however it is split. A source is one training data set; a row is the metrics of one step by name.
"""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plait.config.schema import RunConfig
from plait.engine import blocks, guards, micro_batch, nonfinite, nonfinite_report, optim, schedule, source_shares
from plait.engine.loss import Batch, Loss, MicroBatch, StepBatch, has_targets, sums_of, weights_of
from plait.engine.parallel import distributed
from plait.engine.parallel.copies import Copies
from plait.engine.parallel.distributed import Ranks
from plait.engine.precision import Scaler, autocast
from plait.engine.state import State
from plait.keys import key, stem

Row = dict[str, Any]
"""The metrics of one step by name."""


class StopChannel(Protocol):
    """Requests to stop the run by a signal (SIGTERM, Ctrl-C). This rank may have got one, and all ranks may have agreed to stop."""

    @property
    def agreed(self) -> bool:
        """Whether all ranks have agreed to stop; the same on every rank at the same moment of the run."""

    def requested(self) -> bool:
        """Return whether this process has got a signal to stop; other ranks may not know of it yet."""

    def agree(self, requested: bool) -> bool:
        """Record `requested`, whether any rank was asked to stop (the same on all ranks); returns whether the run stops."""


class Meter(Protocol):
    """Counter of floating point operations (FLOPs) on this rank, for `tflop_per_s` and `mfu` among the metrics."""

    def forward(self, batch: Batch) -> contextlib.AbstractContextManager[None]:
        """Return a context that counts the FLOPs of the forward pass inside it, and of the backward pass that follows."""

    def take(self) -> float:
        """Return the FLOPs counted since the last call, and count from zero again."""

    def rates(self, flops: float, seconds: float, ranks: int) -> Mapping[str, float]:
        """Return the metrics (`tflop_per_s`, `mfu`) for `flops` that `ranks` ranks together did in `seconds`."""


class SpikeWatch(Protocol):
    """What compares the finite figures of each step with those of the steps before (`guard.spikes`)."""

    def stands_out(self, row: Row) -> bool:
        """Compare the metrics of a step, and remember them; returns whether any of them stands out on this rank."""

    def respond(self, row: Row, batch: StepBatch) -> tuple[Row, bool]:
        """Tell of a step that stands out on any rank; returns (its metrics, whether to update with it). All ranks call this."""


log = logging.getLogger(__name__)

Hook = Callable[[State, Row], None]
"""What is called after each step, with the state and the metrics of the step."""


@dataclass
class Loop:
    """The training loop of one stage (part of a run). `run` advances the state by whole steps and calls the hooks after each."""

    stage: str
    """Name of the stage, under which `skipped` is listed."""
    state: State
    loss: Loss
    config: RunConfig
    ranks: Ranks
    quarantine: guards.Quarantine
    hooks: Sequence[Hook]
    """Called in order after each step with the state and the step's row, to which they may add."""
    stop: StopChannel
    """The ranks agree on a request to stop once a step."""
    mark: Callable[[str], None]
    """Called with the name of each part of a step as it begins, for the watchdog: shows which rank hangs and which only wait for it."""
    sources: Sequence[str]
    """Names of the stage's sources: sample ids hold positions in this list. With several, what each contributes is counted."""
    skipped: frozenset[int]
    """Steps of the stage, from 0, that end without an update."""
    meter: Meter
    spikes: SpikeWatch | None
    """Finds steps whose finite loss or gradient norm stands out, and responds; None: nobody looks (`guard.spikes`)."""

    @functools.cached_property
    def copies(self) -> Copies | None:
        """What copies micro-batches to a GPU ahead; None on a CPU, where they are."""
        return Copies(self.ranks.device) if self.ranks.device.type == "cuda" else None

    @property
    def scaler(self) -> Scaler:
        """The loss scaling of float16 training; scale and counters are kept in `state.totals`, and so in checkpoints."""
        return Scaler(self.config.train.precision, self.state.totals)

    def run(self, batches: Iterable[StepBatch], stop_step: int) -> None:
        """Train up to step `stop_step` of the run, one batch per step. Returns earlier if the stage is done, at a stop, or without data."""
        net = distributed.replicate(self.state.model, self.ranks, self.config.distributed.ddp_comm_hook)
        self.state.model.train()  # all of it: parts that transformers or diffusers loaded are in evaluation mode under a root that is not
        first = True
        for batch in batches:
            began = time.perf_counter()
            row = self.step(net, batch, stop_step - self.state.stage_start, audit=first)
            if row is None:
                return
            total_s, flops = time.perf_counter() - began + batch.wait_s, row.pop("flops", None)
            row |= {"samples_per_s": self.config.train.global_batch / total_s}
            row |= self.meter.rates(flops, total_s, self.ranks.size) if flops else {}
            row |= {"data_wait_s": batch.wait_s, "step_s": time.perf_counter() - began, "time_s": time.time()}
            for hook in self.hooks:
                hook(self.state, row)
            if self.state.stage_done or self.stop.agreed:
                return
            first = False

    def step(self, net: nn.Module, batch: StepBatch, stage_steps: int, *, audit: bool) -> Row | None:
        """Do one step of the stage: gradient, update and averages. Returns its metrics, or None if a rank has no data for it.

        `net`: the model or its DDP. `stage_steps`: the stage's length, for the schedule. `audit`: check which parameters got a gradient.
        """
        state, config = self.state, self.config
        assert batch.step == state.stage_step and state.optimizer is not None
        if not state.model.training:
            state.model.train()
        own = own_loss_weights(self.loss, batch.micro) | source_shares.amounts(self.loss, batch.micro, self.sources)
        *sums, without_data = sum_over_ranks([*own.values(), not batch.micro], self.ranks)
        if without_data:
            self.stop.agree(True)
            return None
        loss_weights = dict(zip(own, sums, strict=True))
        from_sources = {name: loss_weights.pop(name) for name in [*loss_weights] if name.startswith(source_shares.PREFIX)}
        counts = {name: loss_weights.pop(name) for name in self.loss.counts}
        progress = schedule.progress_at(config.optim.schedule, state.stage_step, stage_steps, state.totals, counts)
        lrs = optim.set_lr(state.optimizer, config.optim, progress)
        scaler = self.scaler
        scale = scaler.scale
        row, usable = self.gradient(net, batch, loss_weights, audit=audit)
        scaler.end_step(scale, sound=usable)
        if usable:
            optim.drop_idle(state.optimizer, self.loss.may_idle, row)
            state.copied()
            state.optimizer.step()
            state.average()
        optim.drop_gradients(state.optimizer)
        state.step += 1
        state.count({"samples": config.train.global_batch, **counts, **from_sources, **({} if usable else {"skipped": 1})})
        self.quarantine.add(state.step, batch.bad, state.totals, self.ranks)
        return {
            "step": state.step,
            "stage": state.stage,
            **row,
            **{f"lr/{name}": lr for name, lr in lrs.items()},
            **{name: state.totals[name] for name in ("samples", *self.loss.counts)},
        }

    def gradient(self, net: nn.Module, batch: StepBatch, loss_weights: Mapping[str, float], *, audit: bool) -> tuple[Row, bool]:
        """Compute the clipped gradient of the global batch into the parameters' `grad`.

        Returns (the step's metrics, whether to update with it). `loss_weights`: the global denominators by term. `audit`: check which
        parameters got a gradient. Raises Stopped, a PlaitError, or Rewind for values that are not finite, as `guard.non_finite` says.
        """
        state, guard = self.state, self.config.guard
        assert state.optimizer is not None
        if state.stage_step in self.skipped:
            self.stop.agree(self.ranks.any(self.stop.requested()))
            return {"loss": math.nan, "skipped": 1}, False
        sums = self.accumulate(net, batch.micro, loss_weights)
        if self.copies:
            self.copies.begin(batch.following())
        self.mark("update")
        if audit and guard.audit:
            for line in guards.audit(state.model):
                log.info(line)
        components, scaler = optim.by_component(state.optimizer), self.scaler
        scaler.unscale(value for part in components.values() for value in part)
        norms, clip = optim.measure(components, self.config.train.grad_clip, self.config.optim.own_clips)
        row = self.figures(sums, loss_weights, norms) | scaler.figures()
        if scaler.overflowed(row["loss"], row["grad_norm"], self.ranks):
            log.info(f"step {state.step + 1}: gradients overflow float16; taken again with the loss scaled by {scaler.scale:g}")
            optim.drop_gradients(state.optimizer)
            return self.gradient(net, batch, loss_weights, audit=audit)
        clip(row)
        values = {name: row[name] for name in row if name.startswith("loss") or name == "grad_norm"}
        finite = all(map(math.isfinite, values.values()))
        if not self.ranks.any(not finite or (self.spikes is not None and self.spikes.stands_out(row))):
            return row, True
        if self.spikes is not None and not nonfinite.any_not_finite(values, self.ranks):
            return self.spikes.respond(row, batch)
        ids, run = [f"{i.source}:{i.index}@{i.epoch}" for micro in batch.micro for i in micro.ids], self.quarantine.path.parent
        report = nonfinite_report.make_report(state.step + 1, values, ids, model=state.model, ranks=self.ranks, run=run)
        used = int(state.totals.get("skipped", 0))
        nonfinite_report.respond(report, guard, self.ranks, skipped=used, run=run, stage=self.stage, step=state.stage_step)
        return row | {"skipped": 1}, False

    def accumulate(self, net: nn.Module, micros: Sequence[MicroBatch], loss_weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Run forward and backward of all micro-batches; return this rank's numerators by term. `loss_weights`: the global denominators."""
        totals: dict[str, Tensor] = {}
        self.meter.take()  # a step that is taken again is counted once
        sharded = distributed.is_sharded(net)
        recomputed = self.config.distributed.activation_checkpointing != "none"
        with contextlib.ExitStack() as casts:
            if (recomputed or len(micros) > 1) and not sharded:  # gathered weights would be kept whole
                casts.enter_context(blocks.kept_casts(self.config, self.state.model, self.ranks))
            for i, micro in enumerate(micros):
                seed(key(self.state.step, self.ranks.rank, i, after=stem(self.config.seed, "dropout")), self.ranks.device)
                self.mark("copy")
                copies, last = self.copies, i == len(micros) - 1
                inputs = copies.take(*micros[i : i + 2]) if copies else distributed.to_device(micro.batch, self.ranks.device)
                self.mark("forward")
                with distributed.accumulating(net, last, self.config.distributed.gradient_sync):
                    with micro_batch.Guarded(self.ranks, meet=last, collective=sharded):
                        counting = contextlib.nullcontext() if micro.padding else self.meter.forward(inputs)
                        with counting, autocast(self.config.train.precision, self.ranks.device):
                            sums = sums_of(self.loss, net, inputs)
                        self.mark("backward")
                        if not last:
                            self.backward(sums, micro, loss_weights)
                    if last:
                        if not recomputed:
                            casts.close()  # what the backward pass needs of them it holds, and lets go as it goes
                        with micro_batch.Guarded(self.ranks, collective=True):
                            self.backward(sums, micro, loss_weights)
                if not micro.padding:
                    for name, value in sums.items():
                        totals[name] = totals[name] + value.detach().double() if name in totals else value.detach().double()
        return totals

    def backward(self, sums: Mapping[str, Tensor], micro: MicroBatch, loss_weights: Mapping[str, float]) -> None:
        """Backpropagate a micro-batch's numerators `sums`; `loss_weights`: global denominators. A padding micro-batch adds zeros."""
        factor = 0.0 if micro.padding else self.ranks.size * self.scaler.scale
        scale = {name: factor * self.loss.coefficients[name] / loss_weights[name] for name in sums if loss_weights[name] > 0}
        scale = scale if has_targets(self.loss, loss_weights) else dict.fromkeys(sums, 0.0)
        terms = [name for name in scale if sums[name].requires_grad]
        torch.autograd.backward([sums[name] for name in terms], [torch.full_like(sums[name], scale[name]) for name in terms])

    def figures(self, sums: Mapping[str, Tensor], loss_weights: Mapping[str, float], norms: Mapping[str, Tensor]) -> Row:
        """Return a step's metrics over all ranks: `loss`, `loss/TERM`, `weight/TERM`, `flops` if counted, and the gradient `norms`.

        `sums`: this rank's numerators by term; `loss_weights`: the global denominators.
        """
        names = list(loss_weights)
        on_this_rank = on_host({**sums, **norms})
        numerators = [on_this_rank.get(name, 0.0) for name in names]
        *numerators, flops, requested = sum_over_ranks([*numerators, self.meter.take(), self.stop.requested()], self.ranks)
        self.stop.agree(requested > 0)
        losses = {name: value / loss_weights[name] for name, value in zip(names, numerators, strict=True) if loss_weights[name] > 0}
        total = sum(self.loss.coefficients[name] * value for name, value in losses.items())
        terms = {f"loss/{name}": value for name, value in losses.items()}
        denominators = {f"weight/{name}": loss_weights[name] for name in names}
        return {"loss": total, **terms, **denominators, **{name: on_this_rank[name] for name in norms}, "flops": flops}


def total_loss_weights(loss: Loss, micros: Sequence[MicroBatch], ranks: Ranks) -> dict[str, float]:
    """Sum the weight (denominator) of each loss term, and each of the loss's counts, over all micro-batches of all ranks; by name."""
    own = own_loss_weights(loss, micros)
    return dict(zip(own, sum_over_ranks([*own.values()], ranks), strict=True))


def own_loss_weights(loss: Loss, micros: Sequence[MicroBatch]) -> dict[str, float]:
    """Return each loss term's weight and each of the loss's counts, by name, over this rank's micro-batches; reads host tensors only."""
    loss_weights = [weights_of(loss, micro.batch) for micro in micros if not micro.padding]
    return {name: sum([float(terms[name]) for terms in loss_weights], 0.0) for name in (*sorted(loss.coefficients), *loss.counts)}


def sum_over_ranks(values: list[float], ranks: Ranks) -> list[float]:
    """Sum each number over all ranks, in float64; every rank calls this with equally many numbers."""
    return ranks.sum(torch.tensor(values, dtype=torch.float64)).tolist() if ranks.size > 1 else [float(value) for value in values]


def on_host(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """Return scalar tensors of one device as numbers by name; waits for the device once."""
    if all(value.is_cpu for value in scalars.values()):
        return {name: value.item() for name, value in scalars.items()}
    return dict(zip(scalars, torch.stack([value.double() for value in scalars.values()]).tolist(), strict=True))


def seed(value: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from, of CPU and `device` alone: `torch.manual_seed` queues calls for absent devices too."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
