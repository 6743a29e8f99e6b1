"""A plan beside the run it plans: what the allocator gives during a step of that run, and what its rows and checkpoints hold."""

import json
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from plait.engine.loop import Loop
from plait.training import run


@dataclass
class Reality:
    """What a step took: `peak` bytes with the state, and the rows of metrics.jsonl."""

    peak: dict
    rows: list


def state_bytes(state):
    """Weights, moments and averages that are there, counted from their tensors."""
    tensors = [*state.model.parameters(), *state.model.buffers()]
    tensors += [value for moments in state.optimizer.state.values() for value in moments.values() if isinstance(value, torch.Tensor)]
    tensors += [value for average in state._averages().values() for value in average.average.values()]
    return sum({value.untyped_storage()._cdata: value.nbytes for value in tensors}.values())


def peak_of(work):
    """Run `work` and return its result and the most bytes that the CPU's allocator had given out meanwhile, of those not there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return result, most


def measured(resolved, monkeypatch, watched):
    """Train the run; the peak of each of the steps `watched` (of a stage, from 0) by stage and step."""
    peaks, plain = {}, Loop.step

    def step(self, net, batch, stage_steps, *, audit):
        if self.state.stage_step not in watched:
            return plain(self, net, batch, stage_steps, audit=audit)
        held = state_bytes(self.state) + max(
            sum(v.nbytes for v in micro.batch.values() if isinstance(v, torch.Tensor)) for micro in batch.micro
        )
        row, peak = peak_of(lambda: plain(self, net, batch, stage_steps, audit=audit))
        peaks[self.stage, self.state.stage_step - 1] = held + peak
        return row

    monkeypatch.setattr(Loop, "step", step)
    folder = run.train(resolved)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Reality(peaks, [row for row in rows if "loss" in row])
