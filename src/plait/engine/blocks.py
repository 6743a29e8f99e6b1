"""Activation checkpointing, torch.compile and the dtype of what goes through, applied to a model block by block (layer by layer).

Also counts of recompilations and FLOPs.

Checkpointing: Chen et al. 2016 (arXiv 1604.06174); selective: results of matrix products and attention are kept, the rest is computed
again (Korthikanti et al. 2022, arXiv 2205.05198, section 5). A compiled block contains its checkpointing.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.hooks import RemovableHandle

from plait.config.schema import Distributed, RunConfig
from plait.engine.compilation.cache import kept_below
from plait.engine.compilation.clock import CompileClock
from plait.engine.flops import MOST_SHAPES, Flops, Meter
from plait.engine.parallel import strategy
from plait.engine.parallel.distributed import Ranks
from plait.engine.precision import TYPES

log = logging.getLogger(__name__)

_EXPENSIVE = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm")
_ATTENTION = ("_scaled_dot_product_", "plait::attention_within_documents", "torch_attn::_varlen_attn", "flex_attention")
_SETTINGS = (int, float, str, bool, tuple, type(None))
_CASTS_FRACTION = 0.1
"""Part of a device's memory that kept casts may take through a backward pass: to cast again takes 2 % of the time of 4 samples of 4B."""
_RECOMPILE_LIMIT = 64  # variants of one block's code, for shapes and modes; torch gives up silently after 8

Forward = Callable[..., Any]
"""The `forward` of a block, plain or compiled."""


class BlockFlops:
    """FLOPs of blocks' calls by kind of block and by what they are given: each found once, on tensors without values.

    No kernel runs and nothing random is drawn. Blocks are of one kind if they differ in the values of their weights alone.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[float, float, int]] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def of(self, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, float, int]:
        """Return (FLOPs, those of attention with a mask, functions called), for `Flops.add`, of a call with its backward pass.

        Raises RuntimeError for a block that reads values that it computes.
        """
        name = (torch.is_grad_enabled(), *_kind(block), _given(args), _given(kwargs))
        if (cost := self._known.pop(name, None)) is None:
            with self._fake, _unsaved(), _uncached():
                args, kwargs = _without_values(args), _without_values(kwargs)
                with _Shapes() as count:
                    type(block).forward(block, *args, **kwargs)
            cost = (count.total, count.masked, count.calls)
        self._known[name] = cost
        if len(self._known) > MOST_SHAPES:
            del self._known[next(iter(self._known))]
        return cost


class _Shapes(Flops):
    """Counts on tensors without values, where kernels that only a GPU has cannot run: what they return has its shape alone."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the function on shapes, and count it."""
        if "computed" in (kwargs := dict(kwargs or {})):
            kwargs["computed"] = _attended
        return super().__torch_function__(func, types, args, kwargs)


