"""Held-out figures during and after training: the loss on held-out samples, and the family's benches on generated answers."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from plait.engine import distributed
from plait.engine.distributed import World
from plait.engine.loop import Loss, Row, autocast, total_weights
from plait.engine.state import State
from plait.errors import PlaitError
from plait.schema import Evaluate

LOSS = "loss"
"""The bench every family has: its own loss on held-out samples."""


class Bench(Protocol):
    """A family's bench: rows of predictions for some samples, and figures from all rows."""

    def predict(self, model: nn.Module, samples: Sequence[Any], inputs: Any, *, batch: int) -> list[dict[str, Any]]:
        """One row per sample, JSON-able, with its `id`."""

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Figures from the rows of all samples."""


@dataclass(frozen=True)
class HeldOut:
    """Access to the held-out data of one `evaluate:` entry, the same samples every time and on any number of ranks."""

    batches: Callable[[Evaluate], Iterable[Any]]
    samples: Callable[[Evaluate], Sequence[Any]]


@torch.no_grad()
def held_out_loss(net: nn.Module, loss: Loss, batches: Iterable[Any], world: World, precision: str) -> dict[str, float]:
    """Each loss term over all held-out samples: sum of numerators / sum of weights, over batches and ranks."""
    numerators = dict.fromkeys(loss.coefficients, 0.0)
    weights = dict.fromkeys(loss.coefficients, 0.0)
    for batch in batches:
        for name, value in total_weights(loss, batch.micro, world).items():
            weights[name] += value
        for micro in batch.micro:
            with autocast(precision, world.device):
                sums = loss.sums(net, distributed.to_device(micro.batch, world.device))
            for name, value in sums.items():
                numerators[name] += 0.0 if micro.void else float(value)
    names = sorted(numerators)
    everywhere = world.sum(torch.tensor([numerators[name] for name in names], dtype=torch.float64)).tolist()
    terms = {name: value / weights[name] for name, value in zip(names, everywhere, strict=True) if weights[name] > 0}
    if not terms:
        raise PlaitError("the held-out samples have nothing to predict: every loss weight is 0; look at them with `plait data inspect`")
    return {
        "loss": sum(loss.coefficients[name] * value for name, value in terms.items()),
        **{f"loss/{name}": value for name, value in terms.items()},
    }


@torch.no_grad()
def run_bench(
    bench: Bench, model: nn.Module, samples: Sequence[Any], inputs: Any, batch: int, world: World, precision: str
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The bench's figures and all its rows in the samples' order; ranks take every size-th sample, none twice."""
    with autocast(precision, world.device):
        own = bench.predict(model, [samples[i] for i in range(world.rank, len(samples), world.size)], inputs, batch=batch)
    parts = world.gather(own)
    rows = [parts[i % world.size][i // world.size] for i in range(len(samples))]
    return bench.summarise(rows), rows


@contextlib.contextmanager
def judged(state: State) -> Iterator[nn.Module]:
    """The model in evaluation mode with its averaged weights, when there are any; training weights and mode come back exactly."""
    parameters = dict(state.model.named_parameters())
    if state.ema is not None:
        state.ema.swap(parameters)
    state.model.eval()
    try:
        yield state.model
    finally:
        state.model.train()
        if state.ema is not None:
            state.ema.swap(parameters)


@dataclass
class Evaluations:
    """The `evaluate:` list as a hook: each entry at its own interval and at the end of the stage."""

    entries: Sequence[Evaluate]
    held_out: HeldOut
    loss: Loss
    benches: Mapping[str, Bench]
    inputs: Any
    world: World
    precision: str
    stop: int
    record: Callable[[Row], None]

    def __call__(self, state: State, row: Row) -> None:
        """Run the entries that are due after this step and record one row with their figures."""
        due = [entry for entry in self.entries if self._due(entry, state)]
        if not due:
            return
        figures: dict[str, float] = {}
        with judged(state) as model:
            for entry in due:
                figures |= {f"eval/{label(entry.bench, name)}": value for name, value in self.measure(entry, model).items()}
        self.record({"step": state.step, "stage": state.stage, **figures})

    def _due(self, entry: Evaluate, state: State) -> bool:
        return state.step == self.stop or (entry.every_steps is not None and state.stage_step % entry.every_steps == 0)

    def measure(self, entry: Evaluate, model: nn.Module) -> dict[str, float]:
        """The figures of one entry."""
        if entry.bench == LOSS:
            return held_out_loss(model, self.loss, self.held_out.batches(entry), self.world, self.precision)
        bench = self.benches[entry.bench]
        return run_bench(bench, model, self.held_out.samples(entry), self.inputs, entry.batch, self.world, self.precision)[0]


def label(bench: str, figure: str) -> str:
    """The figure's name in metrics: `loss`, `loss/<term>`, `<bench>` for the figure that is named like its bench, else `<bench>/<figure>`."""
    return figure if figure.split("/")[0] == bench else f"{bench}/{figure}"


def check(entries: Sequence[Evaluate], benches: Mapping[str, Bench]) -> None:
    """Raise PlaitError for a bench that the family does not have, listing those it has."""
    for entry in entries:
        if entry.bench != LOSS and entry.bench not in benches:
            raise PlaitError(f"evaluate names bench {entry.bench!r}, which is unknown; known: {', '.join([LOSS, *sorted(benches)])}")
