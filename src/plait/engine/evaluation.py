"""Evaluation during and after training: the loss on held-out samples, and the benches of a family (kind of model).

A bench is a metric: it predicts one row (a dict of results) per sample and turns all rows into figures (numbers by name). An entry is an
item of the configuration's `evaluate:` list: a bench, its data and its interval. Not here: which samples are held out
(`assembly/held_out.py`), and what a bench measures (each family's `evaluate.py`).
"""

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from plait.config.schema import Evaluate
from plait.engine.held_out_loss import NoUsableSample, held_out_loss, none_usable
from plait.engine.loop import StopChannel
from plait.engine.loss import Loss, StepBatch
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.every_rank import on_every_rank
from plait.engine.parallel.rank_failures import BenchFailed, attempt, raise_on_all, reason_of
from plait.engine.precision import autocast
from plait.engine.state import State
from plait.errors import BadSample, PlaitError, Stopped, sample_errors

log = logging.getLogger(__name__)
Part = TypeVar("Part")

PORTION_BATCHES = 4  # per rank, between two looks at whether to stop
_FEW = 8  # held-out samples: with fewer, a figure that chooses a checkpoint or ends a stage is warned about
FAILED = ("empty_answers", "unparsed_answers")  # counts of answers that are wrong as they are blank, or nothing can be read in them
_COUNTS = {"samples", "bad_samples", "pictures", *FAILED}
LOSS = "loss"
"""The bench that every family has: its loss on held-out samples."""


class _Interrupted(Exception):
    """A stop was requested between two parts of an evaluation."""


Row = dict[str, Any]
"""The result of a bench for one sample: JSON values, with its `id`; `bad` with a reason where the sample could not be used."""


class Predict(Protocol):
    """The type of `Bench.predict`: `predict(model, samples, inputs, *, batch, moment)` returns a row per sample, in order.

    It is called in evaluation mode without gradients. `inputs`: the family's object that encodes samples and collates the results to
    batches; `batch`: samples per forward; `moment`: name of the step, such as "step-00000100", for a bench that writes files. A row is a
    dict of JSON values with the sample's `id`; with `bad`, a reason, where the sample cannot be used.
    """

    def __call__(self, model: Any, samples: Sequence[Any], inputs: Any, *, batch: int, moment: str) -> list[Row]:
        """Return one row per sample, in order."""


@dataclass(frozen=True)
class Bench:
    """One bench (metric) of a family. `predict` returns a row (dict with `id`) per sample; `summarise` turns all rows into figures by name.

    `pictures(rows)`: for a bench that draws, pictures by name (uint8, H x W x 3). `needs(section)`: pretrained encoders that `predict`
    opens, by Hub name or folder; `section` is the configuration's `model:`. `means`: whether figures are means over rows, so that a
    bootstrap over rows gives them intervals; with `correct` in the rows they always are. `lower`: whether lower figures are better.
    `describes`: whether neither are. `independent`: whether a row depends on its own sample alone. `about(rows)`: further text for a
    report, by name. `finish(rows)`: called once, with all rows; adds what depends on all to each.
    """

    predict: Predict
    summarise: Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]
    pictures: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] | None = None
    needs: Callable[[Any], Sequence[str]] = lambda section: ()
    means: bool = False
    lower: bool = False
    describes: bool = False
    independent: bool = False
    about: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, str]] = lambda rows: {}
    finish: Callable[[Sequence[Row]], list[Row]] = lambda rows: [*rows]


CALLS = {
    "predict": "predict(model, samples, inputs, *, batch, moment)",
    "summarise": "summarise(rows)",
    "pictures": "pictures(rows)",
    "needs": "needs(section)",
    "about": "about(rows)",
    "finish": "finish(rows)",
}
"""How plait calls the function in each field of a Bench."""
Benches = Mapping[str, Bench]
"""A family's benches by name, as `plait eval --bench NAME` takes it."""


class Samples(Protocol):
    """A sequence of held-out samples, raw items of data, each of which is read from disk when it is indexed."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int) -> Any: ...
    def name(self, position: int) -> str:
        """Return a name for the sample at `position`, for messages about one that cannot be read."""


@dataclass(frozen=True)
class HeldOut:
    """Opens data of an `evaluate:` entry: `batches(entry)` is this rank's part, for the loss; `samples(entry)` all, for benches."""

    batches: Callable[[Evaluate], Iterable[StepBatch]]
    samples: Callable[[Evaluate], Samples]


