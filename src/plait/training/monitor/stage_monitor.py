"""Watch a stage (part of a run): record where the time of its steps goes, and tell once what costs most.

`plait why` reads what is recorded. Seconds are those of the heartbeat, which knows at each moment what this rank does. What needs more
than a clock is measured in the steps whose rows are recorded, and only in those.
"""

import functools
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plait.assembly.data import TrainingData, open_validation
from plait.config.resolved import Resolved, StageView
from plait.data.loading.loader import StepBatch
from plait.engine import blocks, optim
from plait.engine.blocks import Compilations
from plait.engine.flops import Meter
from plait.engine.loop import Row
from plait.engine.loss import Loss
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.tracking import Tracker
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.training.monitor import causes, picture_texts
from plait.training.monitor.device_speed import DeviceSpeed, measure
from plait.training.monitor.gather_waits import GatherWaits
from plait.training.monitor.learning import LEARNING, Learning
from plait.training.monitor.look_budget import LookBudget
from plait.training.monitor.modules import ForwardWatch, Watch, modules_of
from plait.training.monitor.rules import Rules
from plait.training.monitor.unit_gradients import UnitGradients
from plait.training.monitor.window import PARTS, Spent, part_of, window_of

log = logging.getLogger(__name__)

_FIRST_LOOK, _TOLD = 50, 0.25
"""Steps of a stage after which it is looked for what costs most, and again after twice as many; and the share of a step that is told."""
_KEPT = 1000
"""Rows that the look reads at the most."""
_DIGITS = 7
_OF_RANKS = ("data", "start", "forward", "backward", "positions")


@dataclass(frozen=True)
class Watched:
    """What a stage's monitor looks at. `components`: names of all parameters by component; `data`: the training data sets."""

    resolved: Resolved
    view: StageView
    components: Mapping[str, Sequence[str]]
    data: TrainingData
    loss: Loss
    state: State
    ranks: Ranks
    heartbeat: Heartbeat
    meter: Meter
    compilations: Compilations | None
    tracker: Tracker


