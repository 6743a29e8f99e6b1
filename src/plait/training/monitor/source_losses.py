"""Measure in a stage (part of a run) the loss of a few fixed samples of each source and task.

A source is a training data set. The same samples at the stage's start and some later steps, each by itself, with the same random
numbers: the losses of steps do not tell sources apart, since each batch is mixed alike. A task is the text `task` among a sample's fields.
"""

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from plait.assembly import sample_losses
from plait.assembly.data import TrainingData
from plait.assembly.held_out import choose
from plait.assembly.model import ModelBundle
from plait.data.sources.contract import read
from plait.engine.loss import Batch, has_targets
from plait.engine.parallel.every_rank import on_every_rank
from plait.engine.source_shares import PREFIX as DRAWN
from plait.engine.state import State
from plait.errors import BadSample, sample_errors
from plait.training.monitor import answer_rule, source_rule, stage_look
from plait.training.monitor.stage_look import Context, StageLook

log = logging.getLogger(__name__)

FIRST_STEPS = 50
"""Steps of a stage before which no source is judged."""
_MOST = 16
"""Samples of a group; source_rule.FEWEST is the least."""
_SHARE = 0.01
"""Share of the stage's forward and backward passes so far that all looks together may cost; a backward pass costs two forward passes."""
_MOST_SOURCES, _MOST_TASKS = 32, 8
_LOOK = "Look at its samples (plait data inspect)"
_DRAWN = 64
"""Samples of a source that must have been trained on before it is judged."""

Place = tuple[int, int]
"""A sample: the number of its source, and its index there."""


class Plan(stage_look.Plan, Protocol):
    """What is read of a stage's plan."""

    @property
    def data(self) -> TrainingData:
        """Return the stage's training data."""

    @property
    def steps(self) -> int:
        """Return how many steps the stage has."""


