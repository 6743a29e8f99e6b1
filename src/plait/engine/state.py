"""The state of a run between two optimizer steps, as a value. Everything here is saved, everything else is a function of it and the config.

All tensors are keyed by parameter name. Weights are those that train now or ever did; those that never trained are read from their source
again. A stage is a part of a run with its own settings and trained parameters; a group is a kind of tensor (weights, ema, moments).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plait.config.schema import Optim
from plait.engine import averages, optim, source_shares
from plait.engine.averages import Ema, PowerEma
from plait.engine.parallel.distributed import LazyShardedTensor, StoredTensor, full_tensor, reshard_like
from plait.engine.parallel.placing import load_weights
from plait.engine.schedule import STAGE_TOKENS, TOKENS
from plait.keys import key

PLANNED = "planned steps done"
"""Reason of a stage's end when it has had all its steps; for one that ended earlier the reason comes from `training/figures/plateau.py`."""
_SAVED = ("step", "stage", "stage_start", "stage_done", "evaluated_step", "history", "best", "probe", "batches", "recent")
"""Attributes of a state that a checkpoint's manifest holds under the same names."""
_ADDED: dict[str, Callable[[], Any]] = {"batches": list, "recent": dict}
"""Those of them that older checkpoints do not have, with what makes an empty one."""

GROUPS = ("weights", "ema", "moments", *averages.KEPT)
"""The tensor groups of a checkpoint: a file each, or a folder with a file per rank."""