def _attended(given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    query, key, value = given
    rows, heads, length, _ = query.shape
    return (query.sum() + key.sum() + value.sum()).expand(rows, length, heads, value.shape[-1])


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """Return what a block's FLOPs may depend on: classes, settings and weights of its modules, but not the number of the layer."""
    modules = []
    for name, module in block.named_modules():
        settings = [(key, repr(value)) for key, value in vars(module).items() if isinstance(value, _SETTINGS) and key != "layer_idx"]
        modules.append((name, type(module), *settings))
    return (*modules, *((name, value.shape, value.requires_grad) for name, value in block.named_parameters()))


def _given(value: Any) -> Any:
    """Return what FLOPs may depend on of an argument: shapes, which tensors want a gradient, and settings."""
    if isinstance(value, Tensor):
        return (value.shape, value.requires_grad)
    if isinstance(value, Mapping):
        return tuple((str(key), _given(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_given, value))
    if is_dataclass(value):
        return _given(vars(value))
    return repr(value) if isinstance(value, _SETTINGS) else type(value)


def _without_values(value: Any) -> Any:
    """Return an argument with tensors without values, in containers of its own, so that none of them is kept in the caller's."""
    if isinstance(value, Tensor):
        empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        return empty.requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _without_values(one) for key, one in value.items()}
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(map(_without_values, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **_without_values(vars(value)))
    return value


def _unsaved() -> contextlib.AbstractContextManager[None]:
    """Return a context in which nothing is kept for a backward pass, nor shown to the hooks of others."""
    hooks: contextlib.AbstractContextManager[None] = torch.autograd.graph.saved_tensors_hooks(_forgotten, _forgotten)
    return hooks


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Keep autocast from remembering copies of weights without values, which the pass that follows would compute with."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _forgotten(_: Tensor) -> Any:
    return None


@contextlib.contextmanager
def suspended(count: Flops) -> Iterator[None]:
    """Stop counting while the `with` lasts. Code inside sees no torch function mode, so a compiled block is not recompiled for it."""
    count.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # torch's
    try:
        yield
    finally:
        count.__enter__()  # type: ignore[no-untyped-call]  # torch's


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

    costs: BlockFlops = field(default_factory=BlockFlops)
    """Knows the FLOPs of blocks that are compiled."""
    clock: CompileClock = field(default_factory=CompileClock)
    """Counts the seconds that compiling takes."""

    def watch(self, name: str, block: nn.Module, compiled: Forward) -> Forward:
        """Return `compiled`, a block's forward, wrapped to record under `name` each call that had to compile, with its input shapes.

        While FLOPs are counted, those of the class's own forward, without the compiler and checkpointing, are the ones counted.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            before = graphs()
            with self._counted(name, block, args, kwargs):
                output = compiled(*args, **kwargs)
            if graphs() != before:
                self.compiled.append(f"{name} for {', '.join(_shapes([*args, *kwargs.values()]))}")
            return output

        return forward

    @contextlib.contextmanager
    def _counted(self, name: str, block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Count the FLOPs of a block's call, and stop counting while the compiled block runs, which would be recompiled for a counter."""
        meter = self.meter
        if meter is None or (count := meter.counting) is None:
            yield
            return
        with suspended(count):
            if not meter.blind:
                try:
                    count.add(*self.costs.of(block, args, kwargs))
                except RuntimeError as error:  # torch's, for an operator that cannot do without values
                    meter.blind = True
                    log.info(f"tflop_per_s and mfu are not told: {name} reads values that it computes ({type(error).__name__}: {error})")
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

    def figures(self, step: int) -> dict[str, float]:
        """Close the training step that ended at `step`: log its recompilations, and return what its row tells of compiling."""
        for line in self.end():
            log.info(f"step {step}: {line}")
        return {"recompiles": self.again, "compile_s": round(self.clock.seconds, 3)}


@contextlib.contextmanager
def changed(
    blocks: Sequence[nn.Module],
    settings: Distributed,
    meter: Meter | None = None,
    cache: Path | None = None,
    recomputed: Sequence[nn.Module] = (),
) -> Iterator[Compilations | None]:
    """Checkpoint and compile the blocks while the `with` lasts; yields the counter of recompilations, or None without `compile`.

    `settings`: the section `distributed`, whose `activation_checkpointing` and `compile` say what is done. `meter` counts FLOPs. `cache`:
    the folder below which is kept what is compiled; None: where torch keeps it. `recomputed`: modules that are checkpointed as the blocks
    are, and not compiled.
    """
    compilations = None
    fused = settings.compile and settings.compile_backend == "inductor"
    try:
        with kept_below(cache) if fused and cache is not None else contextlib.nullcontext(), compiling(settings):
            checkpoint_and_compile(recomputed, settings.model_copy(update={"compile": False}))
            yield (compilations := checkpoint_and_compile(blocks, settings, meter))
    finally:
        if compilations is not None:
            compilations.clock.stop()
        for block in (*blocks, *recomputed):
            block.__dict__.pop("forward", None)  # the method of its class is back


def checkpoint_and_compile(blocks: Sequence[nn.Module], settings: Distributed, meter: Meter | None = None) -> Compilations | None:
    """Apply the settings `activation_checkpointing` and `compile` to each block, in place; parameter names stay as they are.

    `meter` counts FLOPs in compiled blocks too. Returns the counter of recompilations, or None without `compile`. Checkpointing is of the
    non-reentrant kind, as the reentrant one fails with frozen embeddings, and restores the random generators, so that dropout is the same.
    """
    assert settings.compile != "auto", "compilation/choice.py decides"
    compilations = Compilations(meter) if settings.compile else None
    selective = settings.activation_checkpointing == "selective"
    if compilations is not None:
        torch._dynamo.reset()  # torch 2.11 does not see that a weight was unfrozen: it would go on with graphs that give it no gradient
        compilations.clock.start()  # the reset ends those of before
    for i, block in enumerate(blocks):
        block.__dict__.pop("forward", None)  # an earlier wrapping of the class's method
        if _recomputed(i, settings):
            block.forward = _checkpointed(block.forward, selective)
        if compilations is not None:
            mode = None if settings.compile_mode == "default" else settings.compile_mode
            compiled = torch.compile(block.forward, backend=settings.compile_backend, mode=mode, dynamic=settings.compile_dynamic)
            block.forward = compilations.watch(f"block {i} ({type(block).__name__})", block, compiled)
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
    name = operator.name().removeprefix("aten::").partition(".")[0]
    keep = name in _EXPENSIVE or name.startswith(_ATTENTION)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def residual_stream(blocks: Sequence[nn.Module], dtype: str) -> Iterator[None]:
    """Have blocks get their inputs as `dtype`, a `train.residual_dtype`, while the `with` lasts, as `cast_inputs` does."""
    handles = cast_inputs(blocks, dtype)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cast_inputs(blocks: Sequence[nn.Module], dtype: str) -> list[RemovableHandle]:
    """Cast what each block is given to `dtype`, a `train.residual_dtype`, under autocast; returns what removes that again.

    What goes through the blocks, and what they are told of positions, is float32 where embeddings train; products then give 16 bits, and
    their sum with the stream is float32 again. Masks stay as they are. With "float32" nothing is cast.
    """
    if dtype == "float32":
        return []
    hook = functools.partial(_cast_given, dtype=getattr(torch, dtype))
    return [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]


def _cast_given(block: nn.Module, args: Any, kwargs: dict[str, Any], *, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    return _cast(args, dtype), {name: value if "mask" in name else _cast(value, dtype) for name, value in kwargs.items()}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return float32 tensors, and those in tuples, as `dtype` where autocast is on; anything else as it is."""
    if type(value) is tuple:
        return tuple(_cast(one, dtype) for one in value)
    wide = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(dtype) if wide and torch.is_autocast_enabled(value.device.type) else value


def keeps_casts(settings: Distributed, model: nn.Module, memory: float) -> bool:
    """Return whether 16-bit copies of weights that train are kept past a forward pass: where that makes no peak higher, or little.

    Where no block is recomputed, a backward pass holds those that it needs anyhow. `memory`: of the device, in bytes.
    """
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return settings.activation_checkpointing == "none" or 2 * trained <= _CASTS_FRACTION * memory


def kept_casts(config: RunConfig, model: nn.Module, ranks: Ranks) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the passes of a step cast each weight once, unless the copies take too much."""
    keeps = keeps_casts(config.distributed, model, strategy.memory_of(config.distributed, ranks))
    return cast_once(config.train.precision) if keeps else contextlib.nullcontext()


@contextlib.contextmanager
def cast_once(precision: str) -> Iterator[None]:
    """Keep autocast's 16-bit copies of weights that train over all passes inside, so that each weight is cast once.

    Else they go with each forward pass, and blocks that are recomputed cast again. Weights must not change inside. Backward runs in this
    thread: autocasts that are open are counted by thread, and where one ends as a thread's last, the copies of all threads go.
    """
    if TYPES[precision].products == TYPES[precision].trained:
        yield
        return
    torch.autocast_increment_nesting()
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


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