class SourceLosses(StageLook):
    """Looks at a stage's start, and at steps each twice as far; warns once of each source that does not learn."""

    plan: Plan
    name = "source losses"
    unknown = "the losses of its samples are not known (track.monitor)"
    unusable = "can be used"
    key = source_rule.SAMPLES

    def __init__(
        self, plan: Plan, bundle: ModelBundle, state: State, context: Context, keep_failure: Callable[[int, str, Exception], str]
    ) -> None:
        """Make one. `keep_failure(step, what, error)`: keeps why a look failed, and returns it in one line."""
        super().__init__(plan, bundle, state, context, keep_failure)
        self.names = _unlike([safe(name) for name in plan.data.names()])
        self.nats: dict[Place, float] = {}
        """Of the answers of each sample, at the newest look."""
        self.groups: dict[str, list[Place]] | None = None
        """The samples of each group, the same on all ranks; {}: there is nothing to compare; None: not chosen yet."""

    def _first(self, samples: int) -> int:
        """Return the step from which two looks at so many samples are paid for."""
        return max(FIRST_STEPS, math.ceil(2 * samples / (3 * _SHARE * self.plan.config.train.global_batch)))

    def after_failure(self) -> None:
        """Look no more in this stage."""
        self.groups = {}

    def is_time(self) -> bool:
        """Return whether to look at this step of the stage. It is 0, or the first that is paid for, or two, four, ... times that."""
        if self.groups is None:
            least = self._first(source_rule.FEWEST * max(1, len(self.names)))
            return self.plan.steps >= least and (self.state.stage_step == 0 or self.state.stage_step >= FIRST_STEPS)
        return bool(self.groups) and self._is_time()

    def _is_time(self) -> bool:
        step, first = self.state.stage_step, self._first(len(self._places()))
        times, rest = divmod(step, first)
        return step == 0 or (rest == 0 and times & (times - 1) == 0)

    def _places(self) -> list[Place]:
        return sorted({place for places in (self.groups or {}).values() for place in places})

    def measured(self) -> dict[str, Any] | None:
        """Return the figures of a look, None where there is nothing to compare, it is not time, or a stop was requested."""
        known = self.known()
        if self.groups is None:
            self.groups = on_every_rank(self.context.ranks, self._chosen)[0] if known or not self.state.stage_step else {}
            if self._first(len(self._places())) > self.plan.steps:
                self.groups = {}
        if not self.groups or not self._is_time() or any(row["step"] == self.state.step for row in known):
            return None
        losses = self._losses(self._places())
        if losses is None:
            return None
        of_groups = {group: [losses.get(place) for place in places] for group, places in self.groups.items()}
        figures = {source_rule.PREFIX + group: source_rule.mean(values) for group, values in of_groups.items()}
        nats = {group: [self.nats.get(place) for place in places] for group, places in self.groups.items()}
        known_figures = {name: value for name, value in figures.items() if value is not None}
        return {**known_figures, source_rule.SAMPLES: of_groups, source_rule.NATS: nats}

    def _chosen(self) -> dict[str, list[Place]]:
        """Choose the samples of each source and task, on rank 0; {} where there is but one of both together."""
        if not self.context.ranks.first:
            return {}
        count = self._count(len(self.names))
        groups: dict[str, list[Place]] = {}
        left_out = [name for name, source in zip(self.names, self.plan.data.sources, strict=True) if source.may_wait]
        for number, (name, source) in enumerate(zip(self.names, self.plan.data.sources, strict=True)):
            if source.may_wait or number >= _MOST_SOURCES:
                continue
            tasks = self._read(number, count)
            if len(tasks) > 1:
                tasks = self._read(number, 2 * count * min(len(tasks), _MOST_TASKS))
            large = {task: places[:count] for task, places in tasks.items() if len(places) >= source_rule.FEWEST}
            all_of = [*chain(*large.values())] if len(large) > 1 else [*chain(*tasks.values())][:count]
            if len(all_of) < source_rule.FEWEST:
                left_out.append(name)
                continue
            groups[name] = all_of
            groups |= {f"{name}/{safe(task)}": places for task, places in large.items() if len(large) > 1}
        left_out += self.names[_MOST_SOURCES:]
        if len(groups) < 2:
            return {}
        if left_out:
            log.info(f"the losses of {', '.join(left_out)} are not looked at: too few usable samples, read while waiting, or too many")
        return self._paid_for(groups)

    def _count(self, groups: int) -> int:
        """Return how many samples of each of so many groups are paid for from the first step on that is judged, within the limits."""
        budget = 3 * _SHARE * FIRST_STEPS * self.plan.config.train.global_batch / (2 * groups)
        return max(source_rule.FEWEST, min(_MOST, int(budget)))

    def _paid_for(self, groups: Mapping[str, list[Place]]) -> dict[str, list[Place]]:
        """Return the groups with fewer samples where many tasks make looks dear; of a stage too short even so, the sources alone."""
        alone = {name: places for name, places in groups.items() if name in self.names}
        of_tasks = {name: [task for task in groups if task.startswith(f"{name}/")] for name in alone}
        count = self._count(sum(len(tasks) or 1 for tasks in of_tasks.values()))
        fewer = {name: places[:count] for name, places in groups.items()}
        fewer |= {name: [*chain(*(fewer[task] for task in tasks))] for name, tasks in of_tasks.items() if tasks}
        if self._first(sum(len(fewer[name]) for name in alone)) <= self.plan.steps or len(alone) < 2 or len(alone) == len(groups):
            return fewer
        log.info(f"the losses of tasks are not looked at, those of sources are: {self.plan.steps:,} steps are too few to pay for them")
        fewest = source_rule.FEWEST
        return {name: fewer[name][:: max(1, len(fewer[name]) // fewest)][:fewest] for name in alone}

    def _read(self, number: int, count: int) -> dict[str, list[Place]]:
        """Read up to `count` samples of a source, and return those that can be read by their task, "" for none."""
        source, tasks = self.plan.data.sources[number], dict[str, list[Place]]()
        for _, index, _ in choose([len(source)], count, self.plan.config.seed):
            try:
                with sample_errors:
                    task = read(source, index)["fields"].get("task")
            except BadSample:
                continue  # told by the quarantine when its turn comes in training
            tasks.setdefault(task if isinstance(task, str) else "", []).append((number, index))
        return tasks

    def _losses(self, places: Sequence[Place]) -> dict[Place, float] | None:
        """Return the loss of each sample that can be used, by itself; None if the run is to stop."""
        loss, model, sources = self.plan.loss, self.state.model, self.plan.data.sources
        bench = sample_losses.bench(loss)

        def encode(inputs: Any, place: Place) -> tuple[Place, Batch]:
            number, index = place
            return place, sample_losses.encoded(read(sources[number], index), inputs)

        def forward(encoded: tuple[Place, Batch]) -> tuple[Place, float, float] | None:
            place, batch = encoded
            row = sample_losses.row(loss, model, batch)
            value = bench.summarise([row])["loss"] if has_targets(loss, row["weights"]) else math.nan
            nats = sum(loss.coefficients[term] * total for term, total in row["sums"].items() if term in loss.coefficients)
            return (place, value, nats) if math.isfinite(value) else None

        losses = self.forward_passes(places, encode, forward)
        if losses is None:
            return None
        self.nats = {place: nats for place, _, nats in losses}
        return {place: value for place, value, _ in losses}

    def tell(self, row: dict[str, Any], known: Sequence[dict[str, Any]]) -> None:
        """Warn of each group that does not learn and was not told of in this stage. The warnings are in the row too."""
        if not known:
            return
        told = [line for earlier in known for line in earlier.get("warnings", ())]
        samples = known[0][source_rule.SAMPLES], row[source_rule.SAMPLES]
        first, now = ({group: groups[group] for group in _leaves(groups) if group in _leaves(samples[0])} for groups in samples)
        lines = []
        for group, change, usual in source_rule.stuck(source_rule.falls(first, now)):
            if self._trained_on(group) and not any(f"source {group}: its loss" in line for line in told):
                sentence = source_rule.sentence(group, change, usual, self.state.stage_step)
                lines.append(f"step {row['step']}: {sentence} {_LOOK}; {self._advice(group)}")
        for group, found in self._unlearned(row, known):
            if self._trained_on(group) and not any(f"source {group}: " in line for line in (*told, *lines)):
                sentence = answer_rule.sentence(group, found, self.state.stage_step)
                lines.append(f"step {row['step']}: {sentence} {_LOOK}; {self._advice(group)}")
        for line in lines:
            log.warning(line)
        row |= {"warnings": lines} if lines else {}

    def _unlearned(self, row: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> list[tuple[str, answer_rule.Unlearned]]:
        """Return the groups that know no more than how often their answers come; [] before the second look after the stage's start."""
        if len(known) < 2 or source_rule.NATS not in known[-1]:
            return []
        now = {group: row[source_rule.NATS][group] for group in _leaves(row[source_rule.NATS])}
        answers = {group: [self._answer(place) for place in (self.groups or {}).get(group, ())] for group in now}
        return list(answer_rule.unlearned(known[-1][source_rule.NATS], now, answers))

    def _answer(self, place: Place) -> str | None:
        number, index = place
        try:
            with sample_errors:
                return answer_rule.answer_of(read(self.plan.data.sources[number], index))
        except BadSample:
            return None

    def _number(self, group: str) -> int:
        return self.names.index(group.partition("/")[0])

    def _trained_on(self, group: str) -> bool:
        """Return whether enough samples of the group's source were drawn in this stage; alone, a source has all."""
        name = self.plan.data.names()[self._number(group)]
        return len(self.names) == 1 or self.state.totals.get(f"{DRAWN}{name}/samples", 0.0) >= _DRAWN

    def _advice(self, group: str) -> str:
        """Return which settings take less of the source."""
        data = self.plan.config.data
        if data.mixture is not None:
            return "data.without leaves it out of the mixture"
        place = f"data.train.{self._number(group)}" if len(data.train) == len(self.names) else "its entry in data.train:"
        return f"{place}.weight and .limit take less of it"


def _unlike(names: Sequence[str]) -> list[str]:
    """Return the names, with its place behind each that another one before it is like."""
    return [f"{name} {place + 1}" if name in names[:place] else name for place, name in enumerate(names)]


def _leaves(groups: Collection[str]) -> list[str]:
    """Return the groups that are compared: the tasks of a source that has several, else the source."""
    return [group for group in groups if not any(other.startswith(f"{group}/") for other in groups)]


def safe(name: str) -> str:
    """Return the name of a source or task as one part of a figure's name: characters that trackers refuse become _."""
    return re.sub(r"[^\w .()-]", "_", name)
