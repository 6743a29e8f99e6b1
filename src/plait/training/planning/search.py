"""Search the strategy, micro-batch and activation checkpointing with which a stage (part of a run) is fastest on given GPUs.

The time of a step is taken to be that of its FLOPs, with what is computed again, and of the bytes that a rank sends; memory is measured
without memory (fake_step.py) for the smallest and the largest micro-batch, taken to be linear between, and measured for what is proposed.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from plait.assembly.model import ModelBundle
from plait.engine.parallel import memory_estimate
from plait.errors import PlaitError
from plait.training.planning import fake_step, stage_batch
from plait.training.planning.fake_step import StepMemory
from plait.training.planning.findings import Finding, Judge
from plait.training.planning.forecast import StageForecast, StrategyMemory, layouts_of, measured
from plait.training.planning.hardware import SPARE, Hardware

COMPUTED = {"none": 1.0, "selective": 1.05, "full": 4 / 3}
"""FLOPs of a step over those without activation checkpointing: `full` does every forward pass twice, a third of forward and backward."""
_BYTES_PER_S = 50e9
"""What a GPU sends between machines: a network card of 400 Gb/s each. Within one it is faster."""
_VERIFIED = 6
"""Options, the fastest first, that are measured until one fits."""


@dataclass(frozen=True)
class Option:
    """One way to run a stage: its memory on each rank, and about the seconds of a step."""

    micro_batch: int
    memory: StrategyMemory
    step_s: float

    @property
    def settings(self) -> dict[str, str | int]:
        """Return the settings that choose it, by key."""
        chosen: dict[str, str | int] = {
            "train.micro_batch": self.micro_batch,
            "distributed.activation_checkpointing": self.memory.checkpointing,
        }
        return chosen if self.memory.layout.ranks == 1 else {"distributed.strategy": self.memory.layout.strategy, **chosen}


def advise(stage: StageForecast, bundle: ModelBundle, hardware: Hardware, findings: Judge) -> Iterator[Finding]:
    """Yield the fastest option that fits as advice, or an error if none does. `bundle`: with the fake weights of this stage."""
    memory = hardware.memory(stage.view.config.distributed)
    best = next(search(stage, bundle, hardware), None)
    if best is None:
        text = f"no strategy, micro-batch and activation checkpointing fits {hardware.ranks} ranks of {memory / 1e9:.0f} GB"
        yield findings.find("error", "search", f"{text}: take more GPUs, shorter sequences, optim.offload or train.precision=pure_bf16")
        return
    assert best.memory.peak is not None
    told = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in best.settings.items())
    peak = f"{best.memory.peak / 1e9:.3g} GB at the peak, about {best.step_s:.3g} s a step"
    text = f"the fastest that fits {memory / 1e9:.0f} GB: {told}: {peak}"
    cure = " ".join(findings.override(key, value) for key, value in best.settings.items())
    yield Finding("advice", stage.view.name, "search", text, cure)


def search(stage: StageForecast, bundle: ModelBundle, hardware: Hardware) -> Iterator[Option]:
    """Yield options that fit, the fastest first, each measured. Raises PlaitError where the GPU's rate or the stage's memory is not known.

    `bundle`: with the fake weights of this stage.
    """
    limit = hardware.memory(stage.view.config.distributed) * SPARE
    options = sorted(_options(stage, bundle, hardware), key=lambda option: (option.step_s, -option.micro_batch))
    near = (option for option in options if option.memory.peak is not None and option.memory.peak <= limit)
    for option, _ in zip(near, range(_VERIFIED), strict=False):
        step = _step(stage, bundle, hardware, option.micro_batch, option.memory.checkpointing)
        measured = dataclasses.replace(option, memory=dataclasses.replace(option.memory, step=step))
        if measured.memory.peak is not None and measured.memory.peak <= limit:
            yield measured


def _options(stage: StageForecast, bundle: ModelBundle, hardware: Hardware) -> Iterator[Option]:
    """Yield all options, whether they fit or not, with memory between that of the smallest and the largest micro-batch."""
    config, rate = stage.view.config, hardware.flop_per_s(stage.view.config.train.precision)
    if rate is None or stage.flops is None:
        raise PlaitError(f"--search: {'the FLOPs of the stage are' if rate else 'the rate of the GPU is'} not known")
    sizes = micro_batches(config.train.global_batch, hardware.ranks)
    for kind, computed in COMPUTED.items():
        small, large = (_step(stage, bundle, hardware, size, kind) for size in (sizes[0], sizes[-1]))
        for size in sizes:
            share = (size - sizes[0]) / max(1, sizes[-1] - sizes[0])
            step = fake_step.between(small, large, share)
            count = -(-config.train.global_batch // (size * hardware.ranks))
            for layout in layouts_of(hardware.ranks, hardware.place(config.distributed).group, config.distributed.gradient_sync):
                state = memory_estimate.memory(stage.counts, layout, stage.storage, accumulating=count > 1)
                sent = memory_estimate.traffic(stage.counts, layout, stage.storage, micro_batches=count).total
                seconds = computed * stage.flops / (rate * hardware.ranks) + sent / _BYTES_PER_S
                yield Option(size, StrategyMemory(layout, kind, state, step, count > 1), seconds)


def micro_batches(global_batch: int, ranks: int) -> list[int]:
    """Return the sizes of micro-batches that divide the global batch, up to a rank's part of it."""
    return [size for size in range(1, -(-global_batch // ranks) + 1) if global_batch % size == 0]


def _step(stage: StageForecast, bundle: ModelBundle, hardware: Hardware, size: int, kind: str) -> StepMemory:
    config = stage.view.config
    if stage.plan is not None and stage.batch is not None and stage.batch.assumed is None:
        batch = stage_batch.of_data(stage.plan, bundle, hardware.ranks, micro_batch_size=size)
    else:
        batch = stage_batch.assumed(config, bundle, bundle.loss(), size, "")
    settings = config.distributed.model_copy(update={"activation_checkpointing": kind})
    return measured(bundle, batch, config.train, settings, hardware.memory(settings))
