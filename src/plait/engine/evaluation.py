"""Held-out figures during and after training: the loss on held-out samples, and the family's benches on generated answers."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from plait.config.schema import Evaluate
from plait.engine.loop import StopChannel, total_weights
from plait.engine.loss import Loss
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.precision import autocast
from plait.engine.state import State
from plait.errors import BadSample, PlaitError

_PORTION_BATCHES = 4
LOSS = "loss"
"""The bench every family has: its own loss on held-out samples."""


class _Interrupted(Exception):
    """Asked to stop between two parts of an evaluation."""


Row = dict[str, Any]
"""What a bench says of one sample: JSON values, with its `id`; `bad` with a reason where the sample could not be used."""


class Predict(Protocol):
    """Predict a row per sample, in order."""

    def __call__(self, model: Any, samples: Sequence[Any], inputs: Any, *, batch: int, moment: str) -> list[Row]:
        """Return one row per sample.

        `batch`: samples at a time. `moment`: name of the step, such as `step-00000100`, for a bench that writes files as it predicts.
        """


@dataclass(frozen=True)
class Bench:
    """One bench of a family.

    `summarise` turns the rows of all samples into figures by name. `pictures`, for a bench that draws, returns pictures by name (uint8,
    H x W x 3) from the same rows.
    """

    predict: Predict
    summarise: Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]
    pictures: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] | None = None


Benches = Mapping[str, Bench]


class Samples(Protocol):
    """Samples that are read one at a time; `name` is what one is called that cannot be read."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int) -> Any: ...
    def name(self, place: int) -> str: ...


@dataclass(frozen=True)
class HeldOut:
    """Access to the held-out data of one `evaluate:` entry, the same samples every time and on any number of ranks."""

    batches: Callable[[Evaluate], Iterable[Any]]
    samples: Callable[[Evaluate], Samples]


@torch.no_grad()
def held_out_loss(net: nn.Module, loss: Loss, batches: Iterable[Any], ranks: Ranks, precision: str) -> dict[str, float]:
    """Each loss term over all held-out samples: sum of numerators / sum of weights, over batches and ranks."""
    numerators = dict.fromkeys(loss.coefficients, 0.0)
    weights = dict.fromkeys(loss.coefficients, 0.0)
    for batch in batches:
        found = total_weights(loss, batch.micro, ranks)
        weights = {name: value + found[name] for name, value in weights.items()}
        for micro in batch.micro:
            with autocast(precision, ranks.device):
                sums = loss.sums(net, distributed.to_device(micro.batch, ranks.device))
            for name, numerator in sums.items():
                numerators[name] += 0.0 if micro.padding else float(numerator)
    distributed.reshard(net)
    names = sorted(numerators)
    everywhere = ranks.sum(torch.tensor([numerators[name] for name in names], dtype=torch.float64)).tolist()
    terms = {name: value / weights[name] for name, value in zip(names, everywhere, strict=True) if weights[name] > 0}
    if not terms:
        raise PlaitError("the held-out samples have nothing to predict: every loss weight is 0; look at them with `plait data inspect`")
    return {
        "loss": sum(loss.coefficients[name] * value for name, value in terms.items()),
        **{f"loss/{name}": value for name, value in terms.items()},
    }