@dataclass
class State:
    """A run between two optimizer steps. `step` counts the updates of all stages; number `stage`, from 1, began at `stage_start`."""

    model: nn.Module
    step: int = 0
    stage: int = 1
    stage_start: int = 0
    stage_done: str | None = None
    """Why the stage has ended; None while it runs."""
    evaluated_step: int = 0
    """The last step whose held-out figures are complete."""
    history: list[tuple[int, float]] = field(default_factory=list)
    """(step of the stage, figure) of the metric that may end the stage early."""
    best: dict[str, Any] | None = None
    """The stage's best figure of the name `checkpoint.best`, as {"metric": that name, "value", "step": of the run}."""
    ever_trained: set[str] = field(default_factory=set)
    """Names of the parameters that train now or did in an earlier stage."""
    totals: dict[str, float] = field(default_factory=dict)
    """Running counters by name: samples, tokens, steps skipped, bad samples, the loss scale, what each source contributed."""
    probe: float | None = None
    """Loss of the run's probe samples at the last save: recomputed at the next start, it shows that the same model came back."""
    batches: list[list[int]] = field(default_factory=list)
    """[step of the stage, samples per step from it on], for each global batch that the stage has had."""
    recent: dict[str, list[float]] = field(default_factory=dict)
    """Loss and gradient norm of the stage's last steps, with which a step is compared (`monitoring/spikes.py`)."""
    optimizer: torch.optim.Optimizer | None = None
    ema: Ema | None = None
    post_hoc: dict[str, PowerEma] = field(default_factory=dict)
    """Averages from which other lengths are made after training, by tensor group; empty unless `optim.ema.post_hoc`."""
    paused: dict[str, StoredTensor] = field(default_factory=dict)
    """Moments of parameters that do not train in this stage, kept for the stage that trains them again."""

    copied: Callable[[], None] = lambda: None
    """Waits until a save has copied the tensors; called before any of them is changed in place."""

    @property
    def stage_step(self) -> int:
        """Updates done in the running stage."""
        return self.step - self.stage_start

    def batches_in(self, stage: int, global_batch: int) -> list[list[int]]:
        """Return `batches`, [[step of the stage, samples per step], ...], as it will be in stage `stage` (from 1) with `global_batch`."""
        same = stage == self.stage
        return with_batch(self.batches if same else [], self.stage_step if same else 0, global_batch)

    def enter(self, stage: int, global_batch: int, steps: int) -> None:
        """Begin stage number `stage` (from 1) of `steps` updates at the present step: its counters are reset, moments kept by name.

        Entering the present stage resets nothing; if it was finished and is longer now, it continues. `global_batch`: samples per step.
        """
        self.pause()
        self.batches = self.batches_in(stage, global_batch)
        if stage != self.stage:
            self.stage, self.stage_start, self.stage_done = stage, self.step, None
            self.history, self.best, self.recent = [], None, {}
            self.totals = {**source_shares.reset(self.totals), STAGE_TOKENS: 0.0}
        self.reopen(self.stage_start + steps, PLANNED)

    def reopen(self, stop_step: int, reason: str) -> None:
        """Continue a finished stage whose `stage_done` is `reason` (planned steps done) if it now ends later, at `stop_step` of the run."""
        if self.stage_done == reason and self.step < stop_step:
            self.stage_done = None

    def count(self, amounts: Mapping[str, float]) -> None:
        """Add what a step consumed, as {"samples": 8, "tokens": 950}, to the totals; tokens also to the stage's."""
        for name, value in amounts.items():
            self.totals[name] = self.totals.get(name, 0) + value
        if TOKENS in amounts:
            self.totals[STAGE_TOKENS] = self.totals.get(STAGE_TOKENS, 0) + amounts[TOKENS]

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that train in the running stage, by full name."""
        assert self.optimizer is not None
        return optim.named_groups(self.optimizer)

    def pause(self) -> None:
        """Move the optimizer's moments to `paused` and drop the optimizer; called between stages."""
        if self.optimizer is not None:
            self.paused.update(optim.moments(self.optimizer))
            self.optimizer = None

    def begin(self, trained: optim.Trained, settings: Optim, seed: int = 0, blocks: Sequence[nn.Module] = ()) -> None:
        """Begin a stage: freeze all but `trained`, make the optimizer, restore saved moments, start moving averages (EMA) that are missing.

        `trained`: what trains, by component (named part of the model) and parameter name. `seed`: of the run, for the noise that rounds
        bfloat16 weights; `blocks`: the model's layers. Call `pause` first where an earlier stage has an optimizer. Raises PlaitError for a
        saved moment of another shape.
        """
        assert self.optimizer is None, "pause the stage before"
        optim.freeze(self.model, trained)
        self.optimizer = optim.build(trained, settings, lambda name, chunk: key(seed, "rounding", self.step, name, chunk) >> 1, blocks)
        optim.assert_covers(self.model, self.optimizer)
        optim.load_moments(self.optimizer, self.paused)
        self.ever_trained.update(self.trained())
        self._place_paused(settings)
        self._begin_averages(settings)

    def _place_paused(self, settings: Optim) -> None:
        """Keep the moments of parameters that do not train now, sharded as those that do; on the host with `offload`."""
        trained = self.trained()
        paused = {name: value for name, value in self.paused.items() if name.rpartition(".")[0] not in trained}
        if settings.returning_moments == "reset":
            paused = {}
        pattern = next(iter(trained.values()))
        paused = {name: value if name.endswith(".step") else reshard_like(value, pattern) for name, value in paused.items()}
        if settings.offload:
            paused = {name: value.to("cpu") if isinstance(value, Tensor) else value for name, value in paused.items()}
        self.paused = paused

    def _begin_averages(self, settings: Optim) -> None:
        """Make the averages that the stage asks for, from those there are; without `optim.ema` they are dropped, not left to go stale."""
        kept = self.ema.average if self.ema is not None else {}
        self.ema = Ema(settings.ema.decay, settings.ema.warmup_steps, kept) if settings.ema is not None else None
        lengths = averages.KEPT if settings.ema is not None and settings.ema.post_hoc else {}
        self.post_hoc = {group: self.post_hoc.get(group, PowerEma(length)) for group, length in lengths.items()}
        for average in self._averages().values():
            average.track(self.trained())
            average.reshard_like(dict(self.model.named_parameters()))

    def _averages(self) -> dict[str, Ema]:
        """Return all averages by tensor group."""
        return {**({"ema": self.ema} if self.ema is not None else {}), **self.post_hoc}

    def average(self) -> None:
        """Update all averages of the trained weights; called after each optimizer step, before `step` counts it."""
        if self.ema is not None:
            self.ema.update(self.trained(), self.stage_step)
        for average in self.post_hoc.values():
            average.update(self.trained(), self.step)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the state's tensors, {group (weights, ema, moments, ...): {name: tensor}}. They are live: `copied`."""
        parameters = dict(self.model.named_parameters())
        weights = {name: parameters[name].detach() for name in sorted(self.ever_trained)}
        live = optim.moments(self.optimizer) if self.optimizer is not None else {}
        paused = {name: full_tensor(value) if isinstance(value, LazyShardedTensor) else value for name, value in self.paused.items()}
        averages: dict[str, dict[str, Tensor]] = {"ema": {}}
        averages |= {group: dict(average.average) for group, average in self._averages().items()}
        return {"weights": weights, **averages, "moments": {**paused, **live}}

    def metadata(self) -> dict[str, Any]:
        """Return the state without tensors as JSON values (step, stage, totals, ...), for `state` in a checkpoint's manifest.json."""
        return {**{name: getattr(self, name) for name in _SAVED}, "totals": self.totals, "trained": sorted(self.ever_trained)}

    def restore(self, metadata: Mapping[str, Any], tensors: Mapping[str, Mapping[str, StoredTensor]], *, mapped: bool = False) -> None:
        """Load a saved state into this one. The arguments are what the methods `metadata` and `tensors` returned when it was saved.

        The optimizer's moments stay in `paused` until `begin` starts a stage. `mapped`: whole tensors stay in their mapped files, uncopied,
        as they move to another device before they change.
        Raises PlaitError when a saved weight has no parameter of its name and shape here.
        """
        for name in _SAVED:
            setattr(self, name, metadata.get(name, _ADDED[name]()) if name in _ADDED else metadata[name])
        self.history = [(step, value) for step, value in metadata["history"]]
        self.totals = dict(metadata["totals"])
        self.ever_trained = set(metadata["trained"])
        load_weights(self.model, tensors["weights"], mapped=mapped)
        self.paused = dict(tensors["moments"])
        device = next(self.model.parameters()).device
        saved = {
            group: {name: full_tensor(value).to(device, torch.float32, copy=not mapped) for name, value in tensors[group].items()}
            for group in ("ema", *averages.KEPT)
            if tensors.get(group)
        }
        self.ema = Ema(1.0, 0, saved["ema"]) if "ema" in saved else None
        self.post_hoc = {group: PowerEma(length, saved[group]) for group, length in averages.KEPT.items() if group in saved}


def with_batch(batches: Sequence[Sequence[int]], step: int, global_batch: int) -> list[list[int]]:
    """Return `batches`, [[first step, samples per step], ...], with `global_batch` from `step` on; a copy if that is the size already."""
    if not batches:
        return [[0, global_batch]]
    kept = [list(item) for item in batches]
    return kept if kept[-1][1] == global_batch else [*kept, [step, global_batch]]
