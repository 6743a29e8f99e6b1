"""Find what makes the steps of a stage (part of a run) slow: known causes, with overrides that cure them.

A share is that of a step's time which the cause costs, at the least as far as it can be measured, else as estimated where it is told.
"""

import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plait.config.resolved import Resolved, StageView
from plait.config.show import override
from plait.engine import flops
from plait.engine.precision import TYPES
from plait.families import registry
from plait.training.monitor.window import Window

DATA, FEATURES, RANKS, UNBALANCED = "data", "feature cache", "ranks", "unbalanced ranks"
_TOLD = 0.05
"""Share of a step from which a cause is told."""
_MUCH = 0.1
"""The same of evaluations, saves and records, and of what is estimated."""
_USUAL = 0.02
"""Share of a step that the proposed interval of evaluations, saves or records takes."""
_SLOW_SOURCE = 3.0
"""A source whose samples take so many times as long as those of the others is named."""
_SLOW_RANK = 1.15
"""A rank whose passes take so many times as long as the median rank's."""
_PADDING = 0.2
_ROW = 1024
"""Tokens of a row that is proposed, or a multiple of them."""
_SMALL_MICRO_BATCH, _MANY_MICRO_BATCHES = 4, 4
_ROOM = 0.5
"""Share of a GPU's memory below which there is room for larger micro-batches, or for activations that are not computed again."""
_REACHED = 0.35
"""Share of a GPU's peak rate that is well reached."""
_WAIT = 0.15
"""Share of a GPU's steps below which the host does not wait for it."""
_UPDATE = 0.3
_HOST = 0.4
"""Share of a CPU's steps that calls of torch take however few values they are about, from which it is told."""
_GAIN, _PRODUCTS = 2.0, 0.5
"""Products that are so many times as fast in bfloat16, and take this share of a CPU's steps, are told: the rest gets slower."""


@dataclass(frozen=True)
class Cause:
    """A cause of slow steps. `what`: a word or two; `share`: of a step's time that it costs; `cure`: an override, or ""."""

    what: str
    share: float
    text: str
    cure: str = ""


@dataclass(frozen=True)
class Stage:
    """The settings of the stage, with overrides that change them."""

    resolved: Resolved
    view: StageView

    def override(self, key: str, value: Any) -> str:
        """Return the override that sets `key` for this stage."""
        return override(self.resolved, self.view, key, value)


def causes(window: Window, view: StageView, resolved: Resolved) -> list[Cause]:
    """Return the causes that are found in a window of a stage's steps, the costliest first."""
    stage = Stage(resolved, view)
    found = [
        *_data(window, stage),
        *_ranks(window, stage),
        *_passes(window, stage),
        *_device(window, stage),
        *_between(window, stage),
        *_update(window, stage),
    ]
    return sorted((cause for cause in found if cause.share >= _TOLD), key=lambda cause: -cause.share)


def _data(window: Window, stage: Stage) -> Iterator[Cause]:
    """Say why steps wait for their data: a slow source, the feature cache, or too few workers."""
    data, share = stage.view.config.data, window.share("data")
    if share < _TOLD:
        return
    reading = sum(seconds * samples for seconds, samples in window.prepare.values())
    waits = f"steps wait for their data {window.seconds['data']:.3g} s of {window.total:.3g} s"
    if data.feature_cache != "off" and window.features_read and window.collate > reading:
        read = f"{window.features_read:.0%} of the pictures are read from the feature cache, which takes {window.collate:.3g} s a step"
        yield Cause(
            FEATURES, share, f"{waits}: {read}", stage.override("data.feature_cache", "auto" if data.feature_cache == "on" else "off")
        )
        return
    cure, why = _workers(window, stage, reading + window.collate)
    slow = max(window.prepare, key=lambda name: window.prepare[name][0], default=None)
    others = [seconds for name, (seconds, _) in window.prepare.items() if name != slow]
    if slow is not None and others and window.prepare[slow][0] >= _SLOW_SOURCE * max(others):
        each, samples = window.prepare[slow]
        part = each * samples / reading if reading else 0.0
        why = f"a sample of {slow} takes {each:.3g} s to read and encode, others {max(others):.3g} s at the most: {part:.0%} of all{why}"
        yield Cause(f"source {slow}", share, f"{waits}: {why}", cure)
        return
    each = sum(samples for _, samples in window.prepare.values())
    mean = f"a sample takes {reading / each:.3g} s to read and encode" if each else "nothing is read ahead"
    yield Cause(DATA, share, f"{waits}: {mean}{why}", cure)


