"""Attention within the documents of packed rows on a GPU, in one call: the flash kernel for many lengths, or FlexAttention.

Documents whose positions see all before them in it are computed by torch's `varlen_attn`; blocks that attend both ways, branches and
float32 by FlexAttention (Dong et al. 2024, arXiv:2412.05496), whose mask is a function and a table of blocks of 128 x 128. Elsewhere, and
with dropout, which neither kernel has, documents.py computes one after the other. Legend: as there.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.overrides import handle_torch_function, has_torch_function

from plait.nn.document import Document, borders_of, positions_of

Kernel = Literal["each", "varlen", "flex"]
Given = tuple[Tensor, Tensor, Tensor]
"""Queries (B, H, L, E), and keys and values of as many heads or fewer."""
_BLOCK = 128
_FLASH, _TRITON = (8, 0), (7, 0)
"""The compute capabilities from which the kernels of `varlen_attn` and of FlexAttention run."""


def choose(query: Tensor, documents: Sequence[Document], dropout: float) -> Kernel:
    """Return what computes the attention of `query`: each document by itself on a CPU."""
    if query.device.type != "cuda":
        return "each"
    capability = torch.cuda.get_device_capability(query.device)
    return kernel_of(capability, computed_in(query), query.shape[-1], documents, dropout)


def kernel_of(capability: tuple[int, int], dtype: torch.dtype, width: int, documents: Sequence[Document], dropout: float) -> Kernel:
    """Return what computes attention in `dtype`, with `width` features of a head, on a GPU of this compute capability."""
    if dropout or capability < _TRITON or width < 16:
        return "each"
    plain = not any(document.blocks or document.branches for document in documents)
    flash = capability >= _FLASH and dtype in (torch.bfloat16, torch.float16) and width <= 256 and width % 8 == 0
    return "varlen" if plain and flash else "flex"


def computed_in(query: Tensor) -> torch.dtype:
    """Return the type in which attention is computed: that of autocast, where it is on."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def attention(
    kernel: Kernel, given: Given, documents: Sequence[Document], shared: dict[Any, Any], *, window: int | None, scale: float | None
) -> Tensor:
    """Return the attention (B, L, H, E) within documents; 0 at padding. `shared`: keeps what the layers of a micro-batch have in common."""
    rows, _, length, _ = given[0].shape
    seen = sum((document.stop - document.start) ** 2 for document in documents) / (rows * length)
    computed = functools.partial(by_kernel, kernel=kernel, documents=documents, shared=shared, window=window, scale=scale)
    return document_attention(*given, keys_seen=seen, computed=computed)


def document_attention(query: Tensor, key: Tensor, value: Tensor, *, keys_seen: float, computed: Callable[[Given], Tensor]) -> Tensor:
    """Return `computed` of the three. A FLOP counter knows this call: a query is multiplied with `keys_seen` keys on average."""
    if has_torch_function(given := (query, key, value)):
        counted: Tensor = handle_torch_function(document_attention, given, *given, keys_seen=keys_seen, computed=computed)
        return counted
    return computed(given)


def prepare(like: Tensor, documents: Sequence[Document], shared: dict[Any, Any], *, width: int, windows: Iterable[int | None]) -> Kernel:
    """Return what computes the attention of layers that are given `like` (B, L, D), and put into `shared` all that it needs.

    A compiled layer makes nothing of it by itself. `width`: the features of a head; `windows`: of all layers.
    """
    total, device = like.shape[:2].numel(), like.device
    kernel = choose(like[..., :width], documents, 0.0)
    if kernel != "each":
        _kept(shared, "real", lambda: _real(documents, total, device))
    if kernel == "varlen":
        _kept(shared, "starts", lambda: starts_of(documents, total, device))
    if kernel == "flex":
        for window in windows:
            _kept(shared, ("mask", window), functools.partial(block_mask, documents, total, window, device))
    return kernel


