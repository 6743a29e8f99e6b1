"""Find units whose weights get no gradient from any sample of a batch: dead and saturated ones.

A unit is a row of a linear layer's weight. Where the function behind it is flat at every position (ReLU or GELU far below 0, tanh or
sigmoid far from it), the row's gradient is zero. Looked at are some columns of each row, between the gradients and the update of a step.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from plait.engine.parallel.distributed import local

_COLUMNS, _ROWS, _FEWEST_ROWS = 8, 128, 8
"""Columns and rows of a weight that are looked at, at the most, and rows of one that is looked at at the least."""
_OF_LAYER, _OF_ALL = 1e-4, 1e-7
"""A unit gets no gradient whose norm is below this share of the mean of its layer's, or of the layer with the largest mean."""
_NOT_UNITS = (".experts.", "lm_head")
"""Parts of names of layers that are left out: experts that no token chose, and classes, of which most are in no batch."""


class UnitGradients:
    """Looks at the gradients of linear layers that `optimizer` trains: `begin`, a step, `figures`; of shards, at this rank's rows."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        linear = _layers(model)
        trained = [(group["component"], value) for group in optimizer.param_groups for value in group["params"] if id(value) in linear]
        self.optimizer, self.trained, self.names = optimizer, trained, linear
        self._hook: RemovableHandle | None = None
        self._shares: tuple[list[int], Tensor] | None = None

    def begin(self, timed: Callable[[Callable[[], None]], None]) -> None:
        """Look at the step that follows. `timed` is given what is to be done in its course, and does it."""
        self.end()
        self._hook = self.optimizer.register_step_pre_hook(lambda *_: timed(self._look))

    def end(self) -> None:
        """Stop looking; a second call does nothing."""
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._shares = None, None

    def figures(self) -> dict[str, float | str]:
        """Return `idle/COMPONENT`, the largest share of units without a gradient of its layers, and `idle_layer/COMPONENT`, which that is.

        The layer is told where the share is not 0. {} where no update was made since `begin`.
        """
        looked, figures = self._shares, dict[str, float | str]()
        self.end()
        largest = dict[str, tuple[float, int]]()
        for layer, share in zip(looked[0], looked[1].tolist(), strict=True) if looked is not None else ():
            component = self.trained[layer][0]
            largest[component] = max(largest.get(component, (share, layer)), (share, layer), key=lambda one: one[0])
        for component, (share, layer) in largest.items():
            figures |= {f"idle/{component}": share, **({f"idle_layer/{component}": self._name(layer)} if share else {})}
        return figures

    def _name(self, layer: int) -> str:
        return self.names[id(self.trained[layer][1])]

    @torch.no_grad()
    def _look(self) -> None:
        """Measure the share of units without a gradient of each layer that has gradients."""
        parts, layers = list[Tensor](), list[int]()
        for layer, (_, value) in enumerate(self.trained):
            gradient = None if value.grad is None else local(value.grad)
            if gradient is not None and len(gradient):
                parts.append(_some(gradient))
                layers.append(layer)
        if parts:
            self._shares = (layers, idle_shares(parts))


def idle_shares(gradients: Sequence[Tensor]) -> Tensor:
    """Return the share of rows without a gradient, of the (rows, columns) of each layer; columns are as many in all."""
    norms = torch.linalg.vector_norm(torch.cat([*gradients]).float(), dim=1)
    layer, counts = _rows_of(tuple(len(part) for part in gradients), norms.device)
    means = torch.zeros_like(counts).index_add_(0, layer, norms).div_(counts)
    limits = torch.maximum(_OF_LAYER * means, _OF_ALL * means.max())
    return torch.zeros_like(counts).index_add_(0, layer, (norms <= limits[layer]).float()).div_(counts)


@functools.lru_cache(maxsize=4)
def _rows_of(rows: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the number of the layer of each row, and the numbers of rows as floats. `rows`: of each layer."""
    counts = torch.tensor(rows, device=device)
    return torch.repeat_interleave(counts), counts.float()


def _some(gradient: Tensor) -> Tensor:
    """Return some rows and columns of a gradient, evenly spread, as a view; with columns of zeros, as a copy, where it has fewer."""
    rows, columns = gradient.shape
    if columns < _COLUMNS:
        return F.pad(gradient[:: -(-rows // _ROWS)], (0, _COLUMNS - columns))
    every, (down, along) = -(-rows // _ROWS), gradient.stride()
    return gradient.as_strided((-(-rows // every), _COLUMNS), (every * down, columns // _COLUMNS * along))


def _layers(model: nn.Module) -> Mapping[int, str]:
    """Return the names of the linear layers whose units are looked at, by the identity of their weight."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    named = {f"{name}.": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    units = {name: module for name, module in named.items() if not any(part in name for part in _NOT_UNITS)}
    return {
        id(module.weight): name.removesuffix(".")
        for name, module in units.items()
        if len(module.weight) >= _FEWEST_ROWS and id(module.weight) not in embeddings
    }
