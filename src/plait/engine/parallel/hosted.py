"""Parts of a model that nothing computes with, such as a decoder: they stay in the host's memory wherever the model goes.

A family gives such a module the class `OnHost` beside its own. Its parameters keep their names, types of a stage and hashes; they are moved
to no device, and neither replicated nor sharded. Whoever computes with one takes it from the host first (`release`).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class OnHost(nn.Module):
    """Keep a module of this class where it is when the model that holds it is moved as a whole."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "OnHost":
        """Change types as `fn` does, and no place: `to`, `cuda` and their like come here. What has no memory (meta) goes with the model."""

        def cast(value: Tensor) -> Any:
            return fn(value) if value.is_meta else value.to(fn(value.new_empty(0)).dtype)

        super()._apply(cast, recurse)  # type: ignore[no-untyped-call]  # torch's
        return self


def release(model: nn.Module) -> None:
    """Have what stays on the host go with the model again, in place."""
    for module in model.modules():
        if isinstance(module, OnHost):
            module.__class__ = type(module).__bases__[1]


def names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that stay on the host."""
    held = [(f"{prefix}.", module) for prefix, module in model.named_modules() if isinstance(module, OnHost)]
    return frozenset(prefix + name for prefix, module in held for name, _ in module.named_parameters())


def leave_out(model: nn.Module) -> None:
    """Have DDP leave alone what stays on the host: replicas neither compare nor broadcast it, which a network of GPUs could not."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(names(model)))