@torch.no_grad()
def run_bench(
    bench: Bench,
    model: nn.Module,
    samples: Samples,
    *,
    inputs: Any,
    batch: int,
    ranks: Ranks,
    precision: str,
    moment: str,
    interruptible: Callable[[Iterable[int]], Iterable[int]] = iter,
    done: Sequence[Row] = (),
    keep: Callable[[Sequence[Row]], None] = lambda rows: None,
    partial: bool = False,
) -> tuple[dict[str, float], list[Row]]:
    """Run a bench on all samples; returns (its figures by name, its rows in the samples' order).

    Rank r takes every `ranks.size`-th sample from r on. `inputs`: the family's object that encodes and collates samples; `batch`: samples
    per forward; `precision`: a `train.precision`, such as "bf16"; `moment`: the step's name for files, such as "step-00000100".
    `interruptible` wraps the iteration over portions of some batches, and may raise between two; `keep` is called with the rows of each,
    from all ranks and on every rank. `done`: such rows of the first samples of all, the same on every rank, from an interrupted call.
    `partial`: the samples may be too few for figures, which are then {}. A sample that cannot be read has a row with the reason. Raises
    what the bench raises; with several ranks BenchFailed.
    """
    rows = list(done[: len(samples)])
    portion = PORTION_BATCHES * batch * ranks.size

    def predict(positions: Sequence[int]) -> list[Row]:
        readable, unread = _read(samples, positions)
        rows = list(bench.predict(model, readable, inputs, batch=batch, moment=moment)) if readable else []
        if len(rows) != len(readable):
            raise PlaitError(f"its predict returned {len(rows)} rows for {len(readable)} samples: it is to return one for each, in order")
        answers = iter(rows)
        return [unread[position] if position in unread else next(answers) for position in positions]

    for start in interruptible(range(len(rows), len(samples), portion)):
        positions = range(start, min(start + portion, len(samples)))
        with autocast(precision, ranks.device):
            by_rank = on_every_rank(ranks, functools.partial(predict, positions[ranks.rank :: ranks.size]))
        new = [by_rank[i % ranks.size][i // ranks.size] for i in range(len(positions))]
        keep(new)
        rows += new
    try:
        rows = bench.finish(rows)
        return summary(bench, rows), rows
    except Exception as error:
        if partial and not isinstance(error, NoUsableSample):
            return {}, rows
        if ranks.size > 1 and not isinstance(error, NoUsableSample):
            raise BenchFailed(reason_of(error)) from error
        raise


def summary(bench: Bench, rows: Sequence[Row]) -> dict[str, float]:
    """Compute a bench's figures from all rows; rows of samples that could not be read only count in the figure `bad_samples`.

    Raises NoUsableSample where no sample could be used: all rows have `bad`.
    """
    if not usable(rows):
        raise none_usable(Counter(str(row["bad"]) for row in rows))
    unread = sum(bool(row.get("unread")) for row in rows)
    figures = bench.summarise([row for row in rows if not row.get("unread")])
    return figures | ({"bad_samples": figures.get("bad_samples", 0.0) + unread} if unread else {})


def usable(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the samples that could be used, which are those without `bad`."""
    return [row for row in rows if "bad" not in row]


def _read(samples: Samples, positions: Sequence[int]) -> tuple[list[Any], dict[int, Row]]:
    """Read the samples at `positions`; returns those that can be read, and a row by position for each that cannot."""
    readable: list[Any] = []
    unread: dict[int, Row] = {}
    for position in positions:
        try:
            with sample_errors:
                readable.append(samples[position])
        except BadSample as error:
            unread[position] = {"id": error.sample or samples.name(position), "bad": str(error), "unread": True}
    return readable, unread


@contextlib.contextmanager
def evaluation_mode(state: State) -> Iterator[nn.Module]:
    """Put the model into evaluation mode with its averaged (EMA) weights, where there are any, while the block lasts; yields the model.

    Training weights and mode are restored exactly.
    """
    parameters = dict(state.model.named_parameters())
    if state.ema is not None:
        state.copied()
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
    """Runs the `evaluate:` list of a stage (part of a run). Each entry has its own interval; all run at the end of the stage.

    `inputs`: the family's object that encodes and collates samples. `precision`: a `train.precision`, such as "bf16".
    """

    entries: Sequence[Evaluate]
    held_out: HeldOut
    loss: Loss
    benches: Mapping[str, Bench]
    inputs: Any
    ranks: Ranks
    precision: str
    stop: StopChannel
    mark: Callable[[str], None]
    """Called with a name before each part of an evaluation, for the watchdog: shows which rank hangs and which only wait for it."""
    record: Callable[[Mapping[str, Any]], None]
    """Called with the metrics of each evaluation."""
    show: Callable[[int, Mapping[str, Any]], None]
    """Called with a step and its pictures by name."""
    gathered: Callable[[], contextlib.AbstractContextManager[None]]
    """Gathers all weights on this rank while a bench runs: each rank predicts its own samples, at its own pace."""
    failed: Callable[[str, Exception], None]
    """Called with the name of a bench that failed, and its error."""
    answered: Callable[[str, Sequence[Row]], Mapping[str, tuple[float, float]]]
    """Called with the name of a bench and its rows, on the first rank. Returns how sure its figures are: {figure: (low, high)}."""

    def due(self, state: State) -> list[Evaluate]:
        """Return the entries whose `every_steps` divides the stage's updates so far. At its end the caller adds the others itself."""
        return [entry for entry in self.entries if entry.every_steps is not None and state.stage_step % entry.every_steps == 0]

    def run(self, state: State, due: Sequence[Evaluate]) -> dict[str, float] | None:
        """Evaluate the entries `due` with the averaged weights, if any; returns and records figures, as {"loss": 2.1, "vqa/exact": 0.6}.

        Returns None, with nothing recorded, if a stop was requested meanwhile: the step is evaluated after the restart. A bench that fails
        is reported and has no figures; the others still run.
        """
        figures: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        if not due:
            return figures
        try:
            with evaluation_mode(state) as model:
                for entry in due:
                    try:
                        measured, rows = self.measure(entry, model, state.step)
                        figures |= {label(entry.bench, name): value for name, value in measured.items()}
                        if rows and self.ranks.first:
                            ends = self.answered(entry.title, rows)
                            intervals |= {label(entry.bench, name): pair for name, pair in ends.items()}
                    except (_Interrupted, Stopped):
                        raise
                    except Exception as error:
                        if self.ranks.size > 1 and not isinstance(error, PlaitError):
                            raise  # of one rank alone, while the others wait for it
                        self.failed(entry.title, error)
        except _Interrupted:
            return None
        if figures:
            row = {"step": state.step, "stage": state.stage, **{f"eval/{name}": value for name, value in figures.items()}}
            self.record(row | ({"intervals": intervals} if intervals else {}))
        return figures

    def rehearse(self, state: State, wanted: Sequence[str]) -> None:
        """Try the beginning of every entry before the first step, so that a bench that cannot run fails there. Nothing is recorded.

        Warns of an entry with fewer samples than it asks for. `wanted`: names of figures that settings such as `checkpoint.best` rely on.
        Raises PlaitError where data cannot be opened, no sample can be used, a bench cannot be run, or none gives such a figure.
        """
        known: set[str] = set()
        more = False  # figures may come of later samples only
        with evaluation_mode(state) as model:
            for entry in self.entries:
                try:
                    fewer = shortfall(entry, len(self.held_out.samples(entry)), chooses=bool(wanted))
                    if fewer is not None and self.ranks.first:
                        log.warning(fewer)
                    figures, whole = self._beginning(entry, model, state.step)
                except _Interrupted:
                    return
                except Exception as error:
                    if self.ranks.size > 1 and not isinstance(error, PlaitError):
                        raise  # another rank is gone: all hear of what fails here
                    raise PlaitError(f"bench {entry.title} cannot be run, and would fail during the run: {reason_of(error)}") from error
                known |= {label(entry.bench, name) for name in figures}
                more |= not whole
        for name in wanted:
            if name not in known and not (more and "/" in name):
                raise PlaitError(f"no bench of evaluate gives a figure {name!r}; they give {', '.join(sorted(known)) or 'none'}")

    def _beginning(self, entry: Evaluate, model: nn.Module, step: int) -> tuple[dict[str, float], bool]:
        """Measure the first samples of an entry, until one can be used; returns the figures, and whether they are of all samples."""
        portion = PORTION_BATCHES * entry.batch * self.ranks.size
        while True:
            short = entry.model_copy(update={"samples": min(portion, entry.samples or portion)})
            whole = len(self.held_out.samples(entry)) <= portion
            try:
                return self.measure(short, model, step, rehearsal=not whole)[0], whole or entry.title == LOSS
            except NoUsableSample:
                if whole:
                    raise
            portion *= 2

    def _interruptible(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield the parts of an evaluation. Raises on all ranks, between two of them, what happened on any.

        That is _Interrupted where a stop was requested, and the error of data that cannot be read.
        """
        iterator = iter(parts)
        while True:
            part, failure = attempt(lambda: next(iterator, None), None)  # a rank whose data the stop has ended early is at its end first
            if part is not None or failure is not None:
                self.mark("next")
            flags = torch.tensor([float(self.stop.requested()), float(failure is not None)])
            requested, failed = self.ranks.sum(flags).tolist()
            if self.stop.agree(requested > 0):
                raise _Interrupted
            raise_on_all(self.ranks, failure, on_any=failed > 0)
            if part is None:
                return
            yield part

    def measure(
        self, entry: Evaluate, model: nn.Module, step: int, *, rehearsal: bool | None = None
    ) -> tuple[dict[str, float], Sequence[Row]]:
        """Evaluate one entry; returns its figures by name, and the rows that they were computed from (none for the loss).

        `rehearsal`: None for a real evaluation, whose pictures are shown; of a trial, whether samples may be too few for figures (then {}).
        Raises what the bench raises, BenchFailed for a bench that failed on another rank, and PlaitError if nothing can be measured.
        """
        if entry.title == LOSS:
            return held_out_loss(model, self.loss, self._interruptible(self.held_out.batches(entry)), self.ranks, self.precision), ()
        bench = self.benches[entry.title]
        with self.gathered():
            figures, rows = run_bench(
                bench,
                model,
                self.held_out.samples(entry),
                inputs=self.inputs,
                batch=entry.batch,
                ranks=self.ranks,
                precision=self.precision,
                moment=moment_of(step) if rehearsal is None else "rehearsal",
                interruptible=self._interruptible,
                partial=bool(rehearsal),
            )
        if bench.pictures is not None and rehearsal is None:
            draw = bench.pictures
            pictures, *_ = on_every_rank(self.ranks, lambda: draw(usable(rows)) if self.ranks.first else {})
            if self.ranks.first:
                self.show(step, {label(entry.bench, name): picture for name, picture in pictures.items()})
        return figures, rows


def shortfall(entry: Evaluate, count: int, *, chooses: bool = False) -> str | None:
    """Return a warning if an entry of `evaluate:` asks for more samples than there are, `count`; or if a few `chooses` checkpoints."""
    if entry.samples is not None and count < entry.samples:
        return f"bench {entry.bench}: {entry.samples:,} held-out samples are asked for (samples), and there are {count:,}: all are taken"
    if chooses and count < _FEW:
        return f"bench {entry.bench}: {count:,} held-out samples say little of which checkpoint is best, or of when to stop: hold out more"
    return None


def moment_of(step: int) -> str:
    """Return the name of a step in paths of checkpoints and of files that benches write: 100 gives step-00000100."""
    return f"step-{step:08d}"


def is_count(figure: str) -> bool:
    """Return whether the figure of this name is a count, such as "samples" or "grid/pictures/64x64", and no result."""
    return bool(_COUNTS & set(figure.split("/")))


def label(bench: str, figure: str) -> str:
    """Return a figure's name in metrics, its bench first: ("vqa", "exact") -> "vqa/exact", but ("loss", "loss/text") -> "loss/text"."""
    return figure if figure.partition("/")[0] == bench else f"{bench}/{figure}"


def check(entries: Sequence[Evaluate], benches: Mapping[str, Bench]) -> None:
    """Raise PlaitError, before training, for an `evaluate:` entry whose bench is not among `benches`, listing those."""
    for entry in entries:
        if entry.bench != LOSS and entry.bench not in benches:
            raise PlaitError(f"evaluate names bench {entry.bench!r}, which is unknown; known: {', '.join([LOSS, *sorted(benches)])}")