class StageMonitor:
    """Watches the steps of a stage: `begin` before each one, `figures` for the row of one that is recorded. All ranks do."""

    def __init__(self, watched: Watched) -> None:
        self.watched, self.state, self.ranks = watched, watched.state, watched.ranks
        self.sources = watched.data.names()
        self.forward = ForwardWatch(modules_of(self.state.model, watched.components), self.ranks.device)
        sharded = distributed.is_sharded(self.state.model)
        self.own_passes = GatherWaits(self.state.model, self.ranks.device) if sharded else None
        """Of a sharded model: what this rank computes of its forward passes, without waiting for the others."""
        self.learning: Learning | None = None
        """On rank 0, from the first step on."""
        self.units: UnitGradients | None = None
        """As `learning`."""
        self.speed: DeviceSpeed | None = None
        """As `learning`; None on a GPU."""
        self.unrelated: list[str] = []
        """Sentences on sources whose pictures tell nothing of their texts, which the next row has."""
        self.rows: deque[Row] = deque(maxlen=_KEPT)
        """What was recorded in this start, for the look while it runs."""
        self.look, self.told, self.begun = _FIRST_LOOK, False, False
        self.every = watched.view.config.track.every_steps
        self.budget, self.looking, self.rest_s = LookBudget(time.perf_counter), False, 0.0
        """Whether the step at hand is looked at, and the seconds that this monitor took beside its looks."""
        self._clear()

    def _clear(self) -> None:
        """Begin a new window, from this step to the next row."""
        self.step, self.before = self.state.step, dict(self.watched.heartbeat.spent_s)
        self.prepare: dict[str, list[float]] = {}
        self.rest_s, self.looked_s = 0.0, self.budget.look_s
        self.collate_s, self.positions, self.tokens = 0.0, 0, self.state.totals.get("tokens", 0.0)
        self.micro_batches: tuple[int, int] = (0, 0)
        self.compiled = self._compiled()

    def begin(self, batch: StepBatch) -> None:
        """Look at the batch of the step that begins; where a row of it will be recorded, watch its forward passes too."""
        if not self.begun:
            self.begun = True
            self.learning = self._learning() if self.ranks.first else None
            self.units = self._units() if self.ranks.first else None
            self.speed = self._speed() if self.ranks.first and self.ranks.device.type == "cpu" else None
            self._clear()  # what came before the first step is none of it
        began, looked = self.budget.clock(), self.budget.look_s
        positions = self.watched.loss.positions
        for micro in batch.micro:
            self.collate_s += micro.collate_s
            for source, seconds in micro.read_s:
                of_source = self.prepare.setdefault(self.sources[source], [0.0, 0.0])
                of_source[0] += seconds
                of_source[1] += 1
            if positions is not None and not micro.padding:
                self.positions += micro.batch[positions].numel()
        self.micro_batches = (len(batch.micro), max((len(micro.ids) for micro in batch.micro), default=0))
        step = self.state.stage_step + 1
        if step % self.every == 0:
            self.looking = self.budget.allows(step)
            self.forward.begin(self._begin_look() if self.looking else None)
            if self.own_passes is not None:
                self.own_passes.begin()
        self.rest_s += self.budget.clock() - began - (self.budget.look_s - looked)

    def _begin_look(self) -> Watch | None:
        """Look at how components learn in this step; return what is to be given their outputs. None on ranks that do not look."""
        if self.learning is None or self.units is None:
            return None
        self.budget.begin()
        self.budget.timed(self.learning.begin)
        self.budget.timed(self.units.begin, self.budget.timed)
        return functools.partial(self.budget.timed, self.learning.output)

    def keep(self) -> None:
        """Write what a start from the next checkpoint needs: the first weights of the stage. Called before each save."""
        if self.learning is not None:
            self.learning.keep()

    def figures(self, row: Row) -> dict[str, Any]:
        """Return what the row of the step just done gets: `spent`, and how components learn.

        The latter where the step was looked at. All ranks call it.
        """
        began, looked = self.budget.clock(), self.budget.look_s
        self.forward.end()
        if self.own_passes is not None:
            self.own_passes.end()
        now = self.watched.heartbeat.spent_s
        parts = dict.fromkeys(PARTS, 0.0)
        for doing, seconds in now.items():
            parts[part_of(doing)] += seconds - self.before.get(doing, 0.0)
        ranks = self._of_ranks(parts)
        positions = sum(ranks["positions"]) if ranks else self.positions
        tokens = self.state.totals.get("tokens", 0.0) - self.tokens
        spent: Spent = {
            "steps": self.state.step - self.step,
            "seconds": _rounded(parts),
            "forward": _rounded(self.forward.seconds()),
            "prepare": {name: [round(seconds, _DIGITS), samples] for name, (seconds, samples) in self.prepare.items()},
            "collate": round(self.collate_s, _DIGITS),
            "micro_batches": self.micro_batches[0],
            "micro_batch": self.micro_batches[1],
            "padding": round(1 - tokens / positions, 4) if positions and tokens else 0.0,
            **self._counted(),
            **(self.speed.figures() if self.speed is not None else {}),
            "device": self._device(),
            **{name: round(value - self.compiled[name], _DIGITS) for name, value in self._compiled().items()},
            **({"ranks": ranks} if ranks else {}),
            **_memory(self.ranks.device),
        }
        learned = self._learned() if self.looking else {}
        self.looking = False
        looked_s, rest_s = self.budget.look_s - self.looked_s, self.rest_s + self.budget.clock() - began - (self.budget.look_s - looked)
        spent["monitor"] = round(looked_s + rest_s, _DIGITS)
        self._clear()
        self._look({**row, "spent": spent})
        layout = {"padding": spent["padding"]} if positions and tokens else {}
        layout |= {"imbalance": round(_imbalance(ranks["positions"]), 4)} if ranks and positions else {}
        return {**({} if row.get("skipped") else learned), **layout, "spent": spent}

    def _learned(self) -> dict[str, Any]:
        """Return the figures of the look at this step; {} on ranks that do not look."""
        if self.learning is None or self.units is None:
            return {}
        learned = {**self.budget.timed(self.learning.figures), **self.budget.timed(self.units.figures)}
        self.budget.end()
        return learned

    def _learning(self) -> Learning:
        """Begin to watch how components learn, with warnings in the rows of the stage."""
        assert self.state.optimizer is not None and self.watched.tracker.path is not None
        view, trained = self.watched.view, optim.by_component(self.state.optimizer)
        ever = self.state.ever_trained
        frozen = [name for name, names in self.watched.components.items() if name not in trained and not ever.intersection(names)]
        rules = Rules(self.watched.resolved, view, [*trained], frozen, start=self.state.step - self.state.stage_step)

        def judge(row: Mapping[str, Any]) -> list[str]:
            began = self.budget.clock()
            warnings = [*(f"step {row['step']}: {line}" for line in self.unrelated), *rules(row)]
            self.unrelated = []
            self.rest_s += self.budget.clock() - began
            return warnings

        self.watched.tracker.attach(judge)  # which gives it the rows of before
        self.unrelated = self._unrelated() if self.state.stage_step == 0 and view.config.guard.blindness else []
        path = self.watched.tracker.path.parent / LEARNING / f"stage-{view.index}-{view.name}.safetensors"
        return Learning(trained, path, continues=self.state.stage_step > 0)

    def _unrelated(self) -> list[str]:
        """Compare pictures with texts. What fails is told: it never costs the training."""
        config = self.watched.view.config
        try:
            held_out = {f"the held-out {source.name}": source for source in open_validation(config)}
            return [*picture_texts.unrelated(dict(zip(self.sources, self.watched.data.sources, strict=True)), held_out, config.seed)]
        except TimeoutError as error:
            log.info(f"whether pictures belong to their texts is not compared (guard.blindness): {error}")
        except Exception as error:  # noqa: BLE001  of any source
            log.warning(f"whether pictures belong to their texts is not known (guard.blindness): {error or type(error).__name__}")
        return []

    def _units(self) -> UnitGradients:
        assert self.state.optimizer is not None
        return UnitGradients(self.state.model, self.state.optimizer)

    def _speed(self) -> DeviceSpeed:
        return measure(self.state.model, products=self.watched.view.config.train.precision == "fp32")

    def _of_ranks(self, parts: dict[str, float]) -> dict[str, list[float]]:
        """Return what each rank measured, {name: numbers in rank order}; {} of one rank alone."""
        ranks, known = self.ranks, {**parts, "positions": float(self.positions)}
        if ranks.size == 1:
            return {}
        if self.own_passes is not None:
            known["forward"] = self.own_passes.seconds() * (self.state.step - self.step)
        table = torch.zeros(ranks.size, len(_OF_RANKS), dtype=torch.float64)
        table[ranks.rank] = torch.tensor([known[name] for name in _OF_RANKS], dtype=torch.float64)
        columns = ranks.sum(table).T.tolist()
        return {name: [round(value, _DIGITS) for value in column] for name, column in zip(_OF_RANKS, columns, strict=True)}

    def _counted(self) -> dict[str, Any]:
        """Return the step's FLOPs, the share that are those of attention with a mask that is a tensor, and the forward passes' calls."""
        total, masked, calls = (sum(getattr(count, name) for count in self.watched.meter.taken) for name in ("total", "masked", "calls"))
        return {"flops": total, "masked": round(masked / total, 4) if total else 0.0, "calls": calls}

    def _compiled(self) -> dict[str, float]:
        """Return the graphs that this process has compiled so far, and the seconds that those of the stage took; {} if nothing is."""
        compilations = self.watched.compilations
        return {} if compilations is None else {"graphs": blocks.graphs(), "compile": compilations.clock.seconds}

    def _device(self) -> str:
        device = self.ranks.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def _look(self, row: Row) -> None:
        """Tell once a stage, on the screen, what costs most of a step, if that is much. Waiting for data is told by the screen itself."""
        if not self.ranks.first or self.told:
            return
        self.rows.append(row)
        if self.state.stage_step < self.look:
            return
        self.look *= 2
        found = causes_of([*self.rows], self.watched.view, self.watched.resolved)
        if found and found[0].share >= _TOLD and found[0].what != causes.DATA:
            self.told, cause = True, found[0]
            cure = f"; {cause.cure}" if cause.cure else ""
            log.info(f"step {self.state.step}: {cause.text} ({cause.share:.0%} of the step{cure}); `plait why RUN` tells more")


def causes_of(rows: Sequence[Row], view: StageView, resolved: Resolved) -> list[causes.Cause]:
    """Return what costs most in the `rows` of a stage, the costliest first; [] where they tell nothing yet."""
    window = window_of(rows)
    return causes.causes(window, view, resolved) if window is not None else []


def _imbalance(amounts: Sequence[float]) -> float:
    """Return by how much the largest of the ranks' amounts is above their mean, as a share of it."""
    return max(amounts) * len(amounts) / sum(amounts) - 1


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, _DIGITS) for name, value in seconds.items()}


def _memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that was allocated on a GPU, and how much it has, in 1e9 bytes; {} for a CPU."""
    if device.type != "cuda":
        return {}
    used, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return {"memory_gb": round(used / 1e9, 3), "memory_of_gb": round(total / 1e9, 3)}
