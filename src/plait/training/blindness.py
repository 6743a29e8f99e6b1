"""The blindness alarm: look in a stage whether pictures make a difference to the model, and warn if not. A stage is a part of a run.

The loss of some held-out samples is computed with their own pictures and again with another sample's, each sample by itself, with the same
random numbers; the difference is paired. A model that does not look loses nothing by the exchange.
"""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plait.assembly import sample_losses
from plait.assembly.held_out import ChosenSamples, HeldOutData, choose
from plait.config.schema import Evaluate
from plait.engine.evaluation import LOSS
from plait.engine.loss import Batch, has_targets
from plait.engine.parallel.every_rank import on_every_rank
from plait.errors import BadSample, sample_errors
from plait.families import registry
from plait.families.ablation import Ablation, partners
from plait.training.figures import paired, picture_use
from plait.training.monitor.stage_look import StageLook
from plait.training.stage_plan import StagePlan

log = logging.getLogger(__name__)

FEWEST_STEPS = 100
"""Steps of a stage before which nobody looks: a model learns what answers look like before it learns to see."""
_FEWEST, _MOST = 16, 64
"""Samples of a look."""
_SHARE = 0.00125
"""Share of the stage's forward and backward passes so far that a look may cost, with more than the fewest samples; twice at the end."""
_ENOUGH_SAMPLES = 8_000
"""Samples of a whole stage from which it is looked at before its end too: of fewer, a look takes too large a share."""
_READ_FOR_ONE = 4
"""Samples that are read, at most, for each that is wanted: not all of them need to have pictures."""
_LATE_STEPS, _LITTLE = 1000, 0.02
"""Steps of a stage after which it may be warned before the end, as a model that is drawn at random sees late; and the share of the loss
that pictures then surely save less than."""
_WAYS = ("own", "other")

Encoded = tuple[int, Batch, Batch]
"""A sample's position among those chosen, and its batches: with its own pictures, and with another sample's."""