def _workers(window: Window, stage: Stage, work: float) -> tuple[str, str]:
    """Return an override that prepares `work` seconds a step beside the step, and what is to be said of it."""
    data, cores = stage.view.config.data, _cores()
    busy = max(1e-9, window.total - window.seconds["data"])
    needed = max(1, math.ceil(1.25 * work / busy))
    have = data.workers
    if have < needed <= 4 * cores:
        kind = "" if data.worker_kind == "processes" or needed <= 2 else f" {stage.override('data.worker_kind', 'processes')}"
        return f"{stage.override('data.workers', needed)}{kind}", f" ({have} worker{'s' * (have != 1)}, {cores} cores)"
    if data.worker_kind == "threads" and have:
        return stage.override("data.worker_kind", "processes"), f" ({have} threads share one Python lock)"
    return stage.override("data.prefetch", 2 * max(2, data.prefetch)), f" ({have} workers; what they wait for is slower than the model)"


def _cores() -> int:
    """Return the cores of this rank, which shares the machine's with its others."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _ranks(window: Window, stage: Stage) -> Iterator[Cause]:
    """Say which rank the others wait for: by its passes, its data, or how much it is given."""
    if not window.ranks:
        return
    positions = window.ranks["positions"]
    for name, what in (("forward", "its forward passes take"), ("data", "it waits for its data")):
        seconds = window.ranks[name]
        slow, median = max(range(len(seconds)), key=seconds.__getitem__), _median_of_others(seconds)
        extra = seconds[slow] - median
        if seconds[slow] < _SLOW_RANK * median:
            continue
        times = extra / median * (window.seconds["forward"] + window.seconds["backward"]) if name == "forward" and median else extra
        share = min(1.0, times / max(window.total, 1e-9)) if name == "data" else times / max(window.total, times)
        more = positions[slow] / _median_of_others(positions) if min(positions) > 0 else 1.0
        text = f"the others wait for rank {slow}: {what} {seconds[slow]:.3g} s a step, those of the others {median:.3g} s"
        if name == "forward" and more >= _SLOW_RANK:
            cure = _balanced(window, stage)
            yield Cause(UNBALANCED, share, f"{text}, as it has {more:.2g} times their positions", cure)
        else:
            yield Cause(RANKS, share, f"{text}; look at what else runs on its machine, its clock and its disk (`plait doctor` there)")


def _balanced(window: Window, stage: Stage) -> str:
    """Return overrides that give ranks like work; where rows are packed already, samples longer than a row are what is left to cut."""
    data = stage.view.config.data
    if data.pack_tokens is None:
        return _packed(window, stage) or stage.override("data.pad", "to_128")
    return "" if (data.max_tokens or math.inf) <= data.pack_tokens else stage.override("data.max_tokens", data.pack_tokens)


def _packed(window: Window, stage: Stage) -> str:
    """Return overrides that pack rows to a number of tokens, with ranks of like work; "" where the run cannot do that."""
    data = stage.view.config.data
    if not _can_pack(stage) or any(entry.options.get("stream") for entry in data.train):
        return ""
    of_a_row = max(window.ranks["positions"]) / max(1, window.micro_batches)
    tokens = max(data.max_tokens or 0, _ROW * math.ceil(of_a_row / _ROW))
    return " ".join([*_pad_none(stage), stage.override("data.pack_tokens", tokens)])


def _can_pack(stage: Stage) -> bool:
    """Return whether the rows of the stage's family can be packed."""
    return registry.load(stage.view.config.family).token_lengths is not None


def _pad_none(stage: Stage) -> list[str]:
    return [] if stage.view.config.data.pad == "none" else [stage.override("data.pad", "none")]


