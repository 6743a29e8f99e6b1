"""Activation checkpointing and torch.compile, applied to a model block by block (layer by layer), and a count of recompilations.

Checkpointing: Chen et al. 2016 (arXiv 1604.06174); selective: results of matrix products and attention are kept, the rest is computed
again (Korthikanti et al. 2022, arXiv 2205.05198, section 5). A compiled block contains its checkpointing.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from plait.config.schema import Distributed
from plait.engine.flops import Meter

_EXPENSIVE = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm")
_ATTENTION = "_scaled_dot_product_"
_RECOMPILE_LIMIT = 64  # variants of one block's code, for shapes and modes; torch gives up silently after 8

Forward = Callable[..., Any]
"""The `forward` of a block, plain or compiled."""


@dataclass
class Compilations:
    """Counts recompilations: graphs that training steps compile after warm-up, which ends with the first step that compiles no graph."""

    meter: Meter | None = None
    """Counts the FLOPs of training steps (`flops.py`), compiled blocks included; None: they are not counted."""
    warm: bool = False
    """Whether a training step has compiled no graph, which ends warm-up."""
    again: int = 0
    """Recompilations so far."""
    compiled: list[str] = field(default_factory=list)
    """The graphs that the present step compiled, a line each."""

    def watch(self, name: str, plain: Forward, compiled: Forward) -> Forward:
        """Return `compiled`, a block's forward, wrapped to record under `name` each call that had to compile, with its input shapes.

        While FLOPs are counted, `plain` (the forward without the compiler) runs as well: its FLOPs are the ones counted.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            before = graphs()
            with self._counted(plain, args, kwargs):
                output = compiled(*args, **kwargs)
            if graphs() != before:
                self.compiled.append(f"{name} for {', '.join(_shapes([*args, *kwargs.values()]))}")
            return output

        return forward

    @contextlib.contextmanager
    def _counted(self, plain: Forward, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Count a pass of the plain block whose result is dropped. A compiled block that saw the count would be recompiled for it."""
        count = self.meter.counting if self.meter is not None else None
        if count is None:
            yield
            return
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            plain(*args, **kwargs)
        with count.suspended():
            yield

    def begin(self) -> None:
        """Discard the graphs compiled since the last step, by evaluations or trial passes; called before each training step."""
        self.compiled.clear()

    def end(self) -> list[str]:
        """Close a training step; returns a log line per recompilation, as "compiled again: block 3 (Layer) for (2, 1024, 512)"."""
        recompiled = [f"compiled again: {line}" for line in self.compiled] if self.warm else []
        self.warm = self.warm or not self.compiled
        self.again += len(recompiled)
        self.compiled.clear()
        return recompiled


@contextlib.contextmanager
def changed(blocks: Sequence[nn.Module], settings: Distributed, meter: Meter | None = None) -> Iterator[Compilations | None]:
    """Checkpoint and compile the blocks while the `with` lasts; yields the counter of recompilations, or None without `compile`.

    `settings`: the section `distributed`, whose `activation_checkpointing` and `compile` say what is done. `meter` counts FLOPs.
    """
    try:
        with compiling(settings):
            yield checkpoint_and_compile(blocks, settings, meter)
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)  # the method of its class is back


def checkpoint_and_compile(blocks: Sequence[nn.Module], settings: Distributed, meter: Meter | None = None) -> Compilations | None:
    """Apply the settings `activation_checkpointing` and `compile` to each block, in place; parameter names stay as they are.

    `meter` counts FLOPs in compiled blocks too. Returns the counter of recompilations, or None without `compile`. Checkpointing is of the
    non-reentrant kind, as the reentrant one fails with frozen embeddings, and restores the random generators, so that dropout is the same.
    """
    compilations = Compilations(meter) if settings.compile else None
    selective = settings.activation_checkpointing == "selective"
    if settings.compile:
        torch._dynamo.reset()  # torch 2.11 does not see that a weight was unfrozen: it would go on with graphs that give it no gradient
    for i, block in enumerate(blocks):
        block.__dict__.pop("forward", None)  # an earlier wrapping of the class's method
        if _recomputed(i, settings):
            block.forward = _checkpointed(block.forward, selective)
        if compilations is not None:
            mode = None if settings.compile_mode == "default" else settings.compile_mode
            compiled = torch.compile(block.forward, backend=settings.compile_backend, mode=mode, dynamic=settings.compile_dynamic)
            block.forward = compilations.watch(f"block {i} ({type(block).__name__})", block.forward, compiled)
    return compilations


def _recomputed(i: int, settings: Distributed) -> bool:
    """Return whether block `i` is recomputed in the backward pass."""
    kind = settings.activation_checkpointing
    one_in = {"one_in_two": 2, "one_in_n": settings.checkpoint_one_in}.get(kind) or 1
    return kind != "none" and i % one_in == 0


def _checkpointed(forward: Forward, selective: bool) -> Forward:
    if not selective:
        return functools.partial(checkpoint, forward, use_reentrant=False)
    return functools.partial(checkpoint, forward, use_reentrant=False, context_fn=_contexts)


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: object, operator: torch._ops.OpOverload, *args: object, **kwargs: object) -> CheckpointPolicy:
    """Keep results that are expensive to compute and small to keep: matrix products and attention."""
    name = operator.name() if operator.namespace == "aten" else ""
    name = name.removeprefix("aten::").partition(".")[0]
    keep = name in _EXPENSIVE or name.startswith(_ATTENTION)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def compiling(settings: Distributed) -> Iterator[None]:
    """Configure torch.compile inside the `with`: up to 64 graphs per block (shapes, modes), no graph breaks at DDP's gradient buckets.

    Each block is compiled by itself and is smaller than a bucket, so breaks gain nothing. Does nothing where `settings.compile` is off.
    """
    if not settings.compile:
        yield
        return
    with torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT, optimize_ddp=False):
        yield


def graphs() -> int:
    """Return how many graphs this process has compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _shapes(values: Sequence[Any]) -> list[str]:
    return [str(tuple(value.shape)) for value in values if isinstance(value, Tensor)] or ["no tensor"]
