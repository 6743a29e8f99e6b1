"""Evaluate a stage (part of a run) between steps. The results decide the best checkpoint, and the stage's end on a plateau.

A bench is an evaluation; a figure, a number that it gives; an entry, an item of the configuration's `evaluate:` list.
"""

import contextlib
import logging
import math
import traceback
from collections.abc import Mapping, Sequence

from plait import files
from plait.assembly import data_look
from plait.assembly.held_out import HeldOutData, open_held_out
from plait.assembly.model import ModelBundle
from plait.config.schema import RunConfig
from plait.config.secrets import masked
from plait.engine.evaluation import Evaluations, Row
from plait.engine.parallel.rank_failures import reason_of
from plait.engine.state import PLANNED, State
from plait.training.figures import intervals, kept_answers, plateau
from plait.training.run_context import RunContext
from plait.training.stage_plan import StagePlan, wanted_figures

log = logging.getLogger(__name__)


class StageEvaluation:
    """Runs the evaluations of the stage of `plan`; their figures decide the best checkpoint, and may end the stage."""

    def __init__(self, plan: StagePlan, bundle: ModelBundle, state: State, context: RunContext) -> None:
        config, ranks = plan.config, context.ranks
        self.plan, self.state, self.context = plan, state, context
        self.held_out = HeldOutData(config)
        self.failures: list[str] = []
        """The benches that failed at this step, each with its reason."""
        self.evaluations = Evaluations(
            entries=config.evaluate,
            held_out=open_held_out(bundle, config, ranks, self.held_out, stop=context.signals.requested),
            loss=plan.loss,
            benches=plan.benches,
            inputs=bundle.inputs(config, train=False),
            ranks=ranks,
            precision=config.train.precision,
            stop=context.signals,
            mark=context.heartbeat.part,
            record=context.tracker.row,
            show=context.tracker.pictures,
            gathered=contextlib.nullcontext if bundle.sharding is None else bundle.sharding.gathered,
            failed=self._failed,
            answered=self._answered,
        )

    def compare_ranks(self) -> None:
        """Check that all ranks have the same held-out data; all call this. Raises PlaitError on all of them if one has other data."""
        if self.context.ranks.size > 1:
            data_look.compare_ranks(self.held_out.fingerprints(self.plan.config.evaluate), self.context.ranks)

    def rehearse(self) -> None:
        """Try every `evaluate:` entry on a few samples before any step. Raises PlaitError if one fails or a wanted figure is missing."""
        self.evaluations.rehearse(self.state, wanted_figures(self.plan.config))

    def conclude(self, *, planned: bool) -> tuple[bool, list[str]]:
        """Run the evaluations due at this step and set `state.stage_done` if the stage ends. After a stop meanwhile, a restart does both.

        `planned`: whether this is the stage's last step. Returns whether `checkpoint.best` improved, and a line per bench that failed.
        """
        self.failures = []
        return self._conclude(planned), self.failures

    def _conclude(self, planned: bool) -> bool:
        settings, state, evaluations = self.plan.config, self.state, self.evaluations
        due = evaluations.entries if planned else evaluations.due(state)
        if due:
            self.context.heartbeat.phase("evaluate", state.step)
        figures = evaluations.run(state, due)
        if figures is None:
            return False
        improved = _note(state, figures, settings)
        rule = settings.train.plateau
        reason = PLANNED if planned else plateau.flat(state.history, rule) if rule else None
        if reason and not planned:
            last = evaluations.run(state, [entry for entry in evaluations.entries if entry not in evaluations.due(state)])
            if last is None:
                return improved
        state.evaluated_step, state.stage_done = state.step, reason
        return improved

    def _answered(self, bench: str, rows: Sequence[Row]) -> Mapping[str, tuple[float, float]]:
        """Keep some answers of a bench in the run's directory, and show them in trackers; return how sure its figures are."""
        if answers := kept_answers.keep(self.context.run, self.state.step, self.state.stage, bench, rows):
            self.context.tracker.answers(self.state.step, bench, answers)
        return intervals.of_small_sample(self.plan.benches[bench], rows)

    def _failed(self, bench: str, error: Exception) -> None:
        """Note and report a bench that failed; its traceback goes to bench_failures.jsonl."""
        self.failures.append(keep_failure(self.context, self.plan, self.state.step, bench, error))
        if self.context.ranks.first:
            log.warning(f"{self.failures[-1]}; the run saves and goes on")


def keep_failure(context: RunContext, plan: StagePlan, step: int, bench: str, error: Exception) -> str:
    """Return a line on a bench that failed after `step`; rank 0 keeps it with its traceback in the run's bench_failures.jsonl."""
    reason = masked(reason_of(error))
    if context.ranks.first:
        trace = masked("".join(traceback.format_exception(error)))
        row = {"step": step, "stage": plan.view.name, "bench": bench, "reason": reason, "traceback": trace}
        files.append_rows(context.run / "bench_failures.jsonl", [row])
    return f"bench {bench} failed after step {step}: {reason}"


def _note(state: State, figures: dict[str, float], settings: RunConfig) -> bool:
    """Remember the finite ones of the figures that may end the stage or be the best. Returns whether there is a new best."""
    rule, wanted = settings.train.plateau, settings.checkpoint.best
    unsound = {name: value for name, value in figures.items() if not math.isfinite(value)}
    if unsound:
        shown = ", ".join(f"{name} is {value}" for name, value in unsound.items())
        log.warning(f"step {state.step}: held out, {shown}: it counts neither as the best nor for a plateau")
    figures = {name: value for name, value in figures.items() if name not in unsound}
    if rule and rule.metric in figures:
        state.history = [item for item in state.history if item[0] != state.stage_step] + [(state.stage_step, figures[rule.metric])]
    if wanted is None or wanted not in figures:
        return False
    sign = 1.0 if settings.checkpoint.better == "lower" else -1.0
    if state.best is not None and not sign * figures[wanted] < sign * state.best["value"] and math.isfinite(state.best["value"]):
        return False
    state.best = {"metric": wanted, "value": figures[wanted], "step": state.step}
    return True