class Blindness(StageLook):
    """Looks at some evaluations of a stage, and at its end, whether pictures make a difference; warns once where they do not."""

    plan: StagePlan
    name = "blindness"
    unknown = "whether its pictures make a difference is not known (guard.blindness)"
    unusable = "can be shown with its own pictures and with another's"
    key = picture_use.GAIN

    def _picture(self) -> Ablation | None:
        """Return how the pictures of a sample are exchanged, None where this model sees none."""
        ablation = registry.ablations(self.plan.config.family).get("image")
        return ablation if ablation is not None and ablation.lacks(self.bundle.section) is None else None

    def is_time(self) -> bool:
        """Return whether to look at this step. It is the stage's end, or in a long one the first evaluation after 100, 1,000, ... steps."""
        step = self.state.stage_step
        if step < FEWEST_STEPS or self.state.stage_done is not None:
            return step >= FEWEST_STEPS
        if self.plan.steps * self.plan.config.train.global_batch < _ENOUGH_SAMPLES:
            return False
        intervals = [entry.every_steps for entry in self.plan.config.evaluate if entry.every_steps is not None]
        if not any(step % every == 0 for every in intervals):
            return False
        before = max((step - 1) // every * every for every in intervals)
        return before < FEWEST_STEPS * int(10 ** int(math.log10(step / FEWEST_STEPS)))

    def measured(self) -> dict[str, Any] | None:
        """Return the figures of a look. None: there is nothing to look for, a stop was requested, or, told, samples do not tell."""
        picture = self._picture()
        if picture is None or any(row["step"] == self.state.step or picture_use.makes_difference(row) for row in self.known()):
            return None
        config, ranks = self.plan.config, self.context.ranks
        passes = 3 * self.state.stage_step * config.train.global_batch  # a backward pass costs two forward passes
        share = _SHARE if self.state.stage_done is None else 2 * _SHARE
        count = max(_FEWEST, min(_MOST, int(share * passes / 2)))
        kind = "held-out" if config.data.holds_out else "training"
        opened: list[ChosenSamples] = []

        def choose_pairs() -> list[tuple[int, int]]:
            opened.append(self._samples(count * _READ_FOR_ONE))
            return _pairs(picture, opened[0], count) if ranks.first else []

        pairs, samples = on_every_rank(ranks, choose_pairs)[0], opened[0]
        rows = self._compared(picture, samples, pairs) if len(pairs) >= _FEWEST else []
        if rows is None:
            return None
        usable = len(rows) if len(pairs) >= _FEWEST else len(pairs)
        reason = f"it takes {_FEWEST} {kind} samples with pictures of their own, and of {len(samples):,} {usable} can be used"
        if len(rows) >= _FEWEST:
            bench = sample_losses.bench(self.plan.loss)
            own, other = (bench.summarise([row[way] for row in rows])["loss"] for way in _WAYS)
            if math.isfinite(own) and math.isfinite(other):
                pair = {"gain": _WAYS}
                found = paired.differences(
                    rows, pair, lambda chosen, way: bench.summarise([row[way] for row in chosen]), lower=True, behind=lambda figure: None
                )
                return picture_use.row_of(own, other, found["loss"]["gain"], len(rows))
            reason = f"the loss of {len(rows)} {kind} samples is {own}, and {other} with other pictures"
        log.info(f"step {self.state.step}: whether pictures make a difference is not known: {reason}")
        return None

    def _samples(self, count: int) -> ChosenSamples:
        """Return some of the held-out samples, or of the training samples where nothing is held out."""
        config = self.plan.config
        if config.data.holds_out:
            return ChosenSamples(*HeldOutData(config).of(Evaluate(bench=LOSS, samples=count)))
        sources = self.plan.data.sources
        return ChosenSamples(sources, choose([len(source) for source in sources], count, config.seed))

    def _compared(self, picture: Ablation, samples: ChosenSamples, pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]] | None:
        """Return {"own": row, "other": row} of each pair that can be used, in order, with rows of the loss; None if the run is to stop."""
        loss, model = self.plan.loss, self.state.model

        def encode(inputs: Any, position: int) -> Encoded:
            own, other = (samples[place] for place in pairs[position])
            return position, sample_losses.encoded(own, inputs), sample_losses.encoded(picture.exchange(own, other), inputs)

        def forward(encoded: Encoded) -> dict[str, Any] | None:
            position, *batches = encoded
            rows = {way: sample_losses.row(loss, model, batch) for way, batch in zip(_WAYS, batches, strict=True)}
            return {"position": position, **rows} if has_targets(loss, rows["own"]["weights"]) else None

        rows = self.forward_passes(range(len(pairs)), encode, forward)
        return None if rows is None else sorted(rows, key=lambda row: int(row["position"]))

    def tell(self, row: dict[str, Any], known: Sequence[dict[str, Any]]) -> None:
        """Log the first look that found a difference, and warn once where there is none; the warning is in the row too."""
        warned = any("warnings" in earlier for earlier in known)
        line = f"step {row['step']}: pictures make {picture_use.verdict(row)}: {picture_use.sentence(row)}"
        if picture_use.makes_difference(row):
            log.info(line)
        elif not warned and self._is_sure(row):
            row["warnings"] = [f"{line}. {self._advice()}"]
            log.warning(row["warnings"][0])

    def _is_sure(self, row: Mapping[str, Any]) -> bool:
        """Return whether a look that found no difference is worth a warning: it is late, and before the end even the most is little."""
        return self.state.stage_done is not None or (self.state.stage_step >= _LATE_STEPS and picture_use.saves_less(row, _LITTLE))

    def _advice(self) -> str:
        """Return what to look at where pictures make no difference; it is in a row, which is the same wherever the run is."""
        frozen = [name for name in self.plan.components if name not in self.plan.trained and name not in self.bundle.family.never_trained]
        still = f" (frozen here: {', '.join(frozen)})" if frozen else ""
        return (
            f"Does what leads from the pictures to the answers train, at a rate that moves it{still}? Do pictures and texts belong "
            f"together, do prompts show the pictures, and do answers need them (plait data inspect)? More samples tell more: "
            "plait eval RUN --bench loss --ablate image; guard.blindness=false looks no more"
        )


def _pairs(picture: Ablation, samples: ChosenSamples, count: int) -> list[tuple[int, int]]:
    """Return up to `count` positions of samples with pictures, each with the position of another sample whose pictures differ."""
    positions, read, contents = list[int](), list[dict[str, Any]](), list[Any]()
    for position in range(len(samples)):
        with contextlib.suppress(BadSample), sample_errors:
            sample = samples[position]
            if (content := picture.content(sample)) is not None:
                positions.append(position)
                read.append(sample)
                contents.append(content)
        if len(positions) == count:
            break
    others = partners(read, contents, picture)
    return [(position, positions[other]) for position, other in zip(positions, others, strict=True) if other is not None]
