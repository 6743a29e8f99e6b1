"""Run a micro-batch of a stage on tensors without memory, and measure the bytes that it would hold.

The model, its loss, mixed precision and activation checkpointing are the run's own; only the weights are fake (shape and type alone), and
what is computed of them. So the bytes are those of the same operators on a CPU, whatever the size. A GPU's attention kernels and its
workspaces may differ by some per cent.
"""

import contextlib
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plait.assembly.model import ModelBundle
from plait.config.schema import Distributed
from plait.engine import blocks
from plait.engine.flops import Flops
from plait.engine.loss import Batch, Loss
from plait.engine.parallel import gathering
from plait.engine.precision import TYPES, autocast
from plait.errors import PlaitError

_CPU = torch.device("cpu")
_LOGITS = ("token_cross_entropy", "weighted_cross_entropy")
"""Functions of `plait.nn` that compute logits, chunk by chunk."""


_UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException, UnsupportedOperatorException)
"""Raised where a model reads values that it computed, or uses an operator that cannot do without them."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes that forward and backward of one micro-batch hold besides weights, moments and averages."""

    activations: int
    """Held when the forward pass ends: what the backward pass waits for, with the 16-bit copies of weights that autocast keeps."""
    logits: int
    """The most that the loss takes at a time for logits, besides what is held before."""
    gradients: int
    """Of all that trains."""
    peak: int
    """The most at a time: activations, gradients that are there by then, and what is computed meanwhile."""
    transient: int
    """The most at a time without gradients: what comes on top of a state whose gradients are held."""
    sharded: int
    """The same where weights are sharded: the matrices of blocks are gathered in 16 bits, so that nothing makes copies of them."""
    batch: int
    """The tensors of the micro-batch itself."""


