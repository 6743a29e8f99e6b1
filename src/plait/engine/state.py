"""What a run is at one moment, as a value: everything here is saved, everything else is a function of it and the configuration.

All tensors are keyed by parameter name. Weights are those trained now or ever; frozen ones are a pinned reference, never copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from plait.engine import optim, power_ema, source_shares
from plait.engine.optim import Ema
from plait.engine.parallel.distributed import LazyShardedTensor, StoredTensor, full_tensor, local, reshard_like
from plait.engine.power_ema import PowerEma
from plait.engine.schedule import STAGE_TOKENS, TOKENS
from plait.errors import PlaitError
from plait.keys import key

_PLACE = ("step", "stage", "stage_start", "stage_done", "judged", "history", "best", "probe")
GROUPS = ("weights", "ema", "moments", *power_ema.KEPT)
"""The tensor files of a checkpoint."""


@dataclass
class State:
    """A run between two optimizer steps. `step` counts updates over all stages; the running stage began at `stage_start`."""

    model: nn.Module
    step: int = 0
    stage: int = 1
    stage_start: int = 0
    stage_done: str | None = None
    """Why the stage has ended; None while it runs."""
    judged: int = 0
    """The step whose held-out figures are complete."""
    history: list[tuple[int, float]] = field(default_factory=list)
    """(step of the stage, figure) of the metric that may end the stage early."""
    best: dict[str, Any] | None = None
    """The step, stage and value of the best `checkpoint.best` figure of the stage."""
    ever_trained: set[str] = field(default_factory=set)
    totals: dict[str, float] = field(default_factory=dict)
    probe: float | None = None
    """Loss of the run's probe samples at the last save: recomputed at the next start, it shows that the same model came back."""
    optimizer: torch.optim.Optimizer | None = None
    ema: Ema | None = None
    post_hoc: dict[str, PowerEma] = field(default_factory=dict)
    """Averages from which other lengths are made after training, by their group's name; none unless `optim.ema.post_hoc`."""
    paused: dict[str, StoredTensor] = field(default_factory=dict)
    """Moments of parameters that do not train in this stage, kept for the stage that returns to them."""

    @property
    def stage_step(self) -> int:
        """Updates done in the running stage."""
        return self.step - self.stage_start

    def enter(self, stage: int) -> None:
        """Move on to a later stage, which begins at the present step; staying is no change."""
        if stage != self.stage:
            self.stage, self.stage_start, self.stage_done = stage, self.step, None
            self.history, self.best = [], None
            self.totals = {**source_shares.without(self.totals), STAGE_TOKENS: 0.0}

    def reopen(self, stop_step: int, reason: str) -> None:
        """Let a stage that ended for `reason`, its planned steps being done, go on where its budget has grown to `stop_step` since."""
        if self.stage_done == reason and self.step < stop_step:
            self.stage_done = None

    def count(self, done: Mapping[str, float]) -> None:
        """Add what a step consumed to the totals; tokens also to the stage's."""
        for name, value in done.items():
            self.totals[name] = self.totals.get(name, 0) + value
        if TOKENS in done:
            self.totals[STAGE_TOKENS] = self.totals.get(STAGE_TOKENS, 0) + done[TOKENS]

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that train now, by name."""
        assert self.optimizer is not None
        return optim.named_groups(self.optimizer)

    def pause(self) -> None:
        """Between stages: moments wait by name, and the optimizer no longer holds the parameters it moved."""
        if self.optimizer is not None:
            self.paused.update(optim.moments(self.optimizer))
            self.optimizer = None

    def begin(self, trained: Mapping[str, Mapping[str, nn.Parameter]], settings: Any, seed: int = 0) -> None:
        """Begin a stage: freeze the rest, make the optimizer, give returning parameters their moments, start missing averages.

        `seed`: of the run, for the noise that rounds bfloat16 weights. A stage before it has been paused.
        """
        assert self.optimizer is None, "pause the stage before"
        optim.freeze(self.model, trained)
        self.optimizer = optim.adamw(trained, settings, lambda name, piece: key(seed, "rounding", self.step, name, piece) >> 1)
        optim.assert_covers(self.model, self.optimizer)
        optim.load_moments(self.optimizer, self.paused)
        now = self.trained()
        self.ever_trained.update(now)
        self.paused = {name: value for name, value in self.paused.items() if name.rpartition(".")[0] not in now}
        if settings.returning_moments == "reset":
            self.paused = {}
        pattern = next(iter(now.values()))  # whole where what trains is whole, spread over ranks where that is
        self.paused = {name: value if name.endswith(".step") else reshard_like(value, pattern) for name, value in self.paused.items()}
        if settings.offload:
            self.paused = {name: value.to("cpu") if isinstance(value, Tensor) else value for name, value in self.paused.items()}
        if settings.ema is None:
            self.ema = None  # evaluation would go on with averages that no longer follow the weights
        else:
            averages = self.ema.average if self.ema is not None else {}
            self.ema = Ema(settings.ema.decay, settings.ema.warmup_steps)
            self.ema.average = averages
            self.ema.track(now)
            self.ema.reshard_like(dict(self.model.named_parameters()))
        wanted = power_ema.KEPT if settings.ema is not None and settings.ema.post_hoc else {}
        self.post_hoc = {group: self.post_hoc.get(group, PowerEma(length)) for group, length in wanted.items()}
        for one in self.post_hoc.values():
            one.track(now)
            one.reshard_like(dict(self.model.named_parameters()))

    def average(self) -> None:
        """Let the averages follow the update that was just made, number `step` (from 0) of the run."""
        if self.ema is not None:
            self.ema.update(self.trained(), self.stage_step)
        for one in self.post_hoc.values():
            one.update(self.trained(), self.step)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state's tensors by group. They are the live ones: copy before the next step."""
        parameters = dict(self.model.named_parameters())
        weights = {name: parameters[name].detach() for name in sorted(self.ever_trained)}
        live = optim.moments(self.optimizer) if self.optimizer is not None else {}
        paused = {name: full_tensor(value) if isinstance(value, LazyShardedTensor) else value for name, value in self.paused.items()}
        averages = {"ema": dict(self.ema.average) if self.ema else {}, **{group: dict(one.average) for group, one in self.post_hoc.items()}}
        return {"weights": weights, **averages, "moments": {**paused, **live}}

    def facts(self) -> dict[str, Any]:
        """The state's plain numbers and names, for the manifest."""
        place = {name: getattr(self, name) for name in _PLACE}
        return {**place, "totals": self.totals, "trained": sorted(self.ever_trained)}

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Mapping[str, StoredTensor]]) -> None:
        """Become the saved state. Moments wait in `paused` until `begin`; averages until an EMA wants them.

        Raises PlaitError when a saved weight has no parameter of its name and shape here.
        """
        for name in _PLACE:
            setattr(self, name, facts[name])
        self.history = [(step, value) for step, value in facts["history"]]
        self.totals = dict(facts["totals"])
        self.ever_trained = set(facts["trained"])
        load_weights(self.model, tensors["weights"])
        self.paused = dict(tensors["moments"])
        self.ema = Ema(1.0, 0) if tensors["ema"] else None
        self.post_hoc = {group: PowerEma(length) for group, length in power_ema.KEPT.items() if tensors.get(group)}
        for group, one in [("ema", self.ema), *self.post_hoc.items()]:
            if one is not None:
                place = device_of(self.model)
                one.average = {name: full_tensor(value).to(place, torch.float32, copy=True) for name, value in tensors[group].items()}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, StoredTensor]) -> None:
    """Copy saved weights onto the parameters of the same names, in float32: what was ever trained keeps its full precision.

    Raises PlaitError naming the first weight without a parameter of its name and shape.
    """
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        if name not in parameters:
            raise PlaitError(f"the checkpoint holds {name!r}, which this model has not; is `model:` the one it was trained with?")
        if parameters[name].shape != value.shape:
            raise PlaitError(
                f"{name!r} is {tuple(value.shape)} in the checkpoint and {tuple(parameters[name].shape)} in the model; "
                "their `model:` sections differ"
            )
        parameter = parameters[name]
        if isinstance(parameter, DTensor):
            local(parameter).copy_(local(reshard_like(value, parameter)))
        else:
            parameter.data = full_tensor(value).to(device=parameter.device, dtype=torch.float32, copy=True)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device
