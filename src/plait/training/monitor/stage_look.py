"""The frame of a look at a model between a stage's steps: it measures the loss of a few chosen samples. A stage is a part of a run.

When to look, at what, and what is told of it is a subclass's: training/blindness.py and source_losses.py.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from plait import files
from plait.assembly.model import ModelBundle
from plait.config.schema import RunConfig
from plait.engine.loss import Loss
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.signals import Signals
from plait.engine.monitoring.tracking import Tracker
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.every_rank import on_every_rank
from plait.engine.precision import autocast
from plait.engine.state import State
from plait.errors import BadSample, PlaitError, Stopped, sample_errors

log = logging.getLogger(__name__)

Chosen = TypeVar("Chosen")
Encoded = TypeVar("Encoded")
Result = TypeVar("Result")


class Plan(Protocol):
    """What is read of a stage's plan."""

    @property
    def loss(self) -> Loss:
        """Return the family's loss."""

    @property
    def config(self) -> RunConfig:
        """Return the configuration with the stage's own settings in place."""


class Context(Protocol):
    """What is used of what the stages of a run share."""

    @property
    def run(self) -> Path:
        """Return the run's directory."""

    @property
    def ranks(self) -> Ranks:
        """Return the ranks of the run."""

    @property
    def tracker(self) -> Tracker:
        """Return where rows are recorded."""

    @property
    def signals(self) -> Signals:
        """Return requests to stop."""

    @property
    def heartbeat(self) -> Heartbeat:
        """Return what knows what this rank does."""


class StageLook:
    """The frame of a look. Abstract: a subclass says when it is time, what is measured and told, and which rows are its own."""

    name = ""
    """What is looked for, as bench_failures.jsonl names it."""
    unknown = ""
    """What nobody knows where a look failed, with the setting that switches it off."""
    unusable = ""
    """Why a chosen sample is of no use: "none of 16 samples ..."."""
    key = ""
    """The name of a figure that the recorded rows of such looks have, and no others."""

    def __init__(
        self, plan: Plan, bundle: ModelBundle, state: State, context: Context, keep_failure: Callable[[int, str, Exception], str]
    ) -> None:
        """Make one. `keep_failure(step, what, error)`: keeps why a look failed, and returns it in one line."""
        self.plan, self.bundle, self.state, self.context, self.keep_failure = plan, bundle, state, context, keep_failure
        self.rows: list[dict[str, Any]] | None = None
        """The rows of this stage's looks, the same on all ranks; None: not read yet."""

    def is_time(self) -> bool:
        """Return whether to look at this step, as far as is known without a sample."""
        raise NotImplementedError

    def measured(self) -> dict[str, Any] | None:
        """Return the figures of a look; None where there is nothing to look at, or a stop was requested."""
        raise NotImplementedError

    def tell(self, row: dict[str, Any], known: Sequence[dict[str, Any]]) -> None:
        """Log what the row of a look says, and add its warnings to it. `known`: the rows of this stage's looks before it."""
        raise NotImplementedError

    def after_failure(self) -> None:
        """Note that a look failed, which was told."""

    def look(self) -> None:
        """Look if it is time to, record the figures, and tell what they say. All ranks call this after each step.

        What fails is told, and kept in bench_failures.jsonl: it never costs the training.
        """
        state = self.state
        if not self.is_time():
            return
        self.context.heartbeat.phase("evaluate", state.step)
        try:
            figures = self.measured()
        except Stopped:
            raise
        except Exception as error:
            if self.context.ranks.size > 1 and not isinstance(error, PlaitError):
                raise  # of one rank alone, while the others wait for it
            self.after_failure()
            log.warning(f"{self.keep_failure(state.step, self.name, error)}; the run goes on, and {self.unknown}")
            return
        finally:
            distributed.reshard(state.model)
            state.model.train()
        if figures is not None:
            row, known = {"step": state.step, "stage": state.stage, **figures}, self.known()
            self.tell(row, known)
            known.append(row)
            self.context.tracker.row(row)

    def known(self) -> list[dict[str, Any]]:
        """Return the rows of this stage's looks, those from before the run was continued included. All ranks call it."""

        def recorded() -> list[dict[str, Any]]:
            rows = files.read_rows(self.context.run / "metrics.jsonl", files.STEP_KINDS, key=self.key) if self.context.ranks.first else []
            return [row for row in rows if self.key in row and row.get("stage") == self.state.stage]

        if self.rows is None:
            self.rows = on_every_rank(self.context.ranks, recorded)[0]
        return self.rows

    def forward_passes(
        self, chosen: Sequence[Chosen], encode: Callable[[Any, Chosen], Encoded], forward: Callable[[Encoded], Result | None]
    ) -> list[Result] | None:
        """Return what `forward` returns of each chosen sample that can be encoded, but for None; None if the run is to stop.

        `encode(inputs, sample)`: `inputs` are the family's, as they are for evaluations. Each rank computes its part. All make as many
        forward passes, since those of a sharded model are made together. Raises PlaitError where a rank can encode none of its samples.
        """
        context, ranks = self.context, self.context.ranks
        self.state.model.eval()
        mine = range(ranks.rank, len(chosen), ranks.size)
        encoded: list[Encoded] = []

        def encode_own() -> int:
            encoded.extend(self._encoded([chosen[position] for position in mine or [ranks.rank % len(chosen)]], encode))
            return len(encoded) if mine else 0

        def forward_one(number: int) -> tuple[Result | None, bool]:
            with autocast(self.plan.config.train.precision, ranks.device):
                result = forward(encoded[min(number, len(encoded) - 1)])
            return result if mine and number < len(encoded) else None, context.signals.requested()

        found: list[Result] = []
        for number in range(max(on_every_rank(ranks, encode_own))):
            context.heartbeat.part("next")
            results = on_every_rank(ranks, functools.partial(forward_one, number))
            if context.signals.agree(any(requested for _, requested in results)):
                return None
            found += [result for result, _ in results if result is not None]
        return found

    def _encoded(self, chosen: Sequence[Chosen], encode: Callable[[Any, Chosen], Encoded]) -> list[Encoded]:
        """Encode the samples that can be. Raises PlaitError if none can."""
        inputs, encoded, reason = self.bundle.inputs(self.plan.config, train=False), list[Encoded](), ""
        for sample in chosen:
            try:
                with sample_errors:
                    encoded.append(encode(inputs, sample))
            except BadSample as error:
                reason = str(error)
        if not encoded:
            raise PlaitError(f"none of {len(chosen)} samples {self.unusable}: {reason}")
        return encoded
