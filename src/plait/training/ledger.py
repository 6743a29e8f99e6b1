"""The ledger: measure at each stage's end, on the same few held-out samples, what it gained and what it forgot. A stage is a part of a run.

A boundary is the moment between two stages. There the benches (evaluations) of the stages up to the next one are measured, and the loss of
texts without pictures; the rows (one per sample) are kept in the run, and compared with those of the boundary before.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait import files
from plait.assembly import sample_losses
from plait.assembly.held_out import ChosenSamples, HeldOutData, benches
from plait.assembly.model import ModelBundle
from plait.config.resolved import StageView, forgetting_limit
from plait.config.schema import Evaluate
from plait.engine.checkpoints import checkpoint
from plait.engine.evaluation import LOSS, Bench, Row, evaluation_mode, moment_of, run_bench
from plait.engine.held_out_loss import NoUsableSample
from plait.engine.loss import Batch
from plait.engine.parallel import distributed
from plait.engine.parallel.every_rank import on_every_rank
from plait.engine.precision import autocast
from plait.engine.state import State
from plait.errors import BadSample, PlaitError, Stopped, sample_errors
from plait.families import registry
from plait.training.changes import LINEAGE
from plait.training.figures import forgetting
from plait.training.figures.forgetting import BASE, RUN_START, START, TEXT
from plait.training.run_context import RunContext
from plait.training.stage_evaluation import keep_failure
from plait.training.stage_plan import StagePlan

log = logging.getLogger(__name__)

SAMPLES = 64
"""Held-out samples of each bench, the first of those that the evaluation draws."""
_FEWEST, _READ_FOR_ONE = 16, 4
"""Texts without a picture of their own, of the samples that are read for them, below which pictures are taken from others."""


class _Interrupted(Exception):
    """A stop was requested while the boundary was measured."""


@dataclass(frozen=True)
class Probe:
    """A bench of the ledger: its `name` there, the configuration of the stage it comes from, and what it is measured on."""

    name: str
    view: StageView
    bench: Bench
    entry: Evaluate


class _Texts(list[Any]):
    """Samples without pictures, by position."""

    def name(self, position: int) -> str:
        """Return the name of the sample at `position`."""
        return str(self[position]["id"])


class Ledger:
    """Measures the boundaries of the stage of `plan`, writes them into the run, and warns of what the stage forgot."""

    def __init__(self, plan: StagePlan, bundle: ModelBundle, state: State, context: RunContext) -> None:
        self.plan, self.bundle, self.state, self.context = plan, bundle, state, context
        self.views = context.resolved.stages
        self.held_out = {view.index: HeldOutData(view.config) for view in self.views}
        self.filler: Batch | None = None
        """A batch that this rank passes through a sharded model while others compute a loss of theirs."""

    def measure_start(self) -> None:
        """Measure before the stage's first step what its end will be compared with, unless the stage before did.

        This is a part of setting the stage up, to which the watchdog gives longer.
        """
        index = self.plan.view.index - 1
        boundary = self._known(index)
        if index == 0 and self.context.resumed_from is None:
            boundary = None  # nothing was saved since: it may be of other settings
        probes = [probe for probe in self._probes(index + 1) if boundary is None or probe.name not in boundary["benches"]]
        if probes and (measured := self._measured(probes)) is not None:
            benches_there = (boundary["benches"] if boundary else {}) | measured
            self._write(index, benches_there, boundary["entries"] if boundary else [], boundary["warnings"] if boundary else [])

    def measure_end(self) -> bool:
        """Measure after the stage's last step, compare with its start, write both down and warn. Returns False if a stop interrupted it."""
        index, stage = self.plan.view.index, self.plan.view.name
        self.context.heartbeat.phase("evaluate", self.state.step)
        probes = {probe.name: probe for probe in self._probes(index + 1)}
        measured = self._measured(list(probes.values()))
        if measured is None:
            return False
        before, start = self._known(index - 1), self._known(0)
        entries: list[forgetting.Entry] = []
        base, against_base = self._base(start)
        for name, found in measured.items() if self.context.ranks.first else ():
            then = before["benches"].get(name) if before is not None else None
            for rows, against in ((then and then["rows"], START), (base if name == TEXT else None, against_base)):
                if rows is not None:
                    self.context.heartbeat.part("next")
                    try:
                        compared = forgetting.entries(stage, name, probes[name].bench, rows, found["rows"], against=against, on=found["on"])
                        entries += compared[:1] if name == TEXT else compared
                    except Exception as error:  # noqa: BLE001  what a bench makes of its rows
                        self._failed(f"{name} of the ledger, against {against},", error)
        self._tell(index, measured, entries)
        return True

    def _base(self, start: Mapping[str, Any] | None) -> tuple[list[Row] | None, str]:
        """Return the rows of the texts before anything trained, and what they are of: this run's start, or that of the run it came from.

        None for the rows where they are not known, or are those that the first stage is compared with anyway.
        """
        if start is None:
            return None, BASE
        own = start["benches"][TEXT]["rows"] if TEXT in start["benches"] and self.plan.view.index > 1 else None
        return (start["base"], BASE) if start.get("base") else (own, BASE if self.plan.config.from_ is None else RUN_START)

    def _inherited(self) -> list[Row] | None:
        """Return the rows of the texts before the run trained that this one took its weights from; None where they are not known."""
        lineage = forgetting.read_object(self.context.run / LINEAGE)
        if lineage is None or lineage.get("kind") != "from":
            return None
        before = forgetting.read(forgetting.path_of(checkpoint.run_of(Path(lineage["folder"])), 0, ""))
        rows: list[Row] | None = None if before is None else before.get("base") or before["benches"].get(TEXT, {}).get("rows")
        return rows

    def _tell(self, index: int, measured: dict[str, Any], entries: Sequence[forgetting.Entry]) -> None:
        """Write the boundary after stage `index`; record and show what its first figures say was forgotten."""
        limit = forgetting_limit(self.plan.config)
        first = {(entry.bench, entry.against): entry for entry in reversed(entries)}.values()
        once = {(entry.bench, entry.before): entry for entry in first}  # the first stage's start is the run's
        warnings = [line for entry in reversed(once.values()) if (line := forgetting.warning(entry, limit))]
        self._write(index, measured, [entry.plain() for entry in entries], warnings)
        if warnings and self.context.ranks.first:
            self.context.tracker.row({"step": self.state.step, "stage": self.state.stage, "warnings": warnings})
            for line in warnings:
                log.warning(line)

    def _known(self, index: int) -> dict[str, Any] | None:
        """Return the boundary after stage `index` as it was written at this stage's first step, or the run's; the same on all ranks."""

        def stored() -> dict[str, Any] | None:
            return forgetting.read(self._path(index)) if self.context.ranks.first else None

        boundary = on_every_rank(self.context.ranks, stored)[0]
        at = self.state.stage_start if index == self.plan.view.index - 1 else 0
        return boundary if boundary is not None and boundary.get("step") == at else None

    def _path(self, index: int) -> Path:
        return forgetting.path_of(self.context.run, index, self.views[index - 1].name if index else "")

    def _write(self, index: int, measured: dict[str, Any], entries: Sequence[dict[str, Any]], warnings: Sequence[str]) -> None:
        """Write the boundary after stage `index`, whole or not at all."""
        if self.context.ranks.first:
            boundary = {"stage": index, "step": self.state.step, "entries": entries, "warnings": warnings, "benches": measured}
            boundary |= {"base": self._inherited()} if index == 0 else {}
            files.write_whole(self._path(index), json.dumps(boundary, ensure_ascii=False) + "\n")

    def _probes(self, until: int) -> list[Probe]:
        """Return the benches of the stages up to number `until`, each once for the same data, and the texts."""
        probes: dict[str, Probe] = {}
        names: list[str] = []
        for view in self.views[:until]:
            config = view.config
            none = not any(one.config.evaluate for one in self.views)
            entries = config.evaluate or ([Evaluate(bench=LOSS)] if none and config.data.holds_out else [])
            for entry in entries:
                count = min(SAMPLES, entry.samples or SAMPLES)
                plain = entry.model_copy(update={"samples": count, "every_steps": None, "ablate": None})
                own = entry.data or ":" in plain.bench
                held_out = (config.data.validation, config.data.train if config.data.shares else ())
                key = repr((plain.bench, count, entry.data if own else held_out))
                known = sample_losses.bench(self.plan.loss) if plain.bench == LOSS else benches(config, [plain])[plain.bench]
                if key in probes or known.pictures is not None or known.describes:
                    continue
                name = f"{plain.bench} of {view.name}" if plain.bench in names else plain.bench
                names.append(plain.bench)
                probes[key] = Probe(name, view, known, plain)
        held = next((view for view in self.views if view.config.data.holds_out), None)
        if held is not None and "language" in self.plan.components:
            probes[TEXT] = Probe(TEXT, held, sample_losses.bench(self.plan.loss), Evaluate(bench=LOSS, samples=SAMPLES, batch=1))
        return list(probes.values())

    def _measured(self, probes: Sequence[Probe]) -> dict[str, Any] | None:
        """Return {name: {"on": what it is measured on, "rows": a row per sample}}; None if the run is to stop. What fails is told."""
        context = self.context
        measured: dict[str, Any] = {}
        try:
            with evaluation_mode(self.state) as model:
                for probe in probes:
                    try:
                        measured[probe.name] = self._of(probe, model)
                    except (_Interrupted, Stopped):
                        raise
                    except Exception as error:
                        if context.ranks.size > 1 and not isinstance(error, PlaitError):
                            raise  # of one rank alone, while the others wait for it
                        self._failed(f"{probe.name} of the ledger", error)
        except _Interrupted:
            return None
        finally:
            distributed.reshard(self.state.model)
        return measured

    def _failed(self, bench: str, error: Exception) -> None:
        """Tell of a bench that failed, and keep it with its traceback."""
        line = keep_failure(self.context, self.plan, self.state.step, bench, error)
        if self.context.ranks.first:
            log.warning(f"{line}; the run goes on, and what it gained or forgot there is not known (guard.forgetting)")

    def _of(self, probe: Probe, model: Any) -> dict[str, Any]:
        """Measure one bench; returns what it is measured on, and its rows. Raises _Interrupted if the run is to stop."""
        samples: Any = ChosenSamples(*self.held_out[probe.view.index].of(probe.entry))
        on = "held-out samples"
        if probe.name == TEXT:
            samples, on = self._texts(probe)
        inputs = self.bundle.inputs(probe.view.config, train=False)
        if probe.entry.bench == LOSS:
            return {"on": on, "rows": self._losses(model, samples, inputs)}
        with self.bundle.sharding.gathered() if self.bundle.sharding is not None else contextlib.nullcontext():
            _, rows = run_bench(
                probe.bench,
                model,
                samples,
                inputs=inputs,
                batch=probe.entry.batch,
                ranks=self.context.ranks,
                precision=self.plan.config.train.precision,
                moment=moment_of(self.state.step),
                interruptible=self._interruptible,
            )
        try:
            return {"on": on, "rows": json.loads(json.dumps(rows))}
        except (TypeError, ValueError) as error:
            raise PlaitError(f"its rows are not JSON values: {error}") from error

    def _interruptible(self, parts: Iterable[int]) -> Iterator[int]:
        """Yield the parts of a bench. Raises _Interrupted on all ranks if any was asked to stop."""
        for part in parts:
            self._look_for_stop(self.context.ranks.any(self.context.signals.requested()))
            yield part

    def _look_for_stop(self, requested: bool) -> None:
        self.context.heartbeat.part("next")
        if self.context.signals.agree(requested):
            raise _Interrupted

    def _texts(self, probe: Probe) -> tuple[_Texts, str]:
        """Return the held-out rows without pictures, or where they are few the samples with theirs taken away; and what they are."""
        entry = probe.entry.model_copy(update={"samples": SAMPLES * _READ_FOR_ONE})
        drawn = ChosenSamples(*self.held_out[probe.view.index].of(entry))
        picture = registry.ablations(self.plan.config.family).get("image")
        alone, taken = _Texts(), _Texts()
        for position in range(len(drawn)):
            try:
                with sample_errors:
                    sample = drawn[position]
                    has_none = picture is None or picture.content(sample) is None
            except BadSample:
                continue
            if has_none:
                alone.append(sample)
            elif picture is not None and len(taken) < SAMPLES:
                taken.append(picture.off(sample))
            if len(alone) == SAMPLES:
                break
        if len(alone) >= _FEWEST or not taken:
            return alone, "held-out rows of text alone"
        return taken, "held-out samples, their pictures taken away"

    def _losses(self, model: Any, samples: Any, inputs: Any) -> list[Row]:
        """Return the rows of the loss, each sample by itself, so that they are the same on any number of ranks.

        All ranks make as many forward passes, since those of a sharded model are made together.
        """
        ranks, rows = self.context.ranks, list[Row]()
        self.filler = None
        for first in range(0, len(samples), ranks.size):
            of_ranks = on_every_rank(ranks, functools.partial(self._loss, model, samples, inputs, first + ranks.rank))
            rows += [row for row, _ in of_ranks if row is not None]
            self._look_for_stop(any(requested for _, requested in of_ranks))
        if not any("bad" not in row for row in rows):
            raise NoUsableSample(f"none of {len(rows)} held-out samples can be used" + (f": {rows[0]['bad']}" if rows else ""))
        return rows

    def _loss(self, model: Any, samples: Any, inputs: Any, position: int) -> tuple[Row | None, bool]:
        """Return the row of the loss of the sample at `position`, None beyond the last; and whether this rank was asked to stop."""
        row, batch = None, None
        if position < len(samples):
            row, batch = _encoded(samples, position, inputs)
        if batch is None and distributed.is_sharded(model):
            others = (_encoded(samples, other, inputs)[1] for other in range(len(samples)))
            self.filler = self.filler or next(filter(None, others), None)
            if self.filler is None:
                raise NoUsableSample(f"none of {len(samples)} held-out samples can be used: {row and row['bad']}")
        shown = self.filler if batch is None else batch
        if shown is not None:
            with autocast(self.plan.config.train.precision, self.context.ranks.device):
                computed = sample_losses.row(self.plan.loss, model, shown)
            row = {"id": samples.name(position), **computed} if batch is not None else row
        return row, self.context.signals.requested()


def _encoded(samples: Any, position: int, inputs: Any) -> tuple[Row | None, Batch | None]:
    """Return (None, the batch of the sample at `position`), or (a row that says why it cannot be used, None)."""
    try:
        with sample_errors:
            return None, sample_losses.encoded(samples[position], inputs)
    except BadSample as error:
        return {"id": samples.name(position), "bad": str(error)}, None