class Live(TorchDispatchMode):
    """Context manager: counts the bytes of tensors that operators made inside it and that are still there.

    `held`: tensors that are there before and do not count; `gathered`: those of them whose casts are no memory where weights are sharded.
    A boolean mask of real values indexes fake ones by its true positions, as the shape of the result depends on them.
    """

    def __init__(self, held: Iterable[Tensor], gathered: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._known = {tensor.untyped_storage()._cdata for tensor in held}
        self._gathered = {tensor.untyped_storage()._cdata for tensor in gathered}
        self._gradients: set[int] = set()
        self._casts: set[int] = set()
        self.now = self.gradients = self.casts = self.peak = self.transient = self.sharded = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run an operator and count what it returns, unless that is memory counted before."""
        if func is torch.ops.aten.index.Tensor and isinstance(args[0], FakeTensor):
            args = (args[0], [known for index in args[1] for known in _positions(index)])
        run = _grouped_mm if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16 else func
        out = run(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._gathered:
            self._casts.add(out.untyped_storage()._cdata)
            self.casts += out.untyped_storage().nbytes()
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._add(value)
        return out

    def is_gradient(self, parameter: Tensor) -> None:
        """Count the memory of a parameter's gradient as such; called when it is complete."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if storage._cdata in self._known and storage._cdata not in self._gradients:
            self._gradients.add(storage._cdata)
            self.gradients += storage.nbytes()

    def _add(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak, self.transient = max(self.peak, self.now), max(self.transient, self.now - self.gradients)
            self.sharded = max(self.sharded, self.now - self.gradients - self.casts)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.now -= size
        if storage in self._gradients:
            self._gradients.discard(storage)
            self.gradients -= size
        if storage in self._casts:
            self._casts.discard(storage)
            self.casts -= size


def _grouped_mm(a: Tensor, b: Tensor, *others: Any, **named: Any) -> Tensor:
    """Return what a grouped product of other types than bfloat16 returns, which torch runs on a CPU and does not know for fake tensors."""
    product: Tensor = torch.ops.aten._grouped_mm.default(a.to(torch.bfloat16), b.to(torch.bfloat16), *others, **named)
    return product.to(a.dtype)


def _positions(index: Tensor | None) -> Sequence[Tensor | None]:
    """Return what stands for an index: of a mask whose values are known, the positions along each of its dimensions."""
    masks = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
    return index.nonzero(as_tuple=True) if masks and index is not None else [index]


class _Logits(TorchFunctionMode):
    """Context manager: notes the most that functions which compute logits take, besides what is held before."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live, self.most = live, 0

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the function, and see what it takes if it is one of those."""
        if getattr(func, "__name__", "") not in _LOGITS:
            return func(*args, **(kwargs or {}))
        before, peak = self._live.now, self._live.peak
        self._live.peak = before
        out = func(*args, **(kwargs or {}))
        self.most = max(self.most, self._live.peak - before)
        self._live.peak = max(peak, self._live.peak)
        return out


def fake_weights(bundle: ModelBundle, trained: Collection[str], ever: set[str], precision: str) -> None:
    """Give the model on the meta device fake weights, in place, in the types of a stage. `trained`, `ever`: names that train, or did."""
    model, mode = bundle.model, FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[int, nn.Parameter] = {}
    for name, value in list(model.named_parameters(remove_duplicate=False)):
        owner, _, last = name.rpartition(".")
        trains = name in trained or (id(value) in fakes and fakes[id(value)].requires_grad)
        dtype = (TYPES[precision].trained if name in ever else TYPES[precision].frozen) if value.is_floating_point() else value.dtype
        made = FakeTensor(mode, torch.empty(value.shape, dtype=dtype, device="meta"), _CPU)
        fake = fakes.setdefault(id(value), nn.Parameter(made, requires_grad=False)).requires_grad_(trains)
        setattr(model.get_submodule(owner), last, fake)
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        if buffer.is_meta:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, FakeTensor(mode, torch.empty_like(buffer), _CPU))


def measure(bundle: ModelBundle, loss: Loss, batch: Batch, precision: str, settings: Distributed, *, casts_kept: bool) -> StepMemory:
    """Run forward and backward of the micro-batch `batch` on the fake weights of `bundle`, and return what that holds.

    `settings`: the section `distributed`, of which activation checkpointing counts; nothing is compiled. `casts_kept`: blocks that
    are recomputed use 16-bit copies of the forward pass. Raises PlaitError for a model whose operators depend on values that it computes.
    """
    model, parameters = bundle.model.train(), [value for value in bundle.model.parameters() if value.requires_grad]
    given = [value for value in batch.values() if isinstance(value, Tensor)]
    live = Live([*bundle.model.parameters(), *bundle.model.buffers(), *given], _gathered(bundle, precision))
    hooks = [value.register_post_accumulate_grad_hook(live.is_gradient) for value in parameters]
    try:
        rest = bundle.family.recomputed(bundle.model)
        changed = blocks.changed(bundle.blocks, settings.model_copy(update={"compile": False}), recomputed=rest)
        with _known(), changed, _Logits(live) as logits:
            with blocks.cast_once(precision) if casts_kept and settings.activation_checkpointing != "none" else contextlib.nullcontext():
                with live, autocast(precision, _CPU):
                    sums = loss.sums(model, batch)
                activations = live.now
                with live:
                    torch.autograd.backward([value for value in sums.values() if value.requires_grad])
                del sums
        gradients = live.gradients
    finally:
        for hook in hooks:
            hook.remove()
        for value in parameters:
            value.grad = None
    peaks = live.peak, live.transient, live.sharded
    return StepMemory(activations, logits.most, gradients, *peaks, sum(value.nbytes for value in given))


def _gathered(bundle: ModelBundle, precision: str) -> Iterator[Tensor]:
    """Yield the weights that are gathered in 16 bits where blocks are sharded, of those that train."""
    for block in bundle.blocks if TYPES[precision].products != TYPES[precision].trained else ():
        parameters = {name: value for name, value in block.named_parameters() if value.requires_grad}
        yield from (parameters[name] for name in gathering.matrices(block, parameters))


def between(small: StepMemory, large: StepMemory, share: float) -> StepMemory:
    """Return the memory of a micro-batch on the line through those of two others.

    `share`: where it is, 0 for `small`, 1 for `large`, above 1 for one that is larger than both.
    """
    values = {name: round(value + share * (getattr(large, name) - value)) for name, value in vars(small).items()}
    return StepMemory(**values)


def flops(bundle: ModelBundle, loss: Loss, batch: Batch, precision: str) -> float:
    """Return the FLOPs of forward and backward of a micro-batch, as the run counts them.

    Taken is a forward pass on fake weights. Raises PlaitError for a model whose operators depend on values that it computes.
    """
    with _known(), Flops() as counted, Live([]), autocast(precision, _CPU):
        loss.sums(bundle.model.train(), batch)
    total: float = counted.total
    return total


@contextlib.contextmanager
def _known() -> Iterator[None]:
    """Turn the error of an operator that needs values into one line."""
    try:
        yield
    except _UNKNOWN as error:
        raise PlaitError(f"the model cannot be run without values, which it takes in {error} ({type(error).__name__})") from error