def by_kernel(
    given: Given, *, kernel: Kernel, documents: Sequence[Document], shared: dict[Any, Any], window: int | None, scale: float | None
) -> Tensor:
    """Return the attention (B, L, H, E) within documents by a kernel of a GPU; 0 at padding. `shared`: of `prepare`, or fills it."""
    rows, _, length, _ = given[0].shape
    dtype, total, device = computed_in(given[0]), rows * length, given[0].device
    query, key, value = (each.to(dtype) for each in given)
    real = _kept(shared, "real", lambda: _real(documents, total, device))
    if kernel == "varlen":
        starts, longest = _kept(shared, "starts", lambda: starts_of(documents, total, device))
        q_NHE, k_NHE, v_NHE = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
        near = (-1 if window is None else window - 1, 0)
        how: dict[str, Any] = {"scale": scale, "window_size": near, "enable_gqa": True, "max_q": longest, "max_k": longest}
        out_NHE: Any = varlen_attn(q_NHE, k_NHE, v_NHE, starts, starts, **how)
    else:
        mask = _kept(shared, ("mask", window), lambda: block_mask(documents, total, window, device))
        side_by_side = (each.transpose(0, 1).flatten(1, 2)[None] for each in (query, key, value))
        flex: Any = flex_attention if torch.compiler.is_compiling() else _compiled()
        out_NHE = flex(*side_by_side, block_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)
    out_NHE = out_NHE if real is None else out_NHE * real[:, None, None].to(dtype)
    result: Tensor = out_NHE.unflatten(0, (rows, length)).contiguous()
    return result


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Return FlexAttention compiled, for rows of any length: without that it makes all scores."""
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return compiled


def _kept(shared: dict[Any, Any], name: Any, make: Callable[[], Any]) -> Any:
    if name not in shared:
        shared[name] = make()
    return shared[name]


def _real(documents: Sequence[Document], total: int, device: torch.device) -> Tensor | None:
    """Return which positions (N,) are no padding; None: all are."""
    borders = borders_of(documents, total)
    sizes = torch.tensor([stop - start for start, stop in itertools.pairwise(borders)])
    if not sizes[::2].any():
        return None
    return _sent(torch.repeat_interleave(torch.arange(len(sizes)) % 2 == 1, sizes), device)


def starts_of(documents: Sequence[Document], total: int, device: torch.device) -> tuple[Tensor, int]:
    """Return where the sequences of `varlen_attn` begin, with the end, as int32, and the longest one. Runs of padding are sequences too."""
    starts = sorted({*borders_of(documents, total)})
    longest = max(stop - start for start, stop in itertools.pairwise(starts))
    return _sent(torch.tensor(starts, dtype=torch.int32), device), longest


def block_table(positions: dict[str, Tensor], window: int | None) -> Tensor:
    """Return which blocks of 128 queries (rows) may see a position of which blocks of 128 keys: at least those that do."""
    total = len(positions["document"])
    missing = -total % _BLOCK
    document, reach = (
        F.pad(positions[name], (0, missing), value=int(positions[name][-1])).view(-1, _BLOCK) for name in ("document", "reach")
    )
    first, last = document[:, 0], document[:, -1]
    begins = torch.arange(len(document)) * _BLOCK
    table = (first[:, None] <= last) & (first <= last[:, None]) & (begins <= reach.amax(1)[:, None])
    if window is not None and not (positions["branch"] >= 0).any():  # a branch is nearer to what precedes it than its index says
        table &= begins[:, None] - (begins + _BLOCK - 1) < window
    return table


def block_mask(documents: Sequence[Document], total: int, window: int | None, device: torch.device) -> BlockMask:
    """Return FlexAttention's mask of the documents: a function of a query and a key, and the blocks in which it may hold."""
    positions = positions_of(documents, total)
    table = block_table(positions, window)
    seen = _sent(table.sum(1, dtype=torch.int32), device)
    order = _sent(table.int().argsort(dim=1, descending=True, stable=True).int(), device)
    document, place, branch, block = (_sent(positions[name].int(), device) for name in ("document", "place", "branch", "block"))

    def visible(_: Tensor, __: Tensor, i: Tensor, j: Tensor) -> Tensor:
        ahead = (block[i] == block[j]) & (block[i] >= 0)
        beside = (branch[j] < 0) | (branch[i] == branch[j])
        shown = (document[i] == document[j]) & ((place[j] <= place[i]) | ahead) & beside
        return shown if window is None else shown & (place[i] - place[j] < window)

    return BlockMask.from_kv_blocks(seen[None, None], order[None, None], BLOCK_SIZE=_BLOCK, mask_mod=visible, seq_lengths=(total, total))


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device, without waiting for it."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value
