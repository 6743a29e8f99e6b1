"""What is done to a model block by block: recomputing it in the backward pass, compiling it, and counting what is compiled again.

Checkpointing: Chen et al. 2016 (arXiv 1604.06174); selective: what matrix products and attention gave is kept, the rest computed again
(Korthikanti et al. 2022, arXiv 2205.05198, section 5). A compiled block contains its checkpoint: the compiler sees what is recomputed.
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
_VARIANTS = 64  # of one block's code, for shapes and modes; torch gives up silently after 8

Forward = Callable[..., Any]


@dataclass
class Compilations:
    """The graphs that training steps compiled. Warm-up lasts until a step compiles none; what is compiled after it counts as again."""

    meter: Meter | None = None
    """What counts FLOPs, those of the blocks too."""
    warm: bool = False
    again: int = 0
    _found: list[str] = field(default_factory=list)

    def watch(self, name: str, plain: Forward, compiled: Forward) -> Forward:
        """`compiled`, noting when a call of it had to compile, and for which inputs. Where FLOPs are counted, those of `plain` are."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            before = _graphs()
            with self._counted(plain, args, kwargs):
                found = compiled(*args, **kwargs)
            if _graphs() != before:
                self._found.append(f"{name} for {', '.join(_shapes([*args, *kwargs.values()]))}")
            return found

        return forward

    @contextlib.contextmanager
    def _counted(self, plain: Forward, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Count a pass of the plain block, and throw it away: a compiled one that saw the count would be compiled anew for it."""
        count = self.meter.counting if self.meter is not None else None
        if count is None:
            yield
            return
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            plain(*args, **kwargs)
        with count.aside():
            yield

    def begin(self) -> None:
        """A training step begins; what evaluations and probes compiled before it does not count."""
        self._found.clear()

    def end(self) -> list[str]:
        """A training step is done: what it compiled after warm-up, one line each."""
        found = [f"compiled again: {line}" for line in self._found] if self.warm else []
        self.warm = self.warm or not self._found
        self.again += len(found)
        self._found.clear()
        return found


def prepare(blocks: Sequence[nn.Module], settings: Distributed, meter: Meter | None = None) -> Compilations | None:
    """Apply `activation_checkpointing` and `compile` to each block, in place; parameter names stay as they are.

    Returns the count of compilations, where blocks are compiled. Checkpointing is the non-reentrant kind: the reentrant one fails with
    frozen embeddings. It puts the generators back for the second forward pass, so dropout drops the same.
    """
    compilations = Compilations(meter) if settings.compile else None
    if compilations is not None:
        torch._dynamo.reset()  # torch 2.11 does not see that a weight was unfrozen: it would go on with graphs that give it no gradient
    for i, block in enumerate(blocks):
        block.__dict__.pop("forward", None)  # what an earlier stage put over the class's own
        if _recomputed(i, settings):
            block.forward = _checkpointed(block.forward, settings.activation_checkpointing == "selective")
        if compilations is not None:
            mode = None if settings.compile_mode == "default" else settings.compile_mode
            compiled = torch.compile(block.forward, backend=settings.compile_backend, mode=mode, dynamic=settings.compile_dynamic)
            block.forward = compilations.watch(f"block {i} ({type(block).__name__})", block.forward, compiled)
    return compilations


def _recomputed(i: int, settings: Distributed) -> bool:
    kind = settings.activation_checkpointing
    one_in = {"one_in_two": 2, "one_in_n": settings.checkpoint_one_in}.get(kind) or 1
    return kind != "none" and i % one_in == 0


def _checkpointed(forward: Forward, selective: bool) -> Forward:
    if not selective:
        return functools.partial(checkpoint, forward, use_reentrant=False)
    return functools.partial(checkpoint, forward, use_reentrant=False, context_fn=_contexts)


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what is expensive to compute and small to keep: products of matrices and attention."""
    name = operator.name().removeprefix("aten::").partition(".")[0] if operator.namespace == "aten" else ""
    keep = name in _EXPENSIVE or name.startswith(_ATTENTION)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def compiling(settings: Distributed) -> Iterator[None]:
    """Torch's compiler set up for blocks: variants for many shapes, and no cutting of graphs at DDP's buckets, larger than blocks."""
    if not settings.compile:
        yield
        return
    with torch._dynamo.config.patch(recompile_limit=_VARIANTS, optimize_ddp=False):
        yield


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _shapes(values: Sequence[Any]) -> list[str]:
    return [str(tuple(value.shape)) for value in values if isinstance(value, Tensor)] or ["no tensor"]
