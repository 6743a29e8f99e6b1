"""Casts of weights, counted: every copy of a parameter's values to another type, in forward, backward and recomputed blocks."""

from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """Context manager: counts by name how often each of the model's parameters is cast inside it (backward on a CPU included)."""

    supports_higher_order_operators = True

    def __init__(self, model):
        super().__init__()
        self.names = {value.untyped_storage()._cdata: name for name, value in model.named_parameters()}
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[0] if func.overloadpacket is torch.ops.aten._to_copy else args[1]
            name = self.names.get(source.untyped_storage()._cdata) if isinstance(source, Tensor) else None
            if name is not None and out.dtype != source.dtype:
                self.found[name] += 1
        return out