@torch.no_grad()
def run_bench(
    bench: Bench,
    model: nn.Module,
    samples: Samples,
    inputs: Any,
    batch: int,
    ranks: Ranks,
    precision: str,
    watched: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    *,
    moment: str,
    done: Sequence[dict[str, Any]] = (),
    keep: Callable[[Sequence[dict[str, Any]]], None] = lambda rows: None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The bench's figures and all its rows in the samples' order; ranks take every size-th sample, none twice, none dropped.

    Samples are taken in portions of some batches, through `watched`, which may end it between two. `done` are rows of the first samples
    from a call that was ended; `keep` is given each portion's rows. A sample that cannot be read has a row that says why.
    """
    rows = list(done[: len(samples)])
    portion = _PORTION_BATCHES * batch * ranks.size
    for start in watched(range(len(rows), len(samples), portion)):
        places = range(start, min(start + portion, len(samples)))
        with autocast(precision, ranks.device):
            own = _predicted(bench, model, samples, places[ranks.rank :: ranks.size], inputs, batch, moment)
        parts = ranks.gather(own)
        new = [parts[i % ranks.size][i // ranks.size] for i in range(len(places))]
        keep(new)
        rows += new
    return summary(bench, rows), rows


def summary(bench: Bench, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The bench's figures from all rows; `bad_samples` counts those that could not be read, which no bench sees, too."""
    unread = sum(bool(row.get("unread")) for row in rows)
    figures = bench.summarise([row for row in rows if not row.get("unread")])
    return figures | ({"bad_samples": figures.get("bad_samples", 0.0) + unread} if unread else {})


def _predicted(
    bench: Bench, model: nn.Module, samples: Samples, places: Sequence[int], inputs: Any, batch: int, moment: str
) -> list[dict[str, Any]]:
    """A row per place, in order."""
    found: list[Any] = []
    unread: dict[int, dict[str, Any]] = {}
    for place in places:
        try:
            found.append(samples[place])
        except BadSample as error:
            unread[place] = {"id": samples.name(place), "bad": str(error), "unread": True}
    predicted = iter(bench.predict(model, found, inputs, batch=batch, moment=moment) if found else [])
    return [unread[place] if place in unread else next(predicted) for place in places]


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


@dataclass(frozen=True)
class Evaluations:
    """The `evaluate:` list of a stage: each entry at its own interval and at the end of the stage."""

    entries: Sequence[Evaluate]
    held_out: HeldOut
    loss: Loss
    benches: Mapping[str, Bench]
    inputs: Any
    ranks: Ranks
    precision: str
    stop: StopChannel
    mark: Callable[[str], None]
    """Called before each part of an evaluation, so that a rank that hangs can be told from those that wait for it."""
    record: Callable[[Row], None]
    show: Callable[[int, Mapping[str, Any]], None]
    """Shows the pictures of a step, by name."""
    gathered: Callable[[], contextlib.AbstractContextManager[Any]]
    """Holds all weights whole on this rank while a bench runs: each rank answers its own samples, at its own pace."""

    def due(self, state: State) -> list[Evaluate]:
        """Return the entries whose interval ends at this step."""
        return [entry for entry in self.entries if entry.every_steps is not None and state.stage_step % entry.every_steps == 0]

    def run(self, state: State, due: Sequence[Evaluate]) -> dict[str, float] | None:
        """Measure the entries with the averaged weights, when there are any, and record one row.

        Returns None, with nothing recorded, where a stop was requested in between: the step is left to be evaluated after the restart.
        """
        figures: dict[str, float] = {}
        if not due:
            return figures
        try:
            with judged(state) as model:
                for entry in due:
                    figures |= {label(entry.bench, name): value for name, value in self.measure(entry, model, state.step).items()}
        except _Interrupted:
            return None
        if figures:
            self.record({"step": state.step, "stage": state.stage, **{f"eval/{name}": value for name, value in figures.items()}})
        return figures

    def _watched(self, parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            self.mark("next")
            if self.stop.agree(self.ranks.any(self.stop.requested())):
                raise _Interrupted
            yield part

    def measure(self, entry: Evaluate, model: nn.Module, step: int) -> dict[str, float]:
        """The figures of one entry; what it drew is shown."""
        if entry.bench == LOSS:
            return held_out_loss(model, self.loss, self._watched(self.held_out.batches(entry)), self.ranks, self.precision)
        bench, samples = self.benches[entry.bench], self.held_out.samples(entry)
        with self.gathered():
            figures, rows = run_bench(
                bench, model, samples, self.inputs, entry.batch, self.ranks, self.precision, self._watched, moment=moment_of(step)
            )
        if bench.pictures is not None and self.ranks.first:
            self.show(step, {label(entry.bench, name): picture for name, picture in bench.pictures(rows).items()})
        return figures


def moment_of(step: int) -> str:
    """Return the name of a step, as folders of checkpoints and of a bench's pictures have it."""
    return f"step-{step:08d}"


def label(bench: str, figure: str) -> str:
    """The figure's name in metrics: as it is when it starts with its bench's name (`loss/<term>`), else `<bench>/<figure>`."""
    return figure if figure.partition("/")[0] == bench else f"{bench}/{figure}"


def check(entries: Sequence[Evaluate], benches: Mapping[str, Bench]) -> None:
    """Raise PlaitError for a bench that the family does not have, listing those it has."""
    for entry in entries:
        if entry.bench != LOSS and entry.bench not in benches:
            raise PlaitError(f"evaluate names bench {entry.bench!r}, which is unknown; known: {', '.join([LOSS, *sorted(benches)])}")