def _median_of_others(values: Sequence[float]) -> float:
    return statistics.median(sorted(values)[:-1])


def _passes(window: Window, stage: Stage) -> Iterator[Cause]:
    """Say what copies and passes do in vain: padding, masks, compiling again, small micro-batches, computing again."""
    config = stage.view.config
    share = window.passes / window.total if window.total else 0.0
    copied = f"batches take {window.seconds['copy']:.3g} s of a step to be copied to the device"
    yield Cause("copy", window.share("copy"), f"{copied}: does the family's collate send more than it needs?")
    if window.padding >= _PADDING:
        shorter = {"to_max": "longest", "to_128": "longest"}.get(config.data.pad)
        shorter = "none" if _can_pack(stage) and config.data.pad != "none" else shorter
        cure = stage.override("data.pad", shorter) if shorter else stage.override("train.micro_batch", max(1, window.micro_batch // 2))
        text = f"{window.padding:.0%} of the positions that are computed are padding (data.pad={config.data.pad})"
        yield Cause("padding", window.padding * share, text, cure)
    if window.masked >= _MUCH:
        text = (
            f"{window.masked:.0%} of the FLOPs are those of attention with a mask that is a tensor, for which there are no fast kernels: "
            "its cost grows with the square of the length (half of it)"
        )
        length = config.data.max_tokens
        cure = stage.override("data.max_tokens", length // 2) if length else ""
        cure = stage.override("data.pad", "none") if _can_pack(stage) and config.data.pad != "none" else cure
        yield Cause("dense masks", window.masked * share / 2, text, cure)
    if window.graphs:
        text = f"{window.graphs} graphs were compiled in {window.steps:,} steps, for new shapes"
        key, value = ("compile_dynamic", True) if config.distributed.compile_dynamic is not True else ("compile", False)
        yield Cause("compiling", window.recompiling / window.total, text, stage.override(f"distributed.{key}", value))
    room = window.memory is None or window.memory < _ROOM
    if room and window.micro_batch <= _SMALL_MICRO_BATCH and window.micro_batches >= _MANY_MICRO_BATCHES:
        size = min(window.micro_batch * window.micro_batches, max(16, 4 * window.micro_batch))
        packed, most = config.data.pack_tokens, config.train.micro_batch
        of_tokens = packed is not None and (most is None or window.micro_batch < most)
        cure = stage.override("data.pack_tokens", 4 * (packed or 0)) if of_tokens else stage.override("train.micro_batch", size)
        text = f"a step is cut into {window.micro_batches} micro-batches of {window.micro_batch}, too small for the device (half of both)"
        yield Cause("micro-batches", share / 2, text, cure)
    kind = config.distributed.activation_checkpointing
    if room and kind != "none":
        part = {"full": 1.0, "selective": 0.3, "one_in_two": 0.5}.get(kind, 1 / (config.distributed.checkpoint_one_in or 2))
        text = f"activations are computed again in the backward pass (activation_checkpointing={kind}), and there may be room for them"
        again = part * window.seconds["forward"] if window.device == "cpu" else part * window.passes / 4
        yield Cause("recomputing", again / window.total, text, stage.override("distributed.activation_checkpointing", "none"))


def _device(window: Window, stage: Stage) -> Iterator[Cause]:
    """Say where a device is not used as it could be: products in float32, or a host that is too slow for it."""
    yield from _precision(window, stage)
    share = window.passes / window.total if window.total else 0.0
    if window.compiled:
        return
    cure = stage.override("distributed.compile", True)
    if window.device == "cpu":
        calls = window.calls or 0
        called = calls * (window.call_s or 0.0)
        part = min(share, called / window.total) if window.total else 0.0
        text = f"a step calls torch {calls:,} times in its forward passes, which takes {called:.2g} s however small tensors are"
        if part >= _HOST:
            yield Cause("host", part, f"{text} ({window.call_s:.2g} s each, with its backward pass, as measured here)", cure)
    elif window.passes and window.seconds["update"] < _WAIT * window.passes and (window.mfu or 0.0) < _REACHED / 2:
        text = "the GPU waits for Python: it is done with each pass almost as soon as the last kernel is launched"
        yield Cause("host", share * (1 - (window.mfu or 0.0) / _REACHED) / 2, text, cure)


def _precision(window: Window, stage: Stage) -> Iterator[Cause]:
    """Say that products are in float32 where bfloat16 is faster: a GPU's by its data sheet, a CPU's as it was measured."""
    precision = stage.view.config.train.precision
    share = window.passes / window.total if window.total else 0.0
    cure = stage.override("train.precision", "bf16")
    half, own = (flops.peak(window.device, TYPES[name].products) for name in ("bf16", precision))
    if half and own and half > 2 * own:
        text = f"products are in float32, of {own / 1e12:.3g} TFLOP/s at the most; bfloat16 has {half / 1e12:.3g} (half of the passes)"
        yield Cause("precision", share / 2, text, cure)
    gain, rate = window.bf16_gain or 0.0, window.product_tflop_per_s
    if window.device == "cpu" and precision == "fp32" and gain >= _GAIN and rate and window.flops:
        products = min(share, window.flops / (rate * 1e12) / window.total)
        text = f"products are in float32 and take {products:.0%} of a step at {rate:.3g} TFLOP/s; bfloat16 is {gain:.2g} times as fast"
        if products >= _PRODUCTS:
            yield Cause("precision", products * (1 - 1 / gain), f"{text} (both as measured here)", cure)


def _between(window: Window, stage: Stage) -> Iterator[Cause]:
    """Say what happens between steps that takes much of the time: evaluations, saves, records and callbacks."""
    config = stage.view.config
    evaluate, save, record = (window.share(part) for part in ("evaluate", "save", "record"))
    if evaluate >= _MUCH:
        looks = [(entry.every_steps, i) for i, entry in enumerate(config.evaluate) if entry.every_steps is not None]
        text = f"evaluations take {window.seconds['evaluate']:.3g} s for each step of {window.total - window.seconds['evaluate']:.3g} s"
        every, i = min(looks, default=(0, 0))
        cure = stage.override(f"evaluate.{i}.every_steps", _rarer(every, evaluate)) if looks else stage.override("guard.blindness", False)
        yield Cause("evaluation", evaluate, text, cure)
    if save >= _MUCH:
        every = config.checkpoint.every_steps or window.steps
        text = f"saving takes {save:.0%} of the time, at a checkpoint every {every:,} steps"
        text += "" if config.checkpoint.async_save else ", written while training waits (checkpoint.async_save)"
        yield Cause("checkpoints", save, text, stage.override("checkpoint.every_steps", _rarer(every, save)))
    if record >= _MUCH:
        every = config.track.every_steps
        text = f"metrics, callbacks and checks after each step take {window.seconds['record']:.3g} s of {window.total:.3g} s"
        yield Cause("recording", record, text, stage.override("track.every_steps", _rarer(every, record)))


def _rarer(every: int, share: float) -> int:
    """Return an interval at which what takes this share of the time takes 2 % of it."""
    wanted = every * share / (1 - share) * (1 - _USUAL) / _USUAL
    step: int = 10 ** max(0, math.floor(math.log10(wanted)) - 1)
    return max(every + 1, math.ceil(wanted / step) * step)


def _update(window: Window, stage: Stage) -> Iterator[Cause]:
    """Say where the update takes much of a step: moments on the host, averages, or steps of few samples. A GPU's is not known apart."""
    config, share = stage.view.config, window.share("update")
    if config.optim.offload and (share >= _MUCH or window.device != "cpu"):
        text = f"the update is computed in the host's memory (optim.offload) and takes {share:.0%} of the step at the most"
        yield Cause("offload", share, text, stage.override("optim.offload", False))
    elif window.device == "cpu" and share >= _UPDATE:
        batch: Any = config.train.global_batch
        text = (
            f"norms, update and averages take {share:.0%} of the step, as a step has few samples ({batch}); a larger one learns otherwise"
        )
        yield Cause("update", share, text, stage.override("train.global_batch", 2 * batch))
